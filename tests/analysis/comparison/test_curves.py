"""Mean curves over seeds: what is left out, and what is interpolated."""

import csv

import pytest

from longspan.analysis.comparison.curves import loss_curves, mean_curve
from longspan.analysis.comparison.panels import Look
from longspan.analysis.comparison.runs import read_runs
from longspan.analysis.comparison.series import sort_runs


def sort(folder):
    (setting,) = sort_runs(read_runs([folder])[0])
    return setting


def drawn(setting):
    return loss_curves(setting, Look(tuple(one.label for one in setting.series), None))


def write_curve(folder, steps, losses, seconds):
    """A curve of validations, in place of that which a run has."""
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "val/loss", "cost/seconds"])
        writer.writerows([step - 1, *rest] for step, *rest in zip(steps, losses, seconds, strict=True))


def test_a_run_that_diverged_is_left_out_and_named(tmp_path, write_run):
    for seed, loss in enumerate((2.0, 2.1)):
        write_run(tmp_path / str(seed), seed=seed, loss=loss)
    (series,) = sort(tmp_path).series
    whole = mean_curve(series, "val", "tokens")
    bad = write_run(tmp_path / "2", seed=2, loss=float("nan"))
    write_curve(bad, [10, 20], [5.0, float("nan")], [1.0, 2.0])
    setting = sort(tmp_path)
    assert mean_curve(setting.series[0], "val", "tokens") == whole
    figure, told = drawn(setting)
    assert "Mean validation loss" in figure.caption
    assert told == [f"No finite validation loss, so left out of the mean curves: {bad}."]


def test_runs_that_all_diverged_have_no_curve(tmp_path, write_run):
    write_run(tmp_path / "0", loss=float("nan"))
    write_run(tmp_path / "1", "dense")
    figure, told = drawn(sort(tmp_path))
    assert figure is not None
    assert told == [f"No finite validation loss, so left out of the mean curves: {tmp_path / '0'}."]


def test_seeds_without_a_shared_step_are_interpolated_to_the_shortest(tmp_path, write_run):
    write_curve(write_run(tmp_path / "0", seed=0), [10, 20, 30], [4.0, 3.0, 2.0], [0.0, 10.0, 20.0])
    write_curve(write_run(tmp_path / "1", seed=1), [11, 21, 31], [6.0, 5.0, 4.0], [0.0, 20.0, 40.0])
    setting = sort(tmp_path)
    curve = mean_curve(setting.series[0], "val", "seconds")
    assert [point["x"] for point in curve] == [0.0, 10.0, 20.0]
    assert [point["y"] for point in curve] == pytest.approx([5.0, 4.25, 3.5])
    assert [point["n"] for point in curve] == [2, 2, 2]
    assert mean_curve(setting.series[0], "val", "flops") == []
    figure, told = drawn(setting)
    assert len(figure.panels) == 2
    assert any(text.startswith("Runs of bigbird were not logged at the same steps") for text in told)
