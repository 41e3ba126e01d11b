"""The workspace's specification, without a network; what is missing is said."""

import json
import subprocess
import sys

import pytest

from longspan.analysis.dashboard import comparison_workspace, main, specification
from longspan.training.callbacks.throughput import PHASES

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")

NESTED = "pattern.value.group"  # as the server stores `pattern.group` of a nested configuration


@pytest.fixture
def printed(capsys):
    main(["my-team/longspan", "--print", "--name", "Patterns"])
    return json.loads(capsys.readouterr().out)


def panels(printed):
    """The panels by their kind, and by title or None."""
    found = {}
    for section in printed["spec"]["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            found.setdefault(panel["viewType"], []).append(panel["config"])
    return found


def test_where_it_goes(printed):
    assert (printed["entity"], printed["project"], printed["displayName"]) == (
        "my-team",
        "longspan",
        "Patterns",
    )


def test_runs_are_grouped_by_pattern(printed):
    (runs,) = printed["spec"]["section"]["runSets"]
    assert runs["grouping"] == [{"section": "config", "name": NESTED}]
    assert "config:sparsity.name" in runs["runFeed"]["columnOrder"]


def test_losses_against_every_budget(printed):
    lines = panels(printed)["Run History Line Plot"]
    assert {(line["xAxis"], *line["metrics"]) for line in lines} == {
        (f"cost/{budget}", f"{side}/loss")
        for budget in ("tokens", "seconds", "flops")
        for side in ("train", "val")
    }
    for line in lines:
        assert (line["groupBy"], line["groupAgg"], line["groupArea"]) == (NESTED, "mean", "stderr")


def test_quality_against_what_a_pattern_is_like(printed):
    points = panels(printed)["Scatter Plot"]
    assert {point["yAxis"] for point in points} == {"summary:val/loss"}
    assert {point["xAxis"] for point in points} >= {
        "summary:pattern/density",
        "summary:pattern/attention_distance",
        "summary:train/tokens_per_second",
        "summary:train/peak_memory_bytes",
    }


def test_bars_and_pictures(printed):
    bars = panels(printed)["Bar Chart"]
    assert [f"train/{phase}_seconds" for phase in PHASES] in [bar["metrics"] for bar in bars]
    assert ["train/mfu"] in [bar["metrics"] for bar in bars]
    assert all(bar["groupBy"] == NESTED for bar in bars)
    assert panels(printed)["Media Browser"][0]["mediaKeys"] == ["pattern/picture"]
    assert panels(printed)["Run Comparer"]


def test_the_specification_can_be_read_back():
    from wandb_workspaces.workspaces import Workspace
    from wandb_workspaces.workspaces.internal import View

    workspace = comparison_workspace("my-team", "longspan")
    again = Workspace._from_model(View.model_validate(specification(workspace)))
    assert [section.name for section in again.sections] == [section.name for section in workspace.sections]


@pytest.mark.parametrize("given", ["longspan", "/longspan", "team/", "a/b/c"])
def test_entity_and_project_are_both_needed(given, capsys):
    with pytest.raises(SystemExit) as stop:
        main([given, "--print"])
    assert stop.value.code == 2
    assert "give both, as in my-team/longspan" in capsys.readouterr().err


def test_without_the_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(SystemExit) as stop:
        main(["my-team/longspan", "--print"])
    assert stop.value.code == 1
    assert "python -m pip install 'longspan[dashboard]'" in capsys.readouterr().err


def test_without_a_login(monkeypatch, capsys):
    import wandb

    asked = []
    monkeypatch.setattr(wandb, "login", lambda **options: asked.append(options) or False)
    with pytest.raises(SystemExit) as stop:
        main(["my-team/longspan"])
    assert (stop.value.code, asked) == (1, [{"prompt": False}])
    assert "dashboard: no login to Weights & Biases: run `wandb login`" in capsys.readouterr().err


def test_what_the_server_says_is_told(monkeypatch, capsys):
    import wandb
    from wandb_workspaces.workspaces import Workspace

    def save(self):
        raise wandb.errors.CommError("project not found")

    monkeypatch.setattr(wandb, "login", lambda **options: True)
    monkeypatch.setattr(Workspace, "save", save)
    with pytest.raises(SystemExit) as stop:
        main(["my-team/longspan"])
    assert stop.value.code == 1
    assert (
        "my-team/longspan: the workspace could not be created: project not found" in capsys.readouterr().err
    )


def test_it_is_saved_where_there_is_a_login(monkeypatch, capsys):
    import wandb
    from wandb_workspaces.workspaces import Workspace

    saved = []
    monkeypatch.setattr(wandb, "login", lambda **options: True)
    monkeypatch.setattr(Workspace, "save", lambda self: saved.append(self) or self)
    monkeypatch.setattr(Workspace, "url", "https://example.org/view")
    main(["my-team/longspan"])
    assert [workspace.project for workspace in saved] == ["longspan"]
    assert capsys.readouterr().out == "Created https://example.org/view\n"


def test_the_help_needs_no_package():
    code = (
        "import sys, longspan.analysis.dashboard\n"
        "print([name for name in ('wandb', 'wandb_workspaces', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
