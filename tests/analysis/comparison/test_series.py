"""Sorting runs, and what a reader is told of how alike they are."""

import json

import pytest

from longspan.analysis.comparison.page import _pictures
from longspan.analysis.comparison.quantities import DENSITY, LOSS, qualities, quantities
from longspan.analysis.comparison.remarks import remarks
from longspan.analysis.comparison.runs import read_runs
from longspan.analysis.comparison.series import density, sort_runs
from longspan.analysis.comparison.tables import configuration_table, results_table


def sort(folder):
    return sort_runs(read_runs([folder])[0])


def warnings(setting):
    return [remark.text for remark in remarks(setting) if remark.warning]


def notes(setting):
    return [remark.text for remark in remarks(setting) if not remark.warning]


def test_runs_are_sorted_by_objective_corpus_and_length_then_pattern_then_seed(
    tmp_path, write_study, write_run
):
    write_study(tmp_path / "a", 2, ("clm", "mlm"))
    write_run(tmp_path / "b", corpus="needle")
    write_run(tmp_path / "c", seq_len=512)
    settings = sort(tmp_path)
    assert [setting.key for setting in settings] == [
        "clm_needle_1024", "clm_python_source_512", "clm_python_source_1024", "mlm_python_source_1024",
    ]  # fmt: skip
    assert settings[2].title == "Causal language modelling, python_source, 1,024 tokens"
    labels = [one.label for one in settings[2].series]
    assert labels == ["dense", "bigbird", "bslongformer", "fixed", "local_sliding_window", "variable"]
    assert all(list(one.runs) == [0, 1] for one in settings[2].series)
    assert settings[2].baseline().label == "dense"
    assert settings[2].baseline("fixed").label == "fixed"
    assert settings[0].baseline().label == "bigbird"
    assert settings[0].baseline("fixed") is None
    assert warnings(settings[2]) == []


def test_one_pattern_with_two_arguments_is_two_series(tmp_path, write_run):
    for number, blocks in enumerate((1, 3)):
        for seed in (0, 1):
            write_run(tmp_path / f"{number}{seed}", seed=seed, arguments={"num_random_blocks": blocks})
    (setting,) = sort(tmp_path)
    labels = [one.label for one in setting.series]
    assert labels == ["bigbird num_random_blocks=1", "bigbird num_random_blocks=3"]
    table = configuration_table(setting)
    assert table.rows == (("sparsity.num_random_blocks", "1", "3"),)


def test_two_sweeps_of_one_pattern_are_one_series(tmp_path, write_run):
    for seed, name in enumerate(("first", "second")):
        write_run(tmp_path / name, seed=seed, changes={"sweep.name": name, "data.pin_memory": bool(seed)})
    (setting,) = sort(tmp_path)
    assert [one.label for one in setting.series] == ["bigbird"]
    assert warnings(setting) == []


def test_a_run_made_twice_counts_once_and_is_named(tmp_path, write_run):
    write_run(tmp_path / "0", loss=2.0)
    later = write_run(tmp_path / "1", loss=3.0)
    result = json.loads((later / "result.json").read_text())
    (later / "result.json").write_text(json.dumps({**result, "date": "2027-01-01T00:00:00+00:00"}))
    (setting,) = sort(tmp_path)
    assert setting.series[0].values(LOSS) == {0: 3.0}
    assert any("not compared" in text and str(tmp_path / "0") in text for text in warnings(setting))


def test_other_data_is_warned_about(tmp_path, write_run):
    write_run(tmp_path / "0", "dense")
    write_run(tmp_path / "1", "bigbird", sha256="cd" * 32)
    (setting,) = sort(tmp_path)
    assert any("different data (corpus, train (sha256), corpus, validation" in t for t in warnings(setting))


