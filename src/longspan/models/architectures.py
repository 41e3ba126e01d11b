"""Configuration and model class of each known architecture, by objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Request:
    """The requested model, in names that Hugging Face configurations share.

    Attributes:
        causal: whether the model predicts the next token; otherwise hidden tokens.
        shared: fields with the same name in every architecture (sizes and token ids).
        intermediate_size: width of the feed-forward layer; None for the ratio of the architecture.
        dropout: probability of every dropout.
        overrides: further configuration fields, applied last.

    """

    causal: bool
    shared: dict[str, Any]
    intermediate_size: int | None
    dropout: float
    overrides: dict[str, Any]

    def configure(
        self,
        config_class: Callable[..., PretrainedConfig],
        fields: dict[str, Any],
        unlisted: tuple[str, ...] = (),
    ) -> PretrainedConfig:
        """Make the configuration; ``unlisted`` are keywords of the class that are not stored as fields.

        Raises:
            ValueError: an override is unknown to the class, or is an argument of `build_model`.

        """
        known = config_class()
        name = type(known).__name__
        unknown = sorted(key for key in self.overrides if not hasattr(known, key) and key not in unlisted)
        if unknown:
            allowed = ", ".join(sorted({*known.to_dict(), *unlisted} - {*self.shared}))
            raise ValueError(
                f"config_overrides has no field of {name}: {', '.join(unknown)}. Allowed: {allowed}"
            )
        aliases = {alias: field for field, alias in known.attribute_map.items()}
        reserved = sorted(key for key in self.overrides if aliases.get(key, key) in self.shared)
        if reserved:
            raise ValueError(
                f"config_overrides must not set {', '.join(reserved)}: build_model has arguments for it"
            )
        return config_class(**{**self.shared, **fields, **self.overrides})

    def token_id(self, name: str, architecture: str) -> int:
        """Return a token id that the architecture requires.

        Raises:
            ValueError: the id is None.

        """
        value = self.shared[name]
        if value is None:
            raise ValueError(f"{name} must be given for {architecture}, got None")
        return value


Built = tuple["PretrainedConfig", type["PreTrainedModel"]]


def bert(request: Request) -> Built:
    """Return BERT, as a decoder for a causal objective."""
    from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel

    fields = {**_bert_like(request), "is_decoder": request.causal}
    return request.configure(BertConfig, fields), BertLMHeadModel if request.causal else BertForMaskedLM


def roberta(request: Request) -> Built:
    """Return RoBERTa, as a decoder for a causal objective, with the position rows that it skips."""
    from transformers import RobertaConfig, RobertaForCausalLM, RobertaForMaskedLM

    skipped = request.token_id("pad_token_id", "roberta") + 1
    positions = request.shared["max_position_embeddings"] + skipped
    # `configure` protects the fields of `shared` from overrides.
    request = Request(
        request.causal,
        {**request.shared, "max_position_embeddings": positions},
        request.intermediate_size,
        request.dropout,
        request.overrides,
    )
    fields = {**_bert_like(request), "is_decoder": request.causal, "type_vocab_size": 1}
    return request.configure(
        RobertaConfig, fields
    ), RobertaForCausalLM if request.causal else RobertaForMaskedLM


def modernbert(request: Request) -> Built:
    """Return ModernBERT, or ModernBertDecoder for a causal objective."""
    from transformers import (
        ModernBertConfig,
        ModernBertDecoderConfig,
        ModernBertDecoderForCausalLM,
        ModernBertForMaskedLM,
    )

    if request.causal:
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            request.token_id(name, "modernbert with a causal objective")
    fields = {
        "intermediate_size": request.intermediate_size or 3 * request.shared["hidden_size"] // 2,
        "attention_dropout": request.dropout,
        "mlp_dropout": request.dropout,
        "embedding_dropout": request.dropout,
        "cls_token_id": request.shared["bos_token_id"],
        "sep_token_id": request.shared["eos_token_id"],
    }
    # The classes convert this keyword into `layer_types` and do not store it.
    unlisted = ("global_attn_every_n_layers",)
    if request.causal:
        return request.configure(ModernBertDecoderConfig, fields, unlisted), ModernBertDecoderForCausalLM
    return request.configure(ModernBertConfig, fields, unlisted), ModernBertForMaskedLM


def gpt2(request: Request) -> Built:
    """Return GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    _causal_only("gpt2", request)
    fields = {
        "n_inner": request.intermediate_size or 4 * request.shared["hidden_size"],
        "resid_pdrop": request.dropout,
        "embd_pdrop": request.dropout,
        "attn_pdrop": request.dropout,
    }
    return request.configure(GPT2Config, fields), GPT2LMHeadModel


def llama(request: Request) -> Built:
    """Return Llama, with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _causal_only("llama", request)
    # A gated layer has three matrices instead of two: 2/3 of the width keeps the parameters (Shazeer 2020).
    gated = -(-8 * request.shared["hidden_size"] // 3)
    fields = {
        "intermediate_size": request.intermediate_size or -(-gated // 64) * 64,
        "attention_dropout": request.dropout,
        "tie_word_embeddings": True,
    }
    return request.configure(LlamaConfig, fields), LlamaForCausalLM


def _bert_like(request: Request) -> dict[str, Any]:
    return {
        "intermediate_size": request.intermediate_size or 4 * request.shared["hidden_size"],
        "hidden_dropout_prob": request.dropout,
        "attention_probs_dropout_prob": request.dropout,
    }


def _causal_only(architecture: str, request: Request) -> None:
    if not request.causal:
        raise ValueError(f"objective must be clm for {architecture}, or another causal one")


ARCHITECTURES: dict[str, Callable[[Request], Built]] = {
    "bert": bert,
    "roberta": roberta,
    "modernbert": modernbert,
    "gpt2": gpt2,
    "llama": llama,
}
