"""A run is warned of what is so, with its numbers, and of nothing else."""

import warnings

import numpy as np
import pytest
import torch
from transformers import AlbertConfig

from longspan.analysis import break_even
from longspan.analysis.start import expand_albert_patterns, start_warnings, warn_at_start
from longspan.config.compose import compose
from longspan.config.folders import config_dir
from longspan.config.instantiate import instantiate
from longspan.models import build_model, sparsify
from longspan.sparsity import (
    BigBirdSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    SparsityConfig,
    VariableSparsityConfig,
)
from longspan.training.run import train
from longspan_kernels.layout import BlockLayout

SHIPPED = sorted(path.stem for path in (config_dir() / "sparsity").glob("*.yaml"))


class Made(SparsityConfig):
    """A pattern whose layout is given."""

    name = "made"
    attention = "unidirectional"

    def __init__(self, kept: torch.Tensor, block: int = 16) -> None:
        super().__init__(kept.shape[0], block)
        object.__setattr__(self, "kept", kept)

    def intervals(self, rows: np.ndarray, num_blocks: int, head: int):
        raise NotImplementedError

    def layout(self, seq_len: int, q_len: int | None = None) -> BlockLayout:
        return BlockLayout.from_dense(self.kept, self.block, causal=True)


def test_a_window_that_is_too_narrow_is_told_with_its_numbers(oracle):
    pattern = LocalSlidingWindowSparsityConfig(num_heads=2, block=16, attention="unidirectional")
    (sentence,) = start_warnings([pattern] * 2, 200, causal=True)
    pairs = oracle.token_reach([pattern.layout(200)] * 2, 200, True)[-1]
    missing = 200 * 201 // 2 - pairs.sum()
    assert f"({missing:,} of 20,100 at 200 tokens)" in sentence
    assert (
        f"local_sliding_window: {missing / 20100:.1%} of the pairs of a token and an earlier one" in sentence
    )
    assert "in 2 layers" in sentence
    assert "nothing of token 0 can reach token 199" in sentence
    assert "all pairs up to 32 tokens apart have one" in sentence
    rows, columns = np.nonzero(np.tril(~pairs))
    assert (rows - columns).min() == 33


def test_windows_that_do_not_meet_part_neighbours():
    pattern = VariableSparsityConfig(num_heads=1, block=16, num_random_blocks=0, attention="unidirectional")
    (sentence,) = start_warnings([pattern] * 3, 512, causal=True)
    assert "not even all neighbours have one" in sentence


def test_a_pattern_that_reaches_everything_is_passed_in_silence():
    fixed = FixedSparsityConfig(num_heads=1, block=16, attention="unidirectional")
    assert start_warnings([fixed] * 2, 512, causal=True) == []
    window = LocalSlidingWindowSparsityConfig(num_heads=1, block=16, attention="unidirectional")
    assert start_warnings([window, None, window], 512, causal=True) == []
    assert start_warnings([None, None], 512, causal=True) == []
    # Not defined for one block: attended densely.
    assert start_warnings([BigBirdSparsityConfig(num_heads=1, block=16)], 16) == []


def test_rows_that_attend_nothing():
    kept = torch.tril(torch.ones(2, 4, 4))
    kept[1, 2] = 0
    kept[1, 2, 3] = 1  # ahead of its row: never attended
    (sentence,) = start_warnings([Made(kept)], 64, causal=True)
    assert "1 of 8 rows of blocks attend nothing, the first of them in head 1 from token 32 on" in sentence


def test_dense_is_said_to_be_faster_only_where_it_was_measured():
    window = LocalSlidingWindowSparsityConfig(
        num_heads=1, block=64, num_sliding_window_blocks=31, attention="unidirectional"
    )
    hopper = {"causal": True, "architecture": (9, 0)}
    (sentence,) = start_warnings([window] * 2, 1024, head_dim=64, **hopper)
    assert "local_sliding_window keeps 100.0% of the pairs of tokens at 1,024 tokens" in sentence
    row = break_even.look_up((9, 0), 64, 64)
    assert row is not None
    assert f"above {row.density:.0%} torch's dense attention is faster" in sentence
    lengths = ", ".join(f"{length:,}" for length in row.lengths)
    assert (
        f"blocks of 64, heads of 64; measured at {lengths} tokens, not below {min(row.lengths):,})"
        in sentence
    )
    # Half of the pairs are no reason, nor are other heads, other devices, and the pattern that is dense.
    half = LocalSlidingWindowSparsityConfig(
        num_heads=1, block=64, num_sliding_window_blocks=9, attention="unidirectional"
    )
    for pattern, head_dim, architecture in (
        (half, 64, (9, 0)),
        (window, 48, (9, 0)),
        (window, 64, (8, 0)),
        (window, 64, None),
        (DenseSparsityConfig(num_heads=1, block=64, attention="unidirectional"), 64, (9, 0)),
    ):
        found = start_warnings([pattern] * 4, 1024, causal=True, head_dim=head_dim, architecture=architecture)
        assert not [one for one in found if "faster" in one]
    small = LocalSlidingWindowSparsityConfig(
        num_heads=1, block=16, num_sliding_window_blocks=127, attention="unidirectional"
    )
    (sentence,) = start_warnings([small], 1024, head_dim=128, **hopper)
    assert "extrapolated from patterns that keep up to 25%" in sentence


def test_layers_are_named_where_patterns_differ():
    wide = LocalSlidingWindowSparsityConfig(
        num_heads=1, block=64, num_sliding_window_blocks=31, attention="unidirectional"
    )
    other = FixedSparsityConfig(num_heads=1, block=64, attention="unidirectional")
    (sentence,) = start_warnings([wide, other, wide], 1024, causal=True, head_dim=64, architecture=(9, 0))
    assert sentence.startswith("local_sliding_window (layers 0, 2) keeps")


