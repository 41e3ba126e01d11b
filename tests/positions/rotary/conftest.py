"""Tiny models of every rotary family, and what the tests of rotary positions share."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    ModernBertForMaskedLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

import longspan
from longspan.positions.rotary import extend_rotary
from longspan.positions.rotary_modules import rotary_modules
from longspan.sparsity import DenseSparsityConfig

LENGTH = 32
SIZES = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "stablelm": lambda: StableLmForCausalLM(StableLmConfig(**GROUPED, partial_rotary_factor=0.5)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**GROUPED)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **GROUPED,
            head_dim=16,
            sliding_window=8,
            layer_types=["full_attention", "sliding_attention"],
        )
    ),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SIZES, local_attention=8)),
    "modernbert_decoder": lambda: ModernBertDecoderForCausalLM(
        ModernBertDecoderConfig(**SIZES, local_attention=8)
    ),
}


def make(family="llama"):
    """A tiny model whose attention matters to its logits."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model.eval()


def options_of(model, method):
    """The options that a method needs: factors that differ from pair to pair."""
    if method != "longrope":
        return {}
    pairs = next(buffer for buffer in rotary_modules(model)[0].buffers()).numel()
    return {
        "short_factor": [1 + 0.01 * i for i in range(pairs)],
        "long_factor": [1 + 0.5 * i for i in range(pairs)],
    }


def extend(model, max_positions, method):
    return extend_rotary(model, max_positions, method, **options_of(model, method))


def tokens(length, batch=1):
    return torch.randint(3, 40, (batch, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def logits(model, ids, **inputs):
    return model(input_ids=ids, **inputs).logits


def one_layer(head_dim, base, length):
    sizes = {**SIZES, "hidden_size": 2 * head_dim, "num_attention_heads": 2, "num_hidden_layers": 1}
    parameters = {"rope_type": "default", "rope_theta": base}
    config = LlamaConfig(**{**sizes, "max_position_embeddings": length}, rope_parameters=parameters)
    return LlamaForCausalLM(config).eval()


def sparse(model):
    attention = "bidirectional" if model.config.model_type == "modernbert" else "unidirectional"
    return longspan.sparsify(model, DenseSparsityConfig(4, 8, attention=attention))


def theta(dim, base):
    return torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)


@pytest.fixture(scope="session")
def kit():
    """The functions of this file: test folders are no packages, so tests cannot import them."""
    return SimpleNamespace(
        make=make,
        options_of=options_of,
        extend=extend,
        tokens=tokens,
        logits=logits,
        one_layer=one_layer,
        sparse=sparse,
        theta=theta,
        GROUPED=GROUPED,
    )


# Phi-3's configuration takes "longrope" alone.
@pytest.fixture(params=[name for name in FAMILIES if name != "phi3"])
def family(request):
    return request.param
