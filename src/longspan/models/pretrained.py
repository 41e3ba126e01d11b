"""Pretrained Hugging Face language models, for a run's objective and tokenizer."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from longspan.data.objective import Objective, is_causal
from longspan.models.build import SUPPLIED_BY_RUN, enable_checkpointing

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DTYPES = ("float32", "bfloat16", "float16")
# Vocabularies are padded to round numbers; one that is this much larger is another tokenizer's.
_MOST_UNUSED_ROWS = 511


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
    """Load a pretrained language model with the head of an objective; its attention is the stock one.

    Args:
        name_or_path: a folder that ``save_pretrained`` wrote, or a name on the hub; one that was loaded
            before needs no network.
        objective: what the model is trained for, or the name of a shipped objective, ``"mlm"`` or ``"clm"``:
            AutoModelForMaskedLM, or under a causal one AutoModelForCausalLM; encoders such as BERT become
            decoders.
        vocab_size: token ids of the tokenizer that will be used: the model's own. The embedding may have up
            to 511 rows more, which stand for no token.
        num_heads: heads that the patterns were made for, to be compared with the model's; None for no
            comparison.
        revision: branch, tag or commit on the hub.
        dtype: of the parameters: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
        pad_token_id: padding of the tokenizer, to be compared with the model's; None for no comparison.
        bos_token_id: not compared: checkpoints often do not know it.
        eos_token_id: not compared.

    Returns:
        The model, in training mode. Weights that the checkpoint lacks (a head, say) are fresh, with a
        warning.

    Raises:
        ValueError: an unknown objective or dtype, nothing to load under that name, an architecture without
            the objective's head, other heads, or the vocabulary or padding of another tokenizer.

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
        ValueError: there is nothing to load under that name.

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
        ValueError: there is nothing to load under that name.

    """
    config: Any = load_config(name_or_path, revision)
    return config.num_attention_heads


def _check(config: Any, name: str, vocab_size: int, num_heads: int | None, pad_token_id: int | None) -> None:
    remedy = f"Use its own: tokenizer=huggingface tokenizer.name_or_path={name}"
    if not 0 <= config.vocab_size - vocab_size <= _MOST_UNUSED_ROWS:
        raise ValueError(
            f"vocab_size must be that of {name}, {config.vocab_size}; the tokenizer has {vocab_size}. "
            f"{remedy}"
        )
    own = config.pad_token_id
    if pad_token_id is not None and own is not None and pad_token_id != own:
        raise ValueError(
            f"pad_token_id must be that of {name}, {own}; the tokenizer has {pad_token_id}. {remedy}"
        )
    if num_heads is not None and num_heads != config.num_attention_heads:
        raise ValueError(f"num_heads must be that of {name}, {config.num_attention_heads}; got {num_heads}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