@pytest.mark.parametrize(("model", "objective"), [("llama", "clm"), ("bert", "mlm")])
def test_shipped_defaults_warn_only_of_what_is_so(oracle, model, objective):
    """The numbers of each sentence are those of reach token by token."""
    warned = set()
    for name in SHIPPED:
        config = compose([f"sparsity={name}", f"model={model}", f"objective={objective}"])
        pattern, layers, seq_len = instantiate(config.sparsity), config.model.num_layers, config.data.seq_len
        causal = True if objective == "clm" else None
        found = start_warnings([pattern] * layers, seq_len, causal=causal, architecture=(9, 0), head_dim=64)
        pairs = oracle.token_reach([pattern.layout(seq_len)] * layers, seq_len, causal)[-1]
        possible = np.tril(np.ones_like(pairs)) if causal else np.ones_like(pairs)
        missing = int((possible & ~pairs).sum())
        rows = [one for one in found if "attend nothing" in one]
        kept = pattern.layout(seq_len).to_dense().bool()
        kept = kept.tril() if causal or pattern.attention == "unidirectional" else kept
        empty = int((~kept.any(-1)).sum())
        assert len(rows) == bool(empty), (name, found)
        assert all(f"{empty:,} of " in one for one in rows)
        tokens = kept.repeat_interleave(64, 1).repeat_interleave(64, 2).numpy() & possible
        limit = break_even.look_up((9, 0), 64, 64)
        assert limit is not None
        dense = name != "dense" and tokens.mean(0).sum() / possible.sum() > limit.density
        faster = [one for one in found if "dense attention is faster" in one]
        assert len(faster) == dense, (name, found)
        others = [one for one in found if one not in (*rows, *faster)]
        assert len(others) == bool(missing), (name, found)
        if missing:
            assert f"({missing:,} of {possible.sum():,} at" in others[0]
            warned.add(name)
    assert "local_sliding_window" in warned
    assert not {"dense", "fixed"} & warned


def sparse_model(objective: str, architecture: str, pattern, layers: int = 2):
    model = build_model(
        architecture,
        objective,
        vocab_size=11,
        max_positions=256,
        hidden_size=8,
        num_layers=layers,
        num_heads=2,
        intermediate_size=8,
    )
    return sparsify(model, pattern)


def test_a_model_is_asked_for_its_layers_and_its_direction():
    window = LocalSlidingWindowSparsityConfig(num_heads=2, block=16, attention="bidirectional")
    causal, masked = sparse_model("clm", "gpt2", window), sparse_model("mlm", "bert", window)
    with pytest.warns(UserWarning, match="a token and an earlier one have no path between them in 2 layers"):
        warn_at_start(causal, 256, torch.device("cpu"), "32-true")
    with pytest.warns(UserWarning, match="pairs of tokens have no path between them in 2 layers"):
        warn_at_start(masked, 256, torch.device("cpu"), "32-true")
    mixed = sparse_model("mlm", "bert", [window, None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_at_start(mixed, 256, torch.device("cpu"), "32-true")


def test_a_run_warns_once_at_its_start(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"{number} times nothing is nothing.\n" * 400)
    text = [
        "data=text_files",
        f"data.corpus.files=['{tmp_path}/*.txt']",
        "data.corpus.validation_fraction=0.5",
    ]
    quick = ["experiment=smoke", "trainer.max_steps=1", "trainer.val_check_interval=1", "logger=none"]
    for pattern, expected in (("local_sliding_window", 1), ("fixed", 0)):
        folder = f"output_dir={tmp_path / pattern}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(compose([*quick, *text, folder, f"sparsity={pattern}"]))
        said = [str(one.message) for one in caught if "no path between them" in str(one.message)]
        assert len(said) == expected
        assert all(one.startswith("local_sliding_window: ") and "at 256 tokens" in one for one in said)


def test_layouts_too_large_for_a_look_before_a_run_are_left_alone(monkeypatch):
    window = LocalSlidingWindowSparsityConfig(num_heads=1, block=16, attention="unidirectional")
    assert start_warnings([window], 256, causal=True)
    monkeypatch.setattr("longspan.analysis.start._MOST_BYTES", window.layout(256).nbytes - 1)
    assert start_warnings([window], 256, causal=True) == []


def test_the_density_is_judged_in_sixteen_bits_on_a_gpu_alone(monkeypatch):
    seen = []

    def note(patterns, seq_len, **options):
        seen.append(options["architecture"])
        return []

    monkeypatch.setattr("longspan.analysis.start.start_warnings", note)
    monkeypatch.setattr("longspan.analysis.start.architecture_of", lambda device: (9, 0))
    model = sparse_model("mlm", "bert", LocalSlidingWindowSparsityConfig(num_heads=2, block=16))
    for device, precision in (("cuda", "bf16-mixed"), ("cuda", "32-true"), ("cpu", "bf16-mixed")):
        warn_at_start(model, 64, torch.device(device), precision)
    assert seen == [(9, 0), None, None]


def test_albert_runs_its_groups_one_after_the_other():
    config = AlbertConfig(num_hidden_layers=5, num_hidden_groups=2, inner_group_num=1)
    assert expand_albert_patterns(["a", "b"], config) == ["a", "a", "a", "b", "b"]
    config = AlbertConfig(num_hidden_layers=2, num_hidden_groups=2, inner_group_num=2)
    assert expand_albert_patterns(["a", "b", "c", "d"], config) == ["a", "b", "c", "d"]
