"""A Weights & Biases workspace that compares patterns: ``python -m longspan.analysis.dashboard``.

It shows the runs of a project grouped by ``pattern.group``: the pattern with its arguments, the objective,
the corpus and the length. Panels show loss against tokens, seconds and floating-point operations, quality
against density, attention distance, speed and memory, and the pictures of the patterns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

# The key of the logged configuration that is equal within a group.
GROUP_BY = "pattern.group"
PACKAGE = "wandb-workspaces"

# Axes of the lines: key of the history, title.
BUDGETS = (("cost/tokens", "tokens"), ("cost/seconds", "seconds of training"), ("cost/flops", "FLOPs"))
LOSSES = (
    ("val/loss", "validation loss (nats a token)"),
    ("train/loss", "training loss (nats a token)"),
)
# Axes of the points: key of the summary, title.
TRAITS = (
    ("pattern/density", "density"),
    ("pattern/attention_distance", "mean attention distance (tokens)"),
    ("cost/flops_per_step", "FLOPs of a step"),
    ("train/tokens_per_second", "tokens a second"),
    ("train/peak_memory_bytes", "peak memory (bytes)"),
)
BARS = (
    ("train/tokens_per_second", "tokens a second"),
    ("train/peak_memory_bytes", "peak memory (bytes)"),
    ("train/mfu", "model FLOPs utilisation"),
    ("train/dense_mfu", "utilisation counted as dense attention"),
)
PHASES = ("data", "forward", "backward", "optimizer")
COLUMNS = ("config:sparsity.name", "config:data.seq_len", "config:seed", "summary:val/loss")


class DashboardError(Exception):
    """The dashboard cannot be created; the message is for the user."""


def comparison_workspace(entity: str, project: str, name: str = "Comparison of patterns") -> Any:
    """Return the workspace, without network access; its `save()` creates it.

    Args:
        entity: user or team.
        project: project of the compared runs.
        name: name of the workspace.

    Returns:
        `wandb_workspaces.workspaces.Workspace`.

    Raises:
        DashboardError: the package is not installed.

    """
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise DashboardError(
            f"the dashboard needs the package {PACKAGE}: python -m pip install 'longspan[dashboard]'"
        ) from error

    group = reports.Config(GROUP_BY)
    grouped = {"groupby": group, "groupby_aggfunc": "mean"}

    def lines(loss: str, title: str) -> Any:
        return workspaces.Section(
            name=title.capitalize(),
            is_open=True,
            panels=[
                reports.LinePlot(
                    title=f"{title} against {budget}",
                    x=x,
                    y=[loss],
                    title_x=budget,
                    title_y=title,
                    groupby_rangefunc="stderr",
                    **grouped,
                )
                for x, budget in BUDGETS
            ],
        )

    def points(x: str, title: str) -> Any:
        return reports.ScatterPlot(
            title=f"validation loss against {title}",
            x=reports.SummaryMetric(x),
            y=reports.SummaryMetric("val/loss"),
            legend_template="${config:sparsity.name} ${run:displayName}",
        )

    sections = [
        *(lines(loss, title) for loss, title in LOSSES),
        workspaces.Section(
            name="Quality and cost", is_open=True, panels=[points(x, title) for x, title in TRAITS]
        ),
        workspaces.Section(
            name="Speed and memory",
            panels=[
                *(
                    reports.BarPlot(title=title, metrics=[metric], groupby_rangefunc="stderr", **grouped)
                    for metric, title in BARS
                ),
                reports.BarPlot(
                    title="where the time of a step goes (seconds)",
                    metrics=[f"train/{phase}_seconds" for phase in PHASES],
                    **grouped,
                ),
            ],
        ),
        workspaces.Section(
            name="Patterns",
            panels=[
                reports.MediaBrowser(title="pictures of the patterns", media_keys=["pattern/picture"]),
                reports.RunComparer(diff_only="split"),
            ],
        ),
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Config(GROUP_BY)], pinned_columns=list(COLUMNS)
        ),
    )


def specification(workspace: Any) -> dict[str, Any]:
    """Return the data that would be sent to Weights & Biases, in plain types."""
    return workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def create(workspace: Any) -> str:
    """Create a workspace and return its address.

    Raises:
        DashboardError: there is no login, or the server refuses or cannot be reached.

    """
    import wandb
    from wandb.errors import Error

    try:
        if not wandb.login(prompt=False):
            raise DashboardError(
                "no login to Weights & Biases: run `wandb login` or set WANDB_API_KEY; --print shows the "
                "workspace without one"
            )
        return workspace.save().url
    except (Error, OSError, ValueError) as error:
        raise DashboardError(
            f"{workspace.entity}/{workspace.project}: the workspace could not be created: {error}"
        ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Create the workspace of the command line, or print its specification."""
    parser = argparse.ArgumentParser(
        prog="python -m longspan.analysis.dashboard",
        description="Create a Weights & Biases workspace that compares the patterns of a project's runs.",
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="user or team, and the project")
    parser.add_argument("--name", default="Comparison of patterns", help="name of the workspace")
    parser.add_argument(
        "--print",
        action="store_true",
        dest="only_print",
        help="print the specification as JSON and send nothing: needs no account",
    )
    given = parser.parse_args(arguments)
    entity, separator, project = given.project.partition("/")
    if not (entity and separator and project) or "/" in project:
        parser.error(f"ENTITY/PROJECT: got {given.project!r}; give both, as in my-team/longspan")
    try:
        workspace = comparison_workspace(entity, project, given.name)
        if given.only_print:
            print(json.dumps(specification(workspace), indent=2))
        else:
            print(f"Created {create(workspace)}")
    except DashboardError as error:
        print(f"dashboard: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