def test_data_that_follows_the_seed_is_no_other_data(tmp_path, write_run):
    for number, pattern in enumerate(("dense", "bigbird")):
        for seed in (0, 1):
            write_run(tmp_path / f"{number}{seed}", pattern, seed, sha256=f"{seed}" * 64)
    (setting,) = sort(tmp_path)
    assert warnings(setting) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.batch_size": 4}, "different data (data.batch_size)"),
        ({"model.num_layers": 4}, "different models (model.num_layers)"),
        ({"optimizer.lr": 0.1}, "different optimizers (optimizer.lr)"),
        (
            {"trainer.gradient_clip_val": 0.5},
            "runs differ in more than the pattern (trainer.gradient_clip_val)",
        ),
    ],
)
def test_other_settings_are_warned_about(tmp_path, write_run, changes, told):
    write_run(tmp_path / "0", "dense")
    write_run(tmp_path / "1", "bigbird", changes=changes)
    (setting,) = sort(tmp_path)
    assert warnings(setting) == [f"Not comparable: {told}."]


def test_budgets(tmp_path, write_run):
    write_run(tmp_path / "unequal" / "0", "dense", steps=100)
    write_run(tmp_path / "unequal" / "1", "bigbird", steps=200)
    (setting,) = sort(tmp_path / "unequal")
    (told,) = warnings(setting)
    assert told == ("Not comparable: different budgets (819,200 tokens: dense; 1,638,400 tokens: bigbird).")
    write_run(tmp_path / "flops" / "0", "dense", steps=100, step_flops=4e12)
    write_run(tmp_path / "flops" / "1", "bigbird", steps=200, step_flops=2e12)
    (setting,) = sort(tmp_path / "flops")
    assert warnings(setting) == []
    assert notes(setting)[0] == "Equal floating-point operations, so the numbers of tokens differ."
    write_run(tmp_path / "seconds" / "0", "dense", steps=100, tokens_per_second=1e5)
    write_run(tmp_path / "seconds" / "1", "bigbird", steps=200, tokens_per_second=2e5)
    (setting,) = sort(tmp_path / "seconds")
    assert warnings(setting) == []
    assert notes(setting)[0] == "Equal time of training, so the numbers of tokens differ."
    # Given as such, a budget need not be spent to the last bit.
    for path in (tmp_path / "unequal" / "0", tmp_path / "unequal" / "1"):
        result = json.loads((path / "result.json").read_text())
        result["budget"] = {"unit": "seconds", "limit": 300.0, "used": 299.0}
        (path / "result.json").write_text(json.dumps(result))
    (setting,) = sort(tmp_path / "unequal")
    assert warnings(setting) == []
    assert notes(setting)[0] == "Equal budgets of 300 seconds, so the numbers of tokens differ."


def test_a_budget_that_was_not_used_is_a_warning(tmp_path, write_run):
    for name, steps, used in (("dense", 100, 150.0), ("bigbird", 200, 301.0)):
        path = write_run(tmp_path / name, name, steps=steps)
        result = json.loads((path / "result.json").read_text())
        result["budget"] = {"unit": "seconds", "limit": 300.0, "used": used}
        (path / "result.json").write_text(json.dumps(result))
    (setting,) = sort(tmp_path)
    assert warnings(setting) == [
        f"Not comparable: runs did not use their equal budgets of 300 seconds ({tmp_path / 'dense'}: 150)."
    ]
    # What is not known is not called equal.
    result["budget"]["used"] = None
    (path / "result.json").write_text(json.dumps(result))
    assert warnings(sort(tmp_path)[0])[0].startswith("Not comparable: different budgets")


def test_seeds_that_diverged_are_not_counted(tmp_path, write_run):
    for seed, loss in enumerate((2.0, 2.1, float("nan"))):
        write_run(tmp_path / str(seed), seed=seed, loss=loss, tokens_per_second=1e5 + seed)
    (setting,) = sort(tmp_path)
    table = results_table(setting)
    cells = dict(zip(table.headings, table.rows[0], strict=True))
    assert cells["n"] == "2"
    assert cells["speed (1,000 tokens/s)"].endswith(" (n=3)")
    assert "n=" not in cells["validation loss (nats/token)"]
    assert any("Two seeds of every pattern" in text for text in notes(setting))


