"""The two parts of a language model: the backbone makes hidden states, the head makes logits."""

from __future__ import annotations

from typing import Any

from torch import nn

# By model_type of the configuration: the modules that follow the last hidden state, in order.
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

    ``head(backbone(...).last_hidden_state)`` are the logits of the model. The head maps hidden states
    ``[..., width]`` to logits ``[..., vocabulary]``, also of a subset of the positions.

    Raises:
        ValueError: the head of the model is not known.

    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in _HEADS or not hasattr(model, _HEADS[kind][0]):
        raise ValueError(
            f"the head of {type(model).__name__} is not known; known are those of the language models "
            f"{', '.join(_HEADS)}"
        )
    return model.base_model, nn.Sequential(*(getattr(model, name) for name in _HEADS[kind]))
