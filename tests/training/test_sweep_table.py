"""longspan.training.sweep: the closing table of a sweep."""

import json

import pytest
from omegaconf import OmegaConf

from longspan.training.sweep import SweepTable, collect, record_failure


def result(name, loss):
    return {
        "name": name,
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
