"""A run of train.py on a CUDA device: through Triton by itself, on the curve of the torch backend."""

import csv

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from longspan.config import schemas
from longspan.config.folders import config_dir
from longspan.training.run import train
from longspan_kernels.backends import available_backends, load_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 30
RUN = [
    "trainer=gpu",
    f"trainer.max_steps={STEPS}",
    f"trainer.val_check_interval={STEPS}",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
    "logger=csv",
    "data=text_files",
    f"data.corpus.files=['{config_dir().parent}/kernels/**/*.py']",
    "data.corpus.validation_fraction=0.2",
    "data.seq_len=1024",
]


@pytest.fixture
def calls(monkeypatch):
    """How often each backend was called, forward and backward."""
    counts = dict.fromkeys(available_backends(), 0)

    def counted(name, function):
        def call(*arguments):
            counts[name] += 1
            return function(*arguments)

        return call

    for name in counts:
        backend = load_backend(name)
        for function in ("forward", "backward"):
            monkeypatch.setattr(backend, function, counted(name, getattr(backend, function)))
    return counts


def train_with(folder, *overrides):
    """The result of a run, and its loss at each step."""
    schemas.register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = hydra.compose(schemas.PRIMARY, overrides=[*RUN, *overrides, f"output_dir={folder}"])
    result = train(config)
    with open(folder / "metrics.csv", newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == STEPS
    return result, torch.tensor(losses)


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 2e-3), ("bf16-mixed", 3e-2)])
@pytest.mark.parametrize(("objective", "model"), [("clm", "llama"), ("mlm", "bert")])
def test_the_curve_is_that_of_the_reference(tmp_path, calls, capsys, objective, model, precision, tolerance):
    options = [f"objective={objective}", f"model={model}", f"trainer.precision={precision}"]
    result, losses = train_with(tmp_path / "auto", *options)
    assert calls["triton"] > STEPS
    assert calls["torch"] == 0
    assert result["backend"] == "triton"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("device")]
    assert torch.cuda.get_device_name() in line
    assert line.endswith("attention backend triton")

    calls.update(triton=0)
    result, expected = train_with(tmp_path / "torch", *options, "attention_backend=torch")
    assert calls["torch"] > STEPS
    assert calls["triton"] == 0
    assert result["backend"] == "torch"
    assert expected[-1] < expected[0] - 0.5, "a run that learns nothing compares nothing"
    torch.testing.assert_close(losses, expected, atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("compile", ["false", "true"])
def test_the_loss_in_chunks_has_the_same_curve(tmp_path, compile):
    options = ["objective=mlm", "model=bert", "trainer.precision=32-true", f"compile={compile}"]
    _, losses = train_with(tmp_path / "chunks", *options, "loss_chunk=100")
    _, expected = train_with(tmp_path / "whole", *options)
    torch.testing.assert_close(losses, expected, atol=2e-3, rtol=0.0)
