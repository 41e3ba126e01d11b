"""A saved sparse model is sparse again, and plain transformers does not mind the note."""

import json

import pytest
import torch
from torch.testing import assert_close

from longspan.models import sparsify, sparsity_of


def test_state_dict_and_parameters_stay_as_they_were(case):
    model = case.model()
    before = list(model.state_dict())
    sparsify(model, case.pattern("bigbird"))
    assert list(model.state_dict()) == before
    assert set(model.state_dict()) == set(case.model().state_dict())


def test_round_trip(case, ids, tmp_path):
    stock = case.model()
    model = sparsify(case.model(), case.pattern("variable"))
    model.save_pretrained(tmp_path)
    entry = json.loads((tmp_path / "config.json").read_text())["longspan_sparsity"]
    assert entry["name"] == "variable"
    with torch.no_grad():
        sparse_logits, dense_logits = model(ids).logits, stock(ids).logits
        again = (
            type(model).from_pretrained(tmp_path, attn_implementation="longspan", dtype=torch.float64).eval()
        )
        assert_close(again(ids).logits, sparse_logits)
        assert (
            sparsity_of(again.config)
            == sparsity_of(model.config)
            == [case.pattern("variable")] * len(sparsity_of(model.config))
        )

        plain = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
        assert plain.config._attn_implementation != "longspan"
        assert_close(plain(ids).logits, dense_logits, rtol=1e-5, atol=1e-5)
        plain.set_attn_implementation("longspan")
        assert_close(plain(ids).logits, sparse_logits)


@pytest.mark.parametrize("combined", [False, True])
def test_per_layer_patterns_round_trip(kit, ids, tmp_path, combined):
    patterns = [None, kit.make_pattern("bigbird", "unidirectional")]
    if combined:
        patterns[1] = (patterns[1] | kit.make_pattern("fixed", "unidirectional")) - (
            kit.make_pattern("local_sliding_window", "unidirectional")
        )
    model = sparsify(kit.make_model("gpt2"), patterns)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, attn_implementation="longspan", dtype=torch.float64).eval()
    assert sparsity_of(again.config)[1] == patterns[1]
    with torch.no_grad():
        assert_close(again(ids).logits, model(ids).logits)


def test_sparsify_anew_replaces_the_patterns(kit, ids):
    model = sparsify(kit.make_model("gpt2"), kit.make_pattern("bigbird", "unidirectional"))
    fresh = sparsify(kit.make_model("gpt2"), kit.make_pattern("fixed", "unidirectional"))
    sparsify(model, kit.make_pattern("fixed", "unidirectional"))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, fresh(ids).logits)
    assert model.config.longspan_sparsity["name"] == "fixed"


@pytest.mark.parametrize(
    ("entry", "message"),
    [(None, "longspan.sparsify"), ([{"name": "dense", "num_heads": 4}], "1 patterns for 2 layers")],
)
def test_a_configuration_without_a_fitting_pattern_is_refused(entry, message, kit, ids):
    model = kit.make_model("bert")
    if entry is not None:
        model.config.longspan_sparsity = entry
    model.set_attn_implementation("longspan")
    with pytest.raises(ValueError, match=message):
        model(ids)
