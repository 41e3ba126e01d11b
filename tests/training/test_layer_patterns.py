"""`sparsity.layers`: from the command line into the model, and out of it again."""

import json
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from longspan.config.instantiate import instantiate
from longspan.errors import ConfigError
from longspan.models.layers import attention_of, self_attention_layers, sparsity_of
from longspan.sparsity import BigBirdSparsityConfig, DenseSparsityConfig, LocalSlidingWindowSparsityConfig
from longspan.training.build import build
from longspan.training.export import export
from longspan.training.reports.facts import pattern_facts
from longspan.training.run import train

LINE = 'sparsity.layers="local dense*2 bigbird"'


PATTERNS = [
    LocalSlidingWindowSparsityConfig(2, 16, 3, "unidirectional"),
    DenseSparsityConfig(2, 16, attention="unidirectional"),
    DenseSparsityConfig(2, 16, attention="unidirectional"),
    BigBirdSparsityConfig(2, 16, attention="unidirectional"),
]


def test_each_layer_has_the_pattern_of_the_line(composed):
    run = build(composed(LINE))
    model = run.module.model
    assert run.patterns == PATTERNS
    assert [attention_of(layer).sparsity_config for layer in self_attention_layers(model)] == PATTERNS
    assert sparsity_of(model.config) == PATTERNS


def test_without_a_line_there_is_one_pattern(composed):
    assert build(composed()).patterns == PATTERNS[3]


def test_the_key_is_known_to_every_option_and_no_argument_of_any(composed):
    for option in ("fixed", "dense", "heads"):
        config = composed(f"sparsity={option}")
        assert config.sparsity.layers is None
        assert instantiate(config.sparsity).name == option
        patterns = build(composed(f"sparsity={option}", f'sparsity.layers="{option} local"')).patterns
        assert isinstance(patterns, list)
        assert [one.name for one in patterns if one] == [option, "local_sliding_window"] * 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (['sparsity.layers="local*3"'], "sparsity.layers='local\\*3' gives 3 layers .* the model has 4"),
        (['sparsity.layers="locla"'], "sparsity.layers='locla': no pattern is called 'locla'"),
        (["sparsity.layer=dense"], "unknown key 'sparsity.layer'.*did you mean layers"),
        (["sparsity=union", "sparsity.patterns.sinks.layers=dense"], "sinks.layers is for the whole group"),
    ],
)
def test_refusals(composed, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build(composed(*overrides))


def test_a_run_trains_a_mixture_and_its_export_keeps_it(composed, tmp_path, capsys):
    result = train(composed(LINE))
    assert [one["name"] for one in result["patterns"]] == ["local_sliding_window", "dense", "bigbird"]
    assert [one["layer_indices"] for one in result["patterns"]] == [(0,), (1, 2), (3,)]
    assert result["name"] == "clm llama local_sliding_window+dense+bigbird"
    printed = capsys.readouterr().out
    assert "local_sliding_window dense*2 bigbird\n" in printed
    assert "2 heads, 2 layers (1–2)" in printed
    assert "bigbird, 1 layer (3)" in printed
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert stored["config"]["sparsity"]["layers"] == "local dense*2 bigbird"

    export(tmp_path / "run", tmp_path / "exported")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", attn_implementation="longspan")
    assert sparsity_of(loaded.config) == PATTERNS
    torch.manual_seed(0)
    ids = torch.randint(256, (1, 128))
    module = build(composed(LINE)).module
    weights = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=False)["state_dict"]
    module.load_state_dict(weights)
    with torch.no_grad():
        expected = module.model.eval()(input_ids=ids).logits
        torch.testing.assert_close(loaded.eval()(input_ids=ids).logits, expected)
        # The layers' patterns are told apart: another order gives other logits.
        module.load_state_dict(weights)
        other = build(composed('sparsity.layers="bigbird dense*2 local"')).module
        other.load_state_dict(weights)
        assert not torch.allclose(other.model.eval()(input_ids=ids).logits, expected)


def test_warnings_name_the_patterns_of_all_layers(composed):
    line = 'sparsity.layers="bigbird local(attention=bidirectional) dense*2"'
    with pytest.warns(UserWarning, match="pattern local_sliding_window is bidirectional and the objective c"):
        build(composed(line))
    masked = composed(line, "objective=mlm", "model=bert", "model.num_layers=4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(masked)
    masked.sparsity.layers = "bigbird dense(attention=unidirectional)"
    with pytest.warns(UserWarning, match="the pattern dense is unidirectional"):
        build(masked)


def test_an_undefined_length_of_one_layer_is_refused(composed):
    with pytest.raises(ConfigError, match="num_sliding_window_blocks must be at most the number of blocks"):
        build(composed("sparsity=dense", 'sparsity.layers="dense bigbird(num_sliding_window_blocks=9)"'))


def test_patterns_of_heads_are_drawn_apart(capsys):
    from longspan.sparsity import HeadMixtureSparsityConfig

    (facts,) = pattern_facts(HeadMixtureSparsityConfig(4, 16, patterns="local*3 dense"), 128)
    lines = facts.drawing.splitlines()
    assert lines[0] == "heads 0–2: local_sliding_window"
    assert lines[lines.index("head 3: dense") + 1] == "████████"
    assert facts.layer_indices is None
