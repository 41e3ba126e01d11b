"""The experiment's own parts, and a dry run of it on the CPU."""

import importlib
import json
from pathlib import Path

import pytest
import torch

import longspan

FOLDER = Path(__file__).parents[2] / "experiments" / "training_speed"


@pytest.fixture
def part(monkeypatch):
    """part(name) -> a module of the experiment's folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_a_dry_run_appends_lines_and_goes_on(part, tmp_path, capsys):
    speed = part("speed")
    out = tmp_path / "speed.jsonl"
    options = ["--tiny", "--out", str(out), "--cells"]
    speed.main([*options, "bert/*/none", "bert/*/longspan:bigbird"])
    speed.main([*options, "bert/*/none", "gpt2/*/dense", "bert/*/flex:bigbird"])
    lines = {line["key"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert len(out.read_text().splitlines()) == len(lines) == 4
    ours = lines["bert/eager/256/longspan:bigbird"]
    assert (ours["variant"], ours["device"], ours["longspan"]) == ("torch", "cpu", longspan.__version__)
    assert ours["tokens_per_second"] == pytest.approx(256e3 / ours["ms"])
    # FlexAttention has no backward on CPUs: what fails is recorded, in words, and is no reason to stop.
    assert all("backward on CPU" in text for text in lines["bert/eager/256/flex:bigbird"]["error"].values())
    assert "ms" in lines["gpt2/eager/256/dense"]
    capsys.readouterr()
    speed.main([*options, "bert/*/none", "bert/*/flex:bigbird", "--retry", "--list"])
    assert capsys.readouterr().out.split() == ["bert/eager/256/flex:bigbird"]


def test_the_tables_go_between_the_marks(part, tmp_path):
    tables = part("step_tables")
    about = {"date": "2000-01-01", "device": "a GPU", "torch": "2", "longspan": "1"}

    def row(length, attention, **found):
        key = f"bert/eager/{length}/{attention}"
        cell = {"key": key, "model": "bert", "mode": "eager", "length": length, "attention": attention}
        return {**cell, **about, **found}

    def times(ms):
        return {"ms": ms, "tokens_per_second": 1000.0, "peak_gib": 2.0}

    rows = [
        row(4096, "dense", error={"flash": "OutOfMemoryError: too\nmuch"}),
        row(4096, "dense", **times(90.0)),
        row(16384, "dense", error={"flash": "OutOfMemoryError: too\nmuch"}),
        row(4096, "longspan:bigbird", **times(30.0)),
        row(16384, "longspan:bigbird", **times(40.0)),
    ]
    (tmp_path / "lines").write_text("".join(json.dumps(one) + "\n" for one in rows))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    text = tables.write_tables(tmp_path / "lines", readme)
    assert readme.read_text() == f"before\n{tables.BEGIN}\n{text}\n{tables.END}\nafter\n"
    assert "| dense | 90.0 ms, 1,000/s, 2.0 GiB | failed (1) |" in text
    assert "| longspan bigbird | 30.0 ms (3.0x), 1,000/s, 2.0 GiB | 40.0 ms, 1,000/s, 2.0 GiB |" in text
    assert "1. flash: OutOfMemoryError: too much" in text


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pattern", ["bigbird", "bslongformer", "fixed", "variable", "local_sliding_window"])
def test_flex_attention_has_the_pattern_in_both_block_sizes(part, pattern, causal):
    attentions = part("step_attentions")
    device, length = torch.device("cpu"), 640
    layout = attentions.make_pattern(pattern, 2, causal).layout(length)
    token = torch.arange(length)
    blocks = token // layout.block
    wanted = layout.to_dense().bool()[:1, blocks[:, None], blocks]
    if causal:
        wanted = wanted & (token[:, None] >= token)
    for mask in (attentions.block_mask(layout, device), attentions.coarse_mask(layout, device)):
        size = mask.BLOCK_SIZE[0]
        assert torch.equal(seen_by(mask, token, size)[0], wanted)
        # Only what needs it is looked into token by token.
        assert size == 128 or causal or not mask.kv_num_blocks.any()


def seen_by(mask, token, size):
    """bool [batch, heads, tokens, tokens] that a BlockMask stands for: whole blocks, and others in part."""

    def spread(counts, indices):
        columns = indices.shape[-1]
        kept = torch.arange(columns) < counts[..., None]
        grid = torch.zeros(indices.shape, dtype=torch.bool).scatter(-1, indices.long(), kept)
        return grid[:, :, token[:, None] // size, token // size]

    inside = mask.mask_mod(torch.tensor(0), torch.tensor(0), token[:, None], token)
    partial = spread(mask.kv_num_blocks, mask.kv_indices)
    return spread(mask.full_kv_num_blocks, mask.full_kv_indices) | (partial & inside)
