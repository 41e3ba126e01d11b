"""Importing longspan registers one attention implementation and changes nothing else in transformers."""

import subprocess
import sys

import pytest

_SNAPSHOT = """
import sys, torch

def registries():
    from transformers.modeling_utils import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface
    return dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)

def functions():
    import transformers.masking_utils, transformers.modeling_utils
    return {
        (module.__name__, name): value
        for module in (transformers.masking_utils, transformers.modeling_utils)
        for name, value in vars(module).items()
        if callable(value)
    }

def logits():
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=4)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        return model.config._attn_implementation, model(torch.arange(20)[None]).logits

def waiting():
    return [finder for finder in sys.meta_path if type(finder).__module__.startswith("longspan")]

def compare(before, after):
    for old, new in zip(before, after, strict=True):
        assert set(new) - set(old) == {"longspan"}, set(new) ^ set(old)
        assert all(new[key] is old[key] for key in old)
"""

_TRANSFORMERS_FIRST = """
before, known, (name, expected) = registries(), functions(), logits()
finders = list(sys.meta_path)
import longspan
compare(before, registries())
assert functions() == known
again, values = logits()
assert again == name and torch.equal(values, expected)
assert sys.meta_path == finders
"""

_LONGSPAN_FIRST = """
import longspan
assert "transformers.modeling_utils" not in sys.modules
assert "triton" not in sys.modules
mine = registries()
assert all("longspan" in registry for registry in mine)
assert not waiting()
from longspan.models import registration
registration.register()
assert registries() == mine and not waiting()
name, values = logits()
assert name == "sdpa"
"""


@pytest.mark.parametrize("script", [_TRANSFORMERS_FIRST, _LONGSPAN_FIRST], ids=["transformers", "longspan"])
def test_only_the_registrations_change(script):
    """In a process of its own, with either imported first."""
    run = subprocess.run([sys.executable, "-c", _SNAPSHOT + script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
