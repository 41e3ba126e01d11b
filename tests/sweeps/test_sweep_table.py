"""longspan.sweeps.jobs and table: the closing table of a sweep."""

import json

import pytest
from omegaconf import OmegaConf

from longspan.sweeps.jobs import collect, note_jobs, record_failure, sweep_name
from longspan.sweeps.seeds_table import group_seeds, seeds_table
from longspan.sweeps.table import SweepTable


def result(name, loss):
    return {
        "name": name,
        "status": "finished",
        "steps": 9,
        "overrides": [f"sparsity={name}"],
        "patterns": [{"name": name, "density": 0.25}],
        "metrics": {"val_loss": loss, "bits_per_byte": loss / 0.693},
        "throughput": {"tokens_per_second": 12345.6},
        "seconds": 61.0,
    }


def job(folder, name, overrides, reached=None):
    (folder / name / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / name / ".hydra" / "overrides.yaml")
    if reached is not None:
        (folder / name / "result.json").write_text(json.dumps(reached))


def end(folder):
    SweepTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}))


@pytest.fixture
def sweep(tmp_path):
    job(tmp_path, "10_dense", ["sparsity=dense"], result("dense", 2.5))
    job(tmp_path, "2_fixed", ["sparsity=fixed"], result("fixed", 2.25))
    job(tmp_path, "3_bigbird", ["sparsity=bigbird", "seed=1"])
    job(tmp_path, "4_variable", ["sparsity=variable"])
    (tmp_path / "multirun.yaml").write_text("{}")
    try:
        raise ValueError("block must be positive\nand more")
    except ValueError as error:
        record_failure(tmp_path / "4_variable", error)
    return tmp_path


def test_jobs_are_in_order_of_their_numbers_and_failures_are_named(sweep):
    found = collect(sweep)
    assert [run["name"] for run in found.results] == ["fixed", "dense"]
    assert found.failures == {
        "3_bigbird (sparsity=bigbird seed=1)": "it left no result",
        "4_variable (sparsity=variable)": "ValueError: block must be positive",
    }


def test_the_callback_compares_writes_and_fails_with_its_jobs(sweep, capsys):
    with pytest.raises(SystemExit) as stop:
        end(sweep)
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "failed: 4_variable (sparsity=variable): ValueError: block must be positive" in printed.err
    assert printed.out.index("2.25") < printed.out.index("2.5000")
    written = (sweep / "comparison.txt").read_text()
    assert "failed: 3_bigbird" in written
    assert "sparsity=dense" in written


def test_a_sweep_without_failures_ends_well(tmp_path, capsys):
    job(tmp_path, "0_dense", ["sparsity=dense"], result("dense", 2.5))
    end(tmp_path)
    assert "sparsity=dense" in capsys.readouterr().out


def test_what_an_earlier_command_left_unfinished_is_left_out(sweep):
    (sweep / "jobs.json").write_text(json.dumps(["2_fixed", "3_bigbird"]))
    found = collect(sweep)
    assert [run["name"] for run in found.results] == ["fixed", "dense"]
    assert list(found.failures) == ["3_bigbird (sparsity=bigbird seed=1)"]


def test_jobs_that_another_command_asked_for_meanwhile_are_its_own(sweep):
    note_jobs(sweep, ["2_fixed", "3_bigbird"])
    (sweep / "jobs.json").write_text(json.dumps(["6_random"]))
    job(sweep, "6_random", ["sparsity=random"])
    assert list(collect(sweep).failures) == ["3_bigbird (sparsity=bigbird seed=1)"]


def test_an_interrupted_run_is_no_result(sweep):
    cut = result("strided", 1.5) | {"status": "interrupted"}
    job(sweep, "5_strided", ["sparsity=strided"], cut)
    found = collect(sweep)
    assert [run["name"] for run in found.results] == ["fixed", "dense"]
    assert found.failures["5_strided (sparsity=strided)"] == "interrupted after 9 steps"
    (sweep / "jobs.json").write_text(json.dumps(["2_fixed"]))
    assert collect(sweep).failures == {}, "nor was it asked for again"


def of_seed(name, seed, loss, order=1):
    one = result(name, loss)
    return {**one, "overrides": [f"sparsity={name}", f"seed={seed}", "data=text_files"][::order]}


def test_seeds_are_one_row_with_mean_and_standard_deviation():
    runs = [
        of_seed("fixed", 0, 2.0),
        of_seed("fixed", 1, 3.0, order=-1),
        of_seed("fixed", 2, 4.0),
        of_seed("dense", 0, 2.5),
        of_seed("dense", 1, 9.0) | {"metrics": {"val_loss": None, "bits_per_byte": None}},
    ]
    assert [len(group) for group in group_seeds(runs).values()] == [3, 2]
    table = seeds_table(runs)
    lines = [list(column.cells) for column in table.columns]
    assert lines[0] == ["*", ""]
    assert [str(cell) for cell in lines[1]] == ["sparsity=dense", "sparsity=fixed"]
    assert lines[4] == ["2", "3"]
    assert lines[5] == ["2.5000", "3.0000 ± 1.0000"]


def test_what_is_noted_of_a_run_does_not_split_its_group():
    runs = [of_seed("fixed", 0, 2.0), of_seed("fixed", 1, 3.0), of_seed("fixed", 2, 4.0)]
    runs[0]["overrides"] += ["logger=csv", "++logger.csv.flush=2"]
    runs[1]["overrides"] += ["sweep=it", "callbacks.last.every_n_train_steps=4", "~logger"]
    assert [len(group) for group in group_seeds(runs).values()] == [3]
    runs[2]["overrides"] += ["callbacks.other=1", "loggers=2"]
    assert [len(group) for group in group_seeds(runs).values()] == [2, 1]


def test_runs_of_one_seed_need_no_second_table():
    assert seeds_table([of_seed("fixed", 0, 2.0), of_seed("dense", 0, 2.0)]) is None


def test_there_is_no_sweep_outside_of_one():
    assert sweep_name() is None