def test_too_few_seeds_are_told(tmp_path, write_run):
    write_run(tmp_path / "0", "dense", 0)
    write_run(tmp_path / "1", "bigbird", 0)
    (setting,) = sort(tmp_path)
    assert notes(setting) == ["One seed of every pattern: no confidence interval."]
    write_run(tmp_path / "2", "bigbird", 1)
    (setting,) = sort(tmp_path)
    told = " ".join(notes(setting))
    assert "One seed of dense: no confidence interval." in told
    assert "Two seeds of bigbird: an interval of one degree of freedom" in told
    assert "their differences are taken over those they share" in told


def test_a_loss_that_is_not_finite_is_left_out_and_told(tmp_path, write_run):
    write_run(tmp_path / "0", seed=0, loss=2.0)
    write_run(tmp_path / "1", seed=1, loss=float("nan"))
    (setting,) = sort(tmp_path)
    assert setting.series[0].values(LOSS) == {0: 2.0}
    assert any(
        "No finite validation loss" in text and str(tmp_path / "1") in text for text in warnings(setting)
    )


def test_another_device_spoils_speed_and_memory(tmp_path, write_run):
    write_run(tmp_path / "0", "dense")
    other = write_run(tmp_path / "1", "bigbird")
    result = json.loads((other / "result.json").read_text())
    (other / "result.json").write_text(json.dumps({**result, "device": "NVIDIA A100"}))
    (setting,) = sort(tmp_path)
    assert warnings(setting) == ["Speed and memory are not comparable: runs differ in device."]


def test_the_density_of_a_mixture_is_the_mean_over_its_layers(tmp_path, write_run):
    path = write_run(tmp_path / "0")
    result = json.loads((path / "result.json").read_text())
    one = result["patterns"][0]
    mixed = [
        {**one, "name": "local", "density": 0.1, "layers": 3},
        {**one, "name": "dense", "density": 0.5, "layers": 1},
    ]
    result["patterns"], result["config"]["model"]["num_layers"] = mixed, 4
    (path / "result.json").write_text(json.dumps(result))
    (setting,) = sort(tmp_path)
    (series,) = setting.series
    assert series.label == "local×3 + dense×1"
    assert series.values(DENSITY)[0] == pytest.approx(0.2)
    # Layers without a pattern keep all that their own attention does: what share that is stands nowhere.
    result["config"]["model"]["num_layers"] = 5
    (path / "result.json").write_text(json.dumps(result))
    assert density(read_runs([tmp_path])[0][0]) is None
    assert "density" not in [quantity.key for quantity in quantities(sort(tmp_path)[0])]


def test_a_task_is_judged_by_accuracy_and_text_by_its_loss(tmp_path, write_run):
    path = write_run(tmp_path / "0")
    assert [quality.key for quality in qualities(sort(tmp_path)[0])] == ["val_loss"]
    result = json.loads((path / "result.json").read_text())
    result["metrics"] |= {"bits_per_byte": None, "accuracy": 0.875}
    (path / "result.json").write_text(json.dumps(result))
    found = qualities(sort(tmp_path)[0])
    assert [quality.key for quality in found] == ["accuracy", "val_loss"]
    assert found[0].write(0.875) == "87.5"


def test_the_baseline_is_dense_where_any_series_is_and_is_told(tmp_path, write_run):
    for name, pattern, rate in (("0", "bigbird", 0.1), ("1", "dense", 0.1), ("2", "dense", 0.2)):
        write_run(tmp_path / name, pattern, changes={"optimizer.lr": rate})
    (setting,) = sort(tmp_path)
    assert setting.baseline().label == "dense lr=0.1"
    assert any("differences are taken to dense lr=0.1" in text for text in notes(setting))


def test_corpora_of_like_names_have_keys_of_their_own(tmp_path, write_run):
    for number, corpus in enumerate(("a b", "a/b", "a,b")):
        write_run(tmp_path / str(number), corpus=corpus)
    assert len({setting.key for setting in sort(tmp_path)}) == 3


def test_patterns_of_one_title_have_a_picture_each(tmp_path, write_run):
    path = write_run(tmp_path / "0")
    result = json.loads((path / "result.json").read_text())
    one = result["patterns"][0] | {"layers": 1}
    result["patterns"] = [one, one]
    (path / "result.json").write_text(json.dumps(result))
    pictures, _ = _pictures(sort(tmp_path)[0])
    assert len({title for title, _ in pictures}) == 2
