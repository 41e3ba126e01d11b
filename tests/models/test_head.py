import pytest
import torch
from torch import nn

from longspan.models import build_model
from longspan.models.head import split_head

PAIRS = [
    ("bert", "mlm"),
    ("bert", "clm"),
    ("roberta", "mlm"),
    ("roberta", "clm"),
    ("modernbert", "mlm"),
    ("modernbert", "clm"),
    ("gpt2", "clm"),
    ("llama", "clm"),
]


@pytest.mark.parametrize(("architecture", "objective"), PAIRS)
def test_backbone_and_head_make_the_models_logits(architecture, objective):
    model = build_model(
        architecture, objective, 20, 8, 16, 2, 2, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ).eval()
    ids = torch.arange(3, 11)[None]
    backbone, head = split_head(model)
    hidden = backbone(input_ids=ids).last_hidden_state
    logits = model(input_ids=ids).logits
    assert torch.equal(head(hidden), logits)
    torch.testing.assert_close(head(hidden[0, [2, 5]]), logits[0, [2, 5]])
    assert {id(p) for part in (backbone, head) for p in part.parameters()} == {
        id(p) for p in model.parameters()
    }


def test_a_head_that_is_not_known():
    with pytest.raises(ValueError, match=r"head of Linear is not known; known are .*bert.*llama"):
        split_head(nn.Linear(2, 2))
    model = build_model("gpt2", "clm", 20, 8, 16, 1, 2)
    with pytest.raises(ValueError, match="head of GPT2Model is not known"):
        split_head(model.transformer)
