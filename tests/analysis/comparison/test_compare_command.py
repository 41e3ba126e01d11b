"""python -m longspan.analysis.compare: what it prints and writes, and how it refuses."""

import json
import subprocess
from io import StringIO
from pathlib import Path

import pytest

from longspan.analysis.compare import compare, main
from longspan.analysis.comparison.runs import NoRuns

ROOT = Path(__file__).parents[3]


def printed(*paths, **options):
    stream = StringIO()
    compare(paths, file=stream, pages=False, **options)
    return stream.getvalue()


def cells(text, label):
    """The cells of the first row of a label."""
    line = next(line for line in text.splitlines() if line.startswith(f"│ {label} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_table_has_means_and_intervals(tmp_path, write_run):
    for seed, (dense, bigbird) in enumerate(((2.0, 2.11), (2.1, 2.2), (2.2, 2.29))):
        write_run(tmp_path / f"d{seed}", "dense", seed, dense, tokens_per_second=1e5, peak_memory=2**31)
        write_run(tmp_path / f"b{seed}", "bigbird", seed, bigbird, tokens_per_second=2e5 + seed * 1e3)
    text = printed(tmp_path)
    kept = 100 * json.loads((tmp_path / "b0" / "result.json").read_text())["patterns"][0]["density"]
    # 4.3027 standard errors: 0.1 / sqrt(3) and 0.09 / sqrt(3).
    assert cells(text, "dense") == [
        "dense", "2.1000 ± 0.2484", "3.0297 ± 0.3584", "53.1", "100.0", "2.00", "200.00", "3",
    ]  # fmt: skip
    assert cells(text, "bigbird")[1:] == [
        "2.2000 ± 0.2236", "3.1739 ± 0.3225", f"{kept:.1f}", "201.0 ± 2.5", "1.00", "200.00", "3",
    ]  # fmt: skip
    paired = cells(text.partition("Paired differences to dense")[2], "bigbird")
    assert paired == ["bigbird", "+0.1000 ± 0.0248*", "3"]
    assert all(line == line.rstrip() for line in text.splitlines())


def test_one_seed_has_no_interval_anywhere(tmp_path, write_run):
    write_run(tmp_path / "0", "dense")
    write_run(tmp_path / "1", "bigbird", loss=2.5, tokens_per_second=5e3)
    text = printed(tmp_path)
    before_the_legend = text.rpartition("± is half")[0]
    assert "±" not in before_the_legend
    assert "+0.5000" in text
    assert "One seed of every pattern: no confidence interval." in text


def test_what_is_not_compared_is_listed_and_warnings_are_marked(tmp_path, write_run):
    write_run(tmp_path / "0", "dense", steps=100)
    write_run(tmp_path / "1", "bigbird", steps=200)
    write_run(tmp_path / "2[x]", "fixed", status="interrupted")
    text = printed(tmp_path)
    assert "warning: Not comparable: different budgets" in text
    assert f"not compared: {tmp_path / '2[x]'}: interrupted after 200 steps" in text


def test_a_baseline_is_chosen_and_a_wrong_one_refused(tmp_path, write_run):
    write_run(tmp_path / "0", "dense")
    write_run(tmp_path / "1", "bigbird")
    assert "Paired differences to bigbird" in printed(tmp_path, baseline="bigbird")
    with pytest.raises(ValueError, match="baseline must be one of dense, bigbird, got 'fixd'"):
        printed(tmp_path, baseline="fixd")


def test_nothing_finished_is_refused_with_reasons(tmp_path, write_run):
    write_run(tmp_path / "0", status="interrupted")
    with pytest.raises(NoRuns, match=r"no run has finished.*\n.*interrupted after 200 steps"):
        printed(tmp_path)


def test_the_command_ends_with_a_message_and_no_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "nowhere")])
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"longspan: {tmp_path / 'nowhere'} does not exist\n"


def test_a_run_that_diverged_still_gives_a_page_and_a_collected_file(tmp_path, write_run):
    for seed, loss in enumerate((2.0, float("nan"))):
        part = {"from": 0, "to": 8, "loss": loss, "accuracy": 0.5, "scored": 4}
        write_run(tmp_path / str(seed), seed=seed, loss=loss, evaluation={"by_position": [part]})
    main([str(tmp_path), "--out", str(tmp_path / "out"), "--collect", str(tmp_path / "runs.jsonl")])
    assert (tmp_path / "out" / "comparison.html").is_file()
    assert "NaN" not in (tmp_path / "runs.jsonl").read_text()


def test_a_place_that_cannot_be_written_is_a_message(tmp_path, write_run, capsys):
    write_run(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), "--collect", str(tmp_path / "none" / "runs.jsonl")])
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("longspan: [Errno 2]")


@pytest.mark.slow
def test_a_real_sweep_from_training_to_the_page(tmp_path, capsys, warm_python):
    command = [
        warm_python, str(ROOT / "train.py"), "-m", "experiment=smoke", "sparsity=bigbird,dense",
        "seed=0,1", "trainer.max_steps=4", "trainer.val_check_interval=2", "model.num_layers=1",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    # A run that was killed leaves no result.
    (tmp_path / "sweep" / "4_fixed" / ".hydra").mkdir(parents=True)
    (tmp_path / "sweep" / "4_fixed" / ".hydra" / "overrides.yaml").write_text("- sparsity=fixed\n")
    main([str(tmp_path / "sweep"), "--out", str(tmp_path / "out"), "--collect", str(tmp_path / "runs.jsonl")])
    text = capsys.readouterr().out
    results = [json.loads((tmp_path / "sweep" / f"{n}" / "result.json").read_text())
               for n in ("0_bigbird", "1_bigbird")]  # fmt: skip
    mean = sum(result["metrics"]["val_loss"] for result in results) / 2
    assert cells(text, "bigbird")[1].startswith(f"{mean:.4f} ± ")
    assert f"not compared: {tmp_path / 'sweep' / '4_fixed'}: no result" in text
    assert "warning" not in text
    page = (tmp_path / "out" / "comparison.html").read_text()
    # Tokens, seconds and FLOPs were all recorded, and both patterns have a picture.
    assert page.count('id="clm_python_source_256-loss-') == 3
    assert page.count("data:image/png;base64") == 2
    figures = {path.stem.removeprefix("clm_python_source_256_") for path in (tmp_path / "out").glob("*.png")}
    assert figures == {"loss", "differences", "tradeoffs_val_loss", "evaluation"}
    # The file of the runs gives the same table.
    assert cells(printed(tmp_path / "runs.jsonl"), "bigbird") == cells(text, "bigbird")
