"""Tiny models of every architecture, by the heads that transformers gives them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import longspan  # noqa: F401  (registers the attention implementation)

HEADS = 4
POSITIONS = 24
VOCABULARY = 40
PAD = 1

_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 16,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": PAD,
}
_RESERVED = {"max_position_embeddings": POSITIONS + PAD + 1}

# model_type: the configuration's arguments, the names of its classes by head.
ARCHITECTURES = {
    "bert": (_BERT, "Bert"),
    "roberta": ({**_BERT, **_RESERVED}, "Roberta"),
    "xlm-roberta": ({**_BERT, **_RESERVED}, "XLMRoberta"),
    "electra": ({**_BERT, "embedding_size": 16}, "Electra"),
    "albert": ({**_BERT, "embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2}, "Albert"),
    "distilbert": (
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "n_layers": 2,
            "n_heads": HEADS,
            "hidden_dim": 16,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": PAD,
        },
        "DistilBert",
    ),
    "gpt2": (
        {
            "vocab_size": VOCABULARY,
            "n_positions": POSITIONS,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": HEADS,
            "pad_token_id": PAD,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        "GPT2",
    ),
    "opt": (
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "ffn_dim": 16,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": PAD,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        "OPT",
    ),
}
HEAD_CLASSES = {
    "Bert": ("Model", "ForMaskedLM", "ForSequenceClassification", "LMHeadModel"),
    "Roberta": ("Model", "ForMaskedLM", "ForSequenceClassification", "ForCausalLM"),
    "XLMRoberta": ("Model", "ForMaskedLM", "ForSequenceClassification", "ForCausalLM"),
    "Electra": ("Model", "ForMaskedLM", "ForSequenceClassification", "ForCausalLM"),
    "Albert": ("Model", "ForMaskedLM", "ForSequenceClassification"),
    "DistilBert": ("Model", "ForMaskedLM", "ForSequenceClassification"),
    "GPT2": ("Model", "LMHeadModel", "ForSequenceClassification"),
    "OPT": ("Model", "ForCausalLM", "ForSequenceClassification"),
}
PAIRS = [(kind, head) for kind, (_, prefix) in ARCHITECTURES.items() for head in HEAD_CLASSES[prefix]]
LANGUAGE_MODELS = {
    kind: "LMHeadModel" if kind == "gpt2" else "ForCausalLM" if kind == "opt" else "ForMaskedLM"
    for kind in ARCHITECTURES
}


def make(kind: str, head: str | None = None, dtype: torch.dtype = torch.float64, **fields):
    """A tiny model in evaluation mode whose positions and attention matter to its output."""
    import transformers

    arguments, prefix = ARCHITECTURES[kind]
    causal = head in ("LMHeadModel", "ForCausalLM") and kind not in ("gpt2", "opt")
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(
        **{**arguments, **({"is_decoder": True} if causal else {}), **fields}
    )
    model = getattr(transformers, f"{prefix}{head or LANGUAGE_MODELS[kind]}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model.to(dtype).eval()


def output(model, ids, **arguments):
    """What a model makes of tokens: logits, or hidden states where it has no head."""
    with torch.no_grad():
        made = model(ids, **arguments)
    return made.logits if hasattr(made, "logits") else made.last_hidden_state


def tokens(length: int, batch: int = 2):
    """Sequences of tokens, none of them special."""
    return torch.randint(4, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The functions of this file: test folders are no packages, so tests cannot import them."""
    return SimpleNamespace(make=make, output=output, tokens=tokens, HEADS=HEADS, POSITIONS=POSITIONS, PAD=PAD)


@pytest.fixture(params=sorted(ARCHITECTURES))
def kind(request) -> str:
    return request.param


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request) -> tuple[str, str]:
    return request.param
