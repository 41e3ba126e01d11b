"""Pretrained Hugging Face language models, for the objective and the tokenizer of a run."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from longspan.data.objective import Objective, is_causal
from longspan.models.build import SUPPLIED_BY_RUN, enable_checkpointing

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DTYPES = ("float32", "bfloat16", "float16")
# Vocabularies are padded to round numbers; a larger difference means another tokenizer.
_MAX_UNUSED_ROWS = 511


def load_pretrained(
    name_or_path: str,
    objective: str | Objective,
    vocab_size: int,
    num_heads: int | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    gradient_checkpointing: bool = False,
    pad_token_id: int | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> PreTrainedModel:
    """Load a pretrained language model with the head of an objective and dense attention.

    Args:
        name_or_path: folder from ``save_pretrained``, or name on the hub; a cached model needs no network.
        objective: the objective, or the name of a shipped one: ``"mlm"`` (AutoModelForMaskedLM) or ``"clm"``
            (AutoModelForCausalLM, as for every causal objective; encoders such as BERT become decoders).
        vocab_size: number of token ids of the tokenizer, which must be that of the model. The embedding may
            have up to 511 more rows, which are no token.
        num_heads: number of heads of the patterns, compared with that of the model; None for no comparison.
        revision: branch, tag or commit on the hub.
        dtype: dtype of the parameters: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        gradient_checkpointing: recompute each layer in the backward pass instead of storing its activations.
        pad_token_id: padding token of the tokenizer, compared with that of the model; None for no comparison.
        bos_token_id: not compared, since checkpoints often lack it.
        eos_token_id: not compared.

    Returns:
        The model, in training mode. Weights that the checkpoint lacks, such as a head, are random, with a
        warning.

    Raises:
        ValueError: the objective or dtype is unknown, there is no such model, the architecture has no head
            for the objective, the number of heads differs, or vocabulary or padding are of another tokenizer.

    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    causal = is_causal(objective)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    config: Any = load_config(name_or_path, revision)
    _check(config, name_or_path, vocab_size, num_heads, pad_token_id)
    if causal:
        config.use_cache = False
        if hasattr(config, "is_decoder"):
            config.is_decoder = True
    auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    try:
        loaded: Any = auto.from_pretrained(
            name_or_path, config=config, revision=revision or "main", dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"name_or_path={name_or_path!r}: {_first_line(error)}") from error
    model, report = loaded
    if fresh := sorted(report["missing_keys"]):
        warnings.warn(
            f"{name_or_path} has no weights for {', '.join(fresh)} of {type(model).__name__}: they are "
            "fresh, and worth nothing before they are trained",
            stacklevel=2,
        )
    if gradient_checkpointing:
        enable_checkpointing(model)
    return model.train()


load_pretrained.supplied_by_run = SUPPLIED_BY_RUN  # type: ignore[attr-defined]


def load_config(name_or_path: str, revision: str | None = None) -> PretrainedConfig:
    """Load the configuration of a pretrained model, without its weights.

    Raises:
        ValueError: there is no such model.

    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name_or_path, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"name_or_path={name_or_path!r} is no folder with a model's config.json, and no model of that "
            f"name is in Hugging Face's cache or could be fetched: {_first_line(error)}"
        ) from error


def num_heads_of(name_or_path: str, revision: str | None = None) -> int:
    """Return the number of query heads of a pretrained model, from its configuration alone.

    Raises:
        ValueError: there is no such model.

    """
    config: Any = load_config(name_or_path, revision)
    return config.num_attention_heads


def _check(config: Any, name: str, vocab_size: int, num_heads: int | None, pad_token_id: int | None) -> None:
    remedy = f"Use its own: tokenizer=huggingface tokenizer.name_or_path={name}"
    if not 0 <= config.vocab_size - vocab_size <= _MAX_UNUSED_ROWS:
        raise ValueError(
            f"vocab_size must be that of {name}, {config.vocab_size}; the tokenizer has {vocab_size}. "
            f"{remedy}"
        )
    expected = config.pad_token_id
    if pad_token_id is not None and expected is not None and pad_token_id != expected:
        raise ValueError(
            f"pad_token_id must be that of {name}, {expected}; the tokenizer has {pad_token_id}. {remedy}"
        )
    if num_heads is not None and num_heads != config.num_attention_heads:
        raise ValueError(f"num_heads must be that of {name}, {config.num_attention_heads}; got {num_heads}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
