"""Generation with a key-value cache."""

import pytest
import torch
from torch.testing import assert_close

from longspan.models import sparsify


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["dense", "bslongformer", "local_sliding_window"])
def test_steps_with_a_cache_equal_one_forward(architecture, name, kit, ids):
    """Rows of these patterns do not depend on the length, so every step must give the rows of the whole."""
    model = sparsify(kit.make_model(architecture), kit.make_pattern(name, "unidirectional"))
    with torch.no_grad():
        whole = model(ids).logits
        parts, cache, start = [], None, 0
        for length in (19, 7, 1, 1, 16, 1):
            out = model(ids[:, start : start + length], past_key_values=cache, use_cache=True)
            parts.append(out.logits)
            cache, start = out.past_key_values, start + length
    assert start == ids.shape[1]
    assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_generate_with_and_without_a_cache(architecture, kit, ids):
    model = sparsify(kit.make_model(architecture), kit.make_pattern("local_sliding_window", "unidirectional"))
    padding = torch.ones_like(ids)
    padding[0, :9] = 0
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "attention_mask": padding}
    cached = model.generate(ids, use_cache=True, **options)
    plain = model.generate(ids, use_cache=False, **options)
    assert cached.shape == (2, ids.shape[1] + 12)
    assert torch.equal(cached, plain)


def test_the_last_query_follows_the_pattern_of_the_whole_length(kit, ids):
    """One layer: what a query attends is the pattern's row at the present length, with a cache as without."""
    pattern = kit.make_pattern("fixed", "unidirectional")
    model = sparsify(kit.make_model("llama", num_layers=1), pattern)
    with torch.no_grad():
        past = model(ids[:, :-1], use_cache=True).past_key_values
        assert_close(model(ids[:, -1:], past_key_values=past).logits[:, 0], model(ids).logits[:, -1])


def test_documents_with_a_cache(kit, ids):
    model = sparsify(kit.make_model("llama"), kit.make_pattern("dense", "unidirectional"))
    document_ids = (torch.arange(ids.shape[1]) >= 20).long().expand_as(ids)
    with torch.no_grad():
        whole = model(ids, document_ids=document_ids).logits
        past = model(ids[:, :30], document_ids=document_ids[:, :30], use_cache=True).past_key_values
        rest = model(ids[:, 30:], document_ids=document_ids, past_key_values=past).logits
    assert_close(rest, whole[:, 30:], rtol=1e-5, atol=1e-5)


def test_a_static_cache_is_refused(kit, ids):
    from transformers import StaticCache

    model = sparsify(kit.make_model("llama"), kit.make_pattern("dense", "unidirectional"))
    cache = StaticCache(config=model.config, max_cache_len=60)
    with pytest.raises(ValueError, match="DynamicCache"):
        model(ids, past_key_values=cache, use_cache=True)


def test_a_cache_that_drops_keys_is_refused(kit, ids):
    from transformers import DynamicCache, MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        sliding_window=11,
    )
    model = sparsify(MistralForCausalLM(config).eval(), kit.make_pattern("dense", "unidirectional"))
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        dropping = model(ids[:, :30], use_cache=True).past_key_values
        with pytest.raises(ValueError, match="has dropped the first"):
            model(ids[:, 30:], past_key_values=dropping, use_cache=True)
        keeping = model(ids[:, :30], past_key_values=DynamicCache(), use_cache=True).past_key_values
        rest = model(ids[:, 30:], past_key_values=keeping, use_cache=True).logits
    assert_close(rest, whole[:, 30:], rtol=1e-4, atol=1e-4)
