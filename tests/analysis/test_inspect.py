"""The command: what it takes and refuses, and that the numbers it prints are those of the pattern."""

import re

import numpy as np
import pytest

from longspan.analysis.inspect import inspect, main, patterns_of, split_arguments
from longspan.analysis.inspect_report import _distances, _percent
from longspan.config.compose import compose
from longspan.config.folders import config_dir
from longspan.errors import ConfigError
from longspan.sparsity import DenseSparsityConfig, LocalSlidingWindowSparsityConfig

SHIPPED = sorted(path.stem for path in (config_dir() / "sparsity").glob("*.yaml"))


def row(text: str, start: str) -> list[str]:
    """The cells of the first row of a table, after the line ``start``, for each number of layers."""
    after = text[text.index(start) :].splitlines()
    rows = [re.split(r"\s*│\s*", line.strip("│ ")) for line in after if line.startswith("│")]
    return rows[0]


def test_what_is_printed_of_a_window_is_what_it_keeps(capsys, oracle):
    main(["sparsity=local_sliding_window", "seq_len=1000", "layers=3", "sparsity.block=32"])
    out = capsys.readouterr().out
    layout = LocalSlidingWindowSparsityConfig(4, 32, attention="unidirectional").layout(1000)
    pairs = oracle.attended(layout, 1000, True)[0]
    reached = oracle.token_reach([layout] * 3, 1000, True)
    rows, columns = np.nonzero(pairs)
    assert "local_sliding_window: causal, 1,000 tokens, 3 layers" in out
    assert f"{layout.density:.2%}: {layout.nnz:,} of 4,096 blocks of 32 tokens" in out
    assert f"{pairs.sum() / 500500:.2%} of the pairs of tokens that may be attended" in out
    assert "1 at least, median 2, 2 at most; 0 of 128 rows attend nothing" in out
    assert f"{(rows - columns).mean():,.1f} tokens in the mean (dense: 333.0)" in out
    gflop = 4 * 48 * 4 * 3 / 1e9  # a pair: heads of 48, four of them, three layers
    assert f"{pairs.sum() / 500500:.2%} of dense: {gflop * 1e3 * pairs.sum():.2f} MFLOP" in out
    assert f"of {gflop * 500500:.2f} GFLOP a sequence, forward, heads of 48" in out
    assert "exact to the token" in out
    first = row(out, "by distance in tokens")
    distance = np.subtract.outer(np.arange(1000), np.arange(1000))
    expected = [
        100 * reached[1][(distance >= low) & (distance < high)].mean()
        for low, high in ((1, 32), (32, 64), (64, 128))
    ]
    assert first[:2] == ["1", f"{100 * reached[1].sum() / 500500:.2f}"]
    assert first[2:5] == [_percent(share / 100) for share in expected]
    missing = 500500 - reached[3].sum()
    share = f"{missing:,} of 500,500 ({missing / 500500:.2%})"
    assert f"after 3 layers: {share}, such as from token 0 to 999" in out
    assert f"warning: local_sliding_window: {missing / 500500:.1%} of the pairs" in out
    assert layout.draw().splitlines()[3] in out


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_every_shipped_pattern_under_both_objectives(name, objective, tmp_path, capsys):
    picture = tmp_path / f"{name}.png"
    arguments = [f"sparsity={name}", f"objective={objective}", "model=bert", "seq_len=640"]
    main([*arguments, f"out={picture}"])
    out = capsys.readouterr().out
    direction = "causal" if objective == "clm" else "both directions"
    assert out.startswith(f"{name}: {direction}, 640 tokens, 6 layers")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


def test_gradients_agree_for_a_causal_and_a_masked_model(capsys):
    small = ["seq_len=128", "sparsity.block=16", "model.num_layers=2", "model.hidden_size=32", "gradients=4"]
    main([*small, "sparsity=bigbird"])
    out = capsys.readouterr().out
    assert "of 512 pairs 512 are as reach says" in out
    assert "causal: no output depends on a later input" in out
    assert "not causal" not in out
    main([*small, "sparsity=local_sliding_window", "model=bert", "objective=mlm"])
    out = capsys.readouterr().out
    assert "of 512 pairs 512 are as reach says" in out
    assert "causal" not in out[out.index("Gradients") :]


