"""SparseAttentionUtils: the utilities of DeepSpeed's sparse attention, with the same names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from longspan.deepspeed import padding
from longspan.deepspeed.layer_lists import default_pattern, sparsify_layers
from longspan.models.layers import self_attention_layers
from longspan.models.sparsify import sparsify
from longspan.positions import extend, max_positions_of
from longspan.positions.architectures import has_rotary_positions
from longspan.sparsity import SparsityConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model = TypeVar("Model", bound="PreTrainedModel")
Layers = TypeVar("Layers", bound=Iterable[nn.Module])
AnyTokenizer = TypeVar("AnyTokenizer", bound="PreTrainedTokenizerBase")


class SparseAttentionUtils:
    """DeepSpeed's utilities to take a trained Hugging Face model to longer sequences and sparse attention.

    Names and order of arguments are those of DeepSpeed. Supported are BERT, RoBERTa, XLM-R, ELECTRA,
    DistilBERT, ALBERT, ModernBERT, GPT-2, OPT and Llama.
    """

    @staticmethod
    def extend_position_embedding(model: Model, max_position: int) -> Model:
        """Repeat the trained positions of a model: `longspan.extend` with method "tile".

        Rotary positions (ModernBERT, Llama) have no table to repeat. They are extended by the method
        "dynamic", which does not change sequences of the old length, as tiling.

        Args:
            model: a Hugging Face model.
            max_position: length of the longest sequence in tokens, without RoBERTa's rows for padding.

        Returns:
            The same model.

        Raises:
            ValueError: as `longspan.extend`; for example, fewer positions than the model has.

        """
        return _extend(model, max_position)

    @staticmethod
    def update_tokenizer_model_max_length(tokenizer: AnyTokenizer, max_position: int) -> AnyTokenizer:
        """Set the maximum length of a tokenizer, also for after it is saved and loaded.

        Args:
            tokenizer: a Hugging Face tokenizer.
            max_position: length of the longest sequence in tokens, with special tokens.

        Returns:
            The same tokenizer.

        Raises:
            ValueError: the length is below 1.

        """
        if max_position < 1:
            raise ValueError(f"max_position must be at least 1, got {max_position}")
        tokenizer.model_max_length = max_position
        # save_pretrained writes init_kwargs.
        tokenizer.init_kwargs["model_max_length"] = max_position
        return tokenizer

    @staticmethod
    def replace_model_self_attention_with_sparse_self_attention(
        model: Model, max_position: int, sparsity_config: SparsityConfig | None = None
    ) -> Model:
        """Make a trained model sparse, and extend its positions if they are too few.

        DeepSpeed replaces modules of the model; this function keeps modules and parameters, and uses
        transformers' attention interface.

        Args:
            model: a Hugging Face model.
            max_position: length of the longest sequence in tokens. Positions are never removed.
            sparsity_config: the pattern; None for `FixedSparsityConfig` with its defaults, DeepSpeed's
                default mode, and the heads of the model.

        Returns:
            The same model, in its previous mode (training or evaluation).

        Raises:
            ValueError: as `longspan.extend` and `longspan.sparsify`.

        """
        if sparsity_config is None:
            sparsity_config = default_pattern(model.config, self_attention_layers(model))
        positions = max_positions_of(model)
        if positions is not None and positions >= max_position:
            return sparsify(model, sparsity_config)
        return _extend(model, max_position, sparsity_config)

    @staticmethod
    def replace_self_attention_layer_with_sparse_self_attention_layer(
        config: Any, layers: Layers, sparsity_config: SparsityConfig | None = None
    ) -> Layers:
        """Make the self-attention of some layers sparse; see `layer_lists.sparsify_layers`.

        Args:
            config: configuration of the model, ``model.config``.
            layers: layers of the model, or some of them, such as ``model.bert.encoder.layer``.
            sparsity_config: the pattern; None for `FixedSparsityConfig` with the heads of the model.

        Returns:
            The layers.

        Raises:
            ValueError: as `longspan.deepspeed.layer_lists.sparsify_layers`.

        """
        return sparsify_layers(config, layers, sparsity_config)

    @staticmethod
    def pad_to_block_size(
        block_size: int,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pad_token_id: int | None,
        model_embeddings: Any,
    ) -> padding.Padded:
        """Pad a batch to a multiple of the block, which is optional; see `longspan.deepspeed.padding`."""
        return padding.pad_to_block_size(
            block_size,
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            pad_token_id,
            model_embeddings,
        )

    @staticmethod
    def unpad_sequence_output(pad_len: int, sequence_output: Tensor) -> Tensor:
        """Remove the ``pad_len`` tokens that `pad_to_block_size` added to ``[batch, length, ...]``."""
        return padding.unpad_sequence_output(pad_len, sequence_output)


def _extend(model: Model, max_position: int, sparsity: SparsityConfig | None = None) -> Model:
    method = "dynamic" if has_rotary_positions(model) else "tile"
    return extend(model, max_position, method=method, sparsity=sparsity)
