"""How each known architecture spells its configuration, and which of its classes serves which objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Request:
    """What a model shall be, in the names that Hugging Face configurations share.

    Attributes:
        causal: whether it predicts the next token, not hidden ones.
        shared: fields that every architecture spells alike (sizes and token ids).
        intermediate_size: width of the feed-forward layer, None for the architecture's own proportion.
        dropout: probability of every dropout.
        overrides: further configuration fields, taken last.

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
        """Make the configuration; ``unlisted`` are keywords that the class takes without keeping them.

        Raises:
            ValueError: an override that the class would store without ever reading it, or one that has an
                argument of its own.

        """
        known = config_class()
        name = type(known).__name__
        unknown = sorted(key for key in self.overrides if not hasattr(known, key) and key not in unlisted)
        if unknown:
            allowed = ", ".join(sorted({*known.to_dict(), *unlisted} - {*self.shared}))
            raise ValueError(
                f"config_overrides has no field of {name}: {', '.join(unknown)}. Allowed: {allowed}"
            )
        aliases = {other: own for own, other in known.attribute_map.items()}
        taken = sorted(key for key in self.overrides if aliases.get(key, key) in self.shared)
        if taken:
            raise ValueError(
                f"config_overrides must not set {', '.join(taken)}: build_model has arguments for it"
            )
        return config_class(**{**self.shared, **fields, **self.overrides})

    def token_id(self, name: str, architecture: str) -> int:
        """Return a token id that the architecture cannot do without.

        Raises:
            ValueError: it was not given.

        """
        value = self.shared[name]
        if value is None:
            raise ValueError(f"{name} must be given for {architecture}, got None")
        return value


Built = tuple["PretrainedConfig", type["PreTrainedModel"]]


def bert(request: Request) -> Built:
    """BERT, or its decoder."""
    from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel

    fields = {**_bert_like(request), "is_decoder": request.causal}
    return request.configure(BertConfig, fields), BertLMHeadModel if request.causal else BertForMaskedLM


def roberta(request: Request) -> Built:
    """RoBERTa, or its decoder, with the position rows that it skips."""
    from transformers import RobertaConfig, RobertaForCausalLM, RobertaForMaskedLM

    skipped = request.token_id("pad_token_id", "roberta") + 1
    positions = request.shared["max_position_embeddings"] + skipped
    # The rows are counted in `shared`, which `configure` protects from overrides.
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
    """ModernBERT, or ModernBertDecoder."""
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
    # The classes turn this keyword into `layer_types` and forget it.
    unlisted = ("global_attn_every_n_layers",)
    if request.causal:
        return request.configure(ModernBertDecoderConfig, fields, unlisted), ModernBertDecoderForCausalLM
    return request.configure(ModernBertConfig, fields, unlisted), ModernBertForMaskedLM


def gpt2(request: Request) -> Built:
    """GPT-2."""
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
    """Llama, its output tied to its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _causal_only("llama", request)
    # The gated layer has three matrices for two: two thirds of the width keep the parameters (Shazeer 2020).
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