def test_gradients_tell_a_window_of_the_models_own(capsys):
    # ModernBERT's local layers see 128 tokens whatever the layouts say, here 8.
    main(
        [
            "model=modernbert",
            "objective=mlm",
            "sparsity=dense",
            "seq_len=64",
            "model.num_layers=2",
            "model.hidden_size=32",
            "+model.config_overrides.local_attention=8",
            "+model.config_overrides.layer_types=[sliding_attention,sliding_attention]",
            "gradients=3",
        ]
    )
    out = capsys.readouterr().out
    assert re.search(r"\d+ with a path but no gradient, such as from token \d+ to 0", out)


def test_a_pattern_for_each_layer():
    shared = {"num_heads": 4, "block": 64, "attention": "unidirectional"}
    window, dense = LocalSlidingWindowSparsityConfig(**shared), DenseSparsityConfig(**shared)
    config = compose(['sparsity.layers="local dense*2"'])
    assert patterns_of(config) == [window, dense, dense]
    inspection = inspect(config)
    assert inspection.reach.layers == 3
    assert inspection.reach.share[2] == 1
    assert inspection.title == "local_sliding_window, dense: causal, 1,024 tokens, 3 layers"
    with pytest.raises(ConfigError, match="gives 3 layers their pattern and the model has 2"):
        patterns_of(config, 2)


def test_what_is_refused(tmp_path, capsys):
    refused = {
        "layers=0": "layers must be a number of at least 1, got '0'",
        "seq_len=many": "seq_len must be a number of at least 1, got 'many'",
        "out=picture.bmp": "out must end in one of .png, .pdf, .svg, got 'picture.bmp'",
        f"out={tmp_path}/none/a.png": "out must lie in a folder that exists",
        "sparsity=bigbrd": "did you mean bigbird?",
        "sparsity.blok=32": "did you mean block?",
        "-m": "-m: only overrides are taken here",
        "sparsity.num_random_blocks=99": "num_random_blocks",
    }
    for argument, message in refused.items():
        with pytest.raises(SystemExit) as ended:
            main(["model=llama", argument])
        assert ended.value.code == 1
        assert message in capsys.readouterr().err, argument
    with pytest.raises(ConfigError, match="layers is given twice"):
        split_arguments(["layers=1", "layers=2"])
    with pytest.raises(ConfigError, match="layers must be given"):
        patterns_of(_without_layers())
    main(["--help"])
    assert "seq_len=N" in capsys.readouterr().out


def test_a_schedule_is_refused_and_windows_of_the_model_are_told(capsys):
    with pytest.raises(ConfigError, match="schedule must be none, got window: "):
        inspect(compose(["schedule=window"]))
    main(["model=modernbert", "objective=mlm", "seq_len=256", "layers=2"])
    out = capsys.readouterr().out
    assert "the windows of the model's own local layers are not counted" in " ".join(out.split())
    assert "exact to the token" not in out


def test_a_picture_that_cannot_be_written_is_a_message(tmp_path, capsys):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["seq_len=256", "layers=1", f"out={tmp_path / 'a.png'}"])
    assert ended.value.code == 1
    assert "longspan: [Errno 21] Is a directory" in capsys.readouterr().err


def _without_layers():
    config = compose([])
    config.model = {"num_heads": 4}
    return config


@pytest.mark.parametrize("seq_len", [1, 2, 17, 64, 65, 4096, 1 << 20])
@pytest.mark.parametrize("block", [1, 16, 64])
def test_bins_of_distances_fill_the_length_and_fit_a_table(seq_len, block):
    edges = _distances(seq_len, block)
    assert edges[-1] == seq_len
    assert edges == sorted(set(edges))
    assert 2 <= len(edges) <= 9


def test_a_share_is_never_rounded_to_all_or_nothing():
    assert [_percent(share) for share in (0, 1, 1e-9, 1 - 1e-9, 0.12344, float("nan"))] == [
        "0",
        "100",
        "0.01",
        "99.99",
        "12.34",
        "–",
    ]
