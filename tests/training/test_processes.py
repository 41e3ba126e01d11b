"""Two processes: validation sums over both, and resumption with the random state of each."""

import json
import math
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = """
import importlib.util, json, os, shutil
from pathlib import Path
import torch
spec = importlib.util.spec_from_file_location("tiny", {conftest!r})
tiny = importlib.util.module_from_spec(spec); spec.loader.exec_module(tiny)
import lightning.pytorch as pl
from longspan.analysis.flops import Flops
from longspan.training.callbacks.evaluation import Evaluation
from longspan.training.callbacks.throughput import Throughput

class Share(tiny.TinyData):
    # Other sequences, and another number of them, in each process; the global generators differ too.
    def train_dataloader(self):
        torch.manual_seed(100 + self.trainer.global_rank)
        data = tiny.Sequences(50 * self.trainer.global_rank, 20)
        return tiny.StatefulDataLoader(data, batch_size=2, collate_fn=tiny.collate)

    def val_dataloader(self):
        rank = self.trainer.global_rank
        data = tiny.Sequences(1000 + 10 * rank, 2 + 2 * rank)
        return tiny.StatefulDataLoader(data, batch_size=2, collate_fn=tiny.collate)

class Copy(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            trainer.save_checkpoint("third.ckpt", weights_only=False)

class Uneven(Throughput):
    # The scored positions of the processes, and so their FLOPs, may differ.
    def on_validation_epoch_end(self, trainer, pl_module):
        if trainer.global_rank:
            self._total = Flops(0, 0)
        super().on_validation_epoch_end(trainer, pl_module)

def run(name, ckpt_path=None, callbacks=()):
    run = tiny.Run(Path(name), Share(), callbacks=callbacks, max_steps=6, strategy="ddp", devices=2)
    run.fit(ckpt_path)
    return run

whole = run("whole", callbacks=[Copy(), Evaluation("whole", position_buckets=8), Uneven()])
resumed = run("resumed", "third.ckpt")
if whole.trainer.is_global_zero:
    facts = {{
        "same": all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items()),
        "loss": [whole.val_loss, resumed.val_loss],
        "bits": float(whole.trainer.callback_metrics["val/bits_per_byte"]),
        "flops": float(whole.trainer.callback_metrics["cost/flops"]),
        "tokens": [whole.module.tokens_seen, resumed.module.tokens_seen],
    }}
    whole.model.eval()
    nats = 0.0
    for first, size in ((1000, 2), (1010, 4)):
        data = tiny.Sequences(first, size)
        batch = tiny.collate([data[index] for index in range(size)])
        logits = whole.model(batch["input_ids"]).logits
        nats += float(whole.module.objective.loss(logits, batch["labels"]).detach()) * size * tiny.LENGTH
    facts["expected"] = nats / (6 * tiny.LENGTH)
    facts["positions"] = json.loads(Path("whole/evaluation.json").read_text())["by_position"]
    batches = [tiny.collate([tiny.Sequences(f, n)[i] for i in range(n)]) for f, n in ((1000, 2), (1010, 4))]
    logits = [whole.model(batch["input_ids"]).logits for batch in batches]
    each = [
        torch.nn.functional.cross_entropy(one.transpose(1, 2), batch["labels"], reduction="none")
        for one, batch in zip(logits, batches)
    ]
    facts["expected_positions"] = torch.cat(each).mean(0).tolist()
    right = [one.argmax(-1) == batch["labels"] for one, batch in zip(logits, batches)]
    facts["right"] = torch.cat(right).float().mean(0).tolist()
    Path("facts.json").write_text(json.dumps(facts))
"""


@pytest.mark.slow
def test_two_processes(tmp_path, warm_python):
    script = tmp_path / "two.py"
    script.write_text(SCRIPT.format(conftest=str(Path(__file__).with_name("conftest.py"))))
    done = subprocess.run(
        [warm_python, str(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["loss"][0] == pytest.approx(facts["expected"], rel=1e-5)
    assert facts["bits"] == pytest.approx(facts["expected"] / math.log(2), rel=1e-5)
    assert [one["scored"] for one in facts["positions"]] == [6] * 8
    losses = [one["loss"] for one in facts["positions"]]
    assert losses == pytest.approx(facts["expected_positions"], rel=1e-5)
    assert [one["accuracy"] for one in facts["positions"]] == pytest.approx(facts["right"], rel=1e-5)
    assert facts["same"]
    assert facts["loss"][0] == facts["loss"][1]
    assert facts["tokens"] == [6 * 2 * 16, 6 * 2 * 16]
    # Of both processes, twice those of the first; two layers of 8 x 8 and 8 x 11, forward and backward.
    assert facts["flops"] == 6 * 2 * 6 * (64 + 88) * 16
    assert "recommended to use" not in done.stderr
