"""The two parts of a language model: what makes hidden states, and what makes logits of them."""

from __future__ import annotations

from typing import Any

from torch import nn

# By the configuration's model_type: the modules that follow the last hidden state, in their order.
_HEADS = {
    "bert": ("cls",),
    "roberta": ("lm_head",),
    "modernbert": ("head", "decoder"),
    "modernbert-decoder": ("lm_head", "decoder"),
    "gpt2": ("lm_head",),
    "llama": ("lm_head",),
}


def split_head(model: Any) -> tuple[nn.Module, nn.Module]:
    """Return the backbone and the head of a Hugging Face language model; both share its parameters.

    ``head(backbone(...).last_hidden_state)`` are the model's logits, and the head may be applied to some
    positions alone: hidden states ``[..., width]`` in, logits ``[..., vocabulary]`` out.

    Raises:
        ValueError: a model whose head is not known.

    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in _HEADS or not hasattr(model, _HEADS[kind][0]):
        raise ValueError(
            f"the head of {type(model).__name__} is not known; known are those of the language models "
            f"{', '.join(_HEADS)}"
        )
    return model.base_model, nn.Sequential(*(getattr(model, name) for name in _HEADS[kind]))
