"""Finding and reading the folders of runs."""

import json
import re

import pytest

from longspan.analysis.comparison.runs import NoRuns, Unfinished, read_curves, read_run, read_runs, write_runs


def test_runs_are_found_at_any_depth_once_each_in_their_order(tmp_path, write_run):
    for number, seed in ((10, 2), (2, 1)):
        write_run(tmp_path / "sweep" / f"{number}_bigbird", seed=seed)
    write_run(tmp_path / "deeper" / "still" / "run", "dense", seed=3)
    (tmp_path / "sweep" / "2_bigbird" / "checkpoints").mkdir()
    (tmp_path / "sweep" / "2_bigbird" / "checkpoints" / "result.json").write_text("{}")
    runs, unfinished = read_runs([tmp_path / "sweep", tmp_path, tmp_path / "deeper/still/run/result.json"])
    assert [run.seed for run in runs] == [1, 2, 3]
    assert unfinished == []


def test_paths_without_runs_are_refused_by_name(tmp_path):
    with pytest.raises(NoRuns, match="nowhere does not exist"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(NoRuns, match=r"empty holds no run: no folder in it has result\.json or \.hydra"):
        read_runs([tmp_path / "empty"])
    (tmp_path / "notes.txt").write_text("not a run\n")
    with pytest.raises(
        NoRuns, match=r"notes\.txt is neither a folder, a result\.json nor a file of --collect"
    ):
        read_runs([tmp_path / "notes.txt"])
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(NoRuns, match="is empty"):
        read_runs([tmp_path / "none.jsonl"])


def test_what_did_not_finish_is_told_with_its_reason(tmp_path, write_run):
    write_run(tmp_path / "0_dense", "dense")
    write_run(tmp_path / "1_dense", "dense", status="interrupted")
    (write_run(tmp_path / "2_dense", "dense") / "result.json").write_text('{"metrics": {"val')
    (write_run(tmp_path / "3_dense", "dense", steps=200) / "result.json").unlink()
    for number in (4, 5):
        folder = write_run(tmp_path / f"{number}_dense", "dense")
        (folder / "result.json").unlink()
        (folder / "metrics.csv").unlink()
    (tmp_path / "4_dense" / "failure.json").write_text('{"error": "ValueError: block must be positive"}')
    (write_run(tmp_path / "6_dense", "dense") / "result.json").write_text("{}")
    runs, unfinished = read_runs([tmp_path])
    assert [run.name for run in runs] == [str(tmp_path / "0_dense")]
    reasons = {one.name.rpartition("/")[2]: one.reason for one in unfinished}
    assert reasons["1_dense"] == "interrupted after 200 steps"
    assert reasons["2_dense"].startswith("result.json cannot be read")
    assert reasons["3_dense"] == "no result: killed or still running; last logged step 200"
    assert reasons["4_dense"] == "failed: ValueError: block must be positive"
    assert reasons["5_dense"].startswith("no result: it was killed before its first logged step")
    assert reasons["6_dense"] == "result.json is not that of a run: it has no metrics"


def test_curves_have_every_axis_that_was_logged(tmp_path, write_run):
    run = write_run(
        tmp_path / "run", loss=2.0, steps=200, seq_len=1024, tokens_per_second=8192.0, step_flops=5.0
    )
    (read,), _ = read_runs([run])
    last = read.curves["val"][-1]
    assert last == {
        "step": 200,
        "loss": pytest.approx(2.0),
        "tokens": 200 * 8192,
        "seconds": 200.0,
        "flops": 1000.0,
    }
    assert len(read.curves["train"]) == len(read.curves["val"]) == 20


def test_a_resumed_run_counts_its_later_steps(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "step,train/loss,train/tokens,val/loss\n"
        "0,5.0,10,\n1,4.0,20,\n1,,,4.5\n2,3.0,30,\n3,9.9,40,\n"
        # Killed; it goes on from its checkpoint of step 2.
        "2,3.5,30,\n3,2.5,40,\n3,,,3.25\n"
    )
    curves = read_curves(path, {"tokens_per_step": 10})
    assert [(point["step"], point["loss"]) for point in curves["train"]] == [
        (1, 5.0),
        (2, 4.0),
        (3, 3.5),
        (4, 2.5),
    ]
    assert [(point["step"], point["loss"], point["tokens"]) for point in curves["val"]] == [
        (2, 4.5, 20),
        (4, 3.25, 40),
    ]
    assert all(point["seconds"] is None for point in curves["train"])


def test_rows_without_an_axis_take_it_from_those_around_them(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,cost/seconds,val/loss\n0,5,1.0,\n2,,,4\n4,3,9.0,\n6,,,2\n8,nan,,\n")
    curves = read_curves(path, {"tokens_per_step": 10})
    assert curves["val"][0]["seconds"] == pytest.approx(5.0)
    # Past what was logged nothing is made up; tokens follow from the steps.
    assert curves["val"][1]["seconds"] is None
    assert [point["tokens"] for point in curves["val"]] == [30, 70]
    assert [point["step"] for point in curves["train"]] == [1, 5]


def test_collected_runs_read_back_the_same(tmp_path, write_run):
    evaluation = {"by_position": [{"from": 0, "to": 8, "loss": 1.0, "accuracy": None, "scored": 4}]}
    write_run(tmp_path / "runs" / "0_dense", "dense", evaluation=evaluation)
    write_run(tmp_path / "runs" / "1_bigbird", steps=200)
    runs, _ = read_runs([tmp_path / "runs"])
    write_runs(runs, tmp_path / "all.jsonl")
    again, unfinished = read_runs([tmp_path / "all.jsonl", tmp_path / "all.jsonl"])
    assert again == runs
    assert unfinished == []
    write_runs(runs, tmp_path / "few.jsonl", points=5)
    thin, _ = read_runs([tmp_path / "few.jsonl"])
    assert [len(run.curves["train"]) for run in thin] == [5, 5]
    assert thin[0].curves["val"][-1] == runs[0].curves["val"][-1]
    assert json.loads((tmp_path / "few.jsonl").read_text().splitlines()[0])["evaluation"] == evaluation


def test_numbers_that_are_not_finite_are_none(tmp_path, write_run):
    nan = {"by_position": [{"from": 0, "to": 8, "loss": float("nan"), "accuracy": 0.5, "scored": 4}]}
    folder = write_run(tmp_path / "run", evaluation=nan)
    result = json.loads((folder / "result.json").read_text())
    result["metrics"]["val_loss"] = float("inf")
    (folder / "result.json").write_text(json.dumps(result))
    runs, _ = read_runs([folder])
    assert runs[0].evaluation["by_position"][0]["loss"] is None
    assert runs[0].result["metrics"]["val_loss"] is None
    write_runs(runs, tmp_path / "all.jsonl")
    # A file as an older version collected it.
    old = (tmp_path / "all.jsonl").read_text().replace('"val_loss": null', '"val_loss": NaN')
    (tmp_path / "old.jsonl").write_text(old)
    assert "NaN" in old
    assert read_runs([tmp_path / "old.jsonl"])[0] == runs


@pytest.mark.parametrize(("text", "why"), [('{"by', "Expecting|Unterminated"), ("[]", "an object, got list")])
def test_an_evaluation_that_cannot_be_read_is_a_note(tmp_path, write_run, text, why):
    folder = write_run(tmp_path / "run")
    (folder / "evaluation.json").write_text(text)
    run = read_run(folder)
    assert run.evaluation == {}
    assert len(run.notes) == 1
    assert str(folder / "evaluation.json") in run.notes[0]
    assert re.search(why, run.notes[0])


def test_an_unfinished_run_of_no_known_steps_is_told(tmp_path, write_run):
    folder = write_run(tmp_path / "run", status="interrupted")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "steps": None}))
    assert read_run(folder) == Unfinished(str(folder), "interrupted after an unknown number of steps")
