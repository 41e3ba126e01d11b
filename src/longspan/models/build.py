"""Hugging Face language models with random weights, from a few sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longspan.data.objective import Objective, is_causal
from longspan.models.architectures import ARCHITECTURES, Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Arguments that a run hands to what makes its model: no keys of a configuration.
SUPPLIED_BY_RUN = ("objective", "vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")


def build_model(
    architecture: str,
    objective: str | Objective,
    vocab_size: int,
    max_positions: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int | None = None,
    intermediate_size: int | None = None,
    dropout: float = 0.0,
    pad_token_id: int | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    vocab_multiple: int = 1,
    gradient_checkpointing: bool = False,
    config_overrides: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Make a language model of a known architecture with random weights and dense attention.

    Args:
        architecture: ``"bert"``, ``"roberta"``, ``"modernbert"``, ``"gpt2"`` or ``"llama"``.
        objective: what the model is trained for, or the name of a shipped objective, ``"mlm"`` or ``"clm"``.
            Under a causal one BERT and RoBERTa become decoders and ModernBERT becomes ModernBertDecoder;
            GPT-2 and Llama are causal only.
        vocab_size: number of token ids, special tokens included.
        max_positions: length of the longest sequence in tokens. RoBERTa numbers positions from
            ``pad_token_id + 1`` on; the rows for that are added here.
        hidden_size: width of the residual stream, a multiple of ``num_heads``.
        num_layers: number of transformer layers.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads (Llama only), ``num_heads`` if None.
        intermediate_size: width of the feed-forward layer. If None: 4 times the hidden size for BERT, RoBERTa
            and GPT-2, 1.5 times for the gated one of ModernBERT, 8/3 times for Llama's, rounded up to a
            multiple of 64.
        dropout: probability in ``[0, 1)`` of every dropout that the architecture has.
        pad_token_id: padding token; required for RoBERTa and ModernBertDecoder.
        bos_token_id: token at the beginning of a sequence, or None; required for ModernBertDecoder.
        eos_token_id: token at the end of a sequence, or None; required for ModernBertDecoder.
        vocab_multiple: the number of rows of the embedding is a multiple of this; extra rows are no token.
        gradient_checkpointing: recompute each layer in the backward pass instead of storing its activations.
        config_overrides: further fields of the Hugging Face configuration, applied last.

    Returns:
        The model, in training mode. Its forward makes a key-value cache only with ``use_cache=True``;
        ``generate`` makes one by itself.

    Raises:
        ValueError: the architecture or the objective is unknown, they do not fit together, a size is out of
            range, or the architecture does not have a configuration field.

    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}; got {architecture!r}")
    causal = is_causal(objective)
    sizes = {
        "vocab_size": vocab_size,
        "max_positions": max_positions,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "intermediate_size": 1 if intermediate_size is None else intermediate_size,
        "vocab_multiple": vocab_multiple,
    }
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if hidden_size % num_heads:
        raise ValueError(f"hidden_size ({hidden_size}) must be a multiple of num_heads ({num_heads})")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    ids = {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
    for name, value in ids.items():
        if value is not None and not 0 <= value < vocab_size:
            raise ValueError(f"{name} must lie in [0, {vocab_size}), the vocabulary; got {value}")
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if architecture != "llama" and kv_heads != num_heads:
        raise ValueError(
            f"num_kv_heads must be None or num_heads ({num_heads}) for {architecture}, got {num_kv_heads}"
        )
    if kv_heads < 1 or num_heads % kv_heads:
        raise ValueError(f"num_kv_heads must divide num_heads ({num_heads}), got {num_kv_heads}")

    shared = {
        "vocab_size": -(-vocab_size // vocab_multiple) * vocab_multiple,
        "max_position_embeddings": max_positions,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        **ids,
    }
    if architecture == "llama":
        shared["num_key_value_heads"] = kv_heads
    request = Request(causal, shared, intermediate_size, dropout, dict(config_overrides or {}))
    config, model_class = ARCHITECTURES[architecture](request)
    model = model_class(config)
    if causal:
        # Training needs no cache, which some models fill at every step.
        model.config.use_cache = False
    if gradient_checkpointing:
        enable_checkpointing(model)
    return model.train()


build_model.supplied_by_run = SUPPLIED_BY_RUN  # type: ignore[attr-defined]


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Let a model recompute each layer in the backward pass instead of storing its activations."""
    # Two names of the same method; the older one warns if both exist.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
