"""SparseAttentionUtils: the utilities of DeepSpeed's sparse attention under their own names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from longspan.deepspeed import padding
from longspan.deepspeed.layer_lists import default_pattern, sparsify_layers
from longspan.models.layers import self_attention_layers
from longspan.models.sparsify import sparsify
from longspan.sparsity import SparsityConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model = TypeVar("Model", bound="PreTrainedModel")
Layers = TypeVar("Layers", bound=Iterable[nn.Module])
AnyTokenizer = TypeVar("AnyTokenizer", bound="PreTrainedTokenizerBase")


class SparseAttentionUtils:
    """DeepSpeed's utilities to take a trained Hugging Face model to longer sequences and sparse attention.

    Names, arguments and their order are the original's. They serve BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT,
    ALBERT, ModernBERT, GPT-2, OPT and Llama.
    """

    @staticmethod
    def extend_position_embedding(model: Model, max_position: int) -> Model:
        """Extend a model's positions by repeating the trained ones: `longspan.extend` by the method "tile".

        Rotary positions (ModernBERT, Llama and their like) have no table to repeat. They are extended by the
        method "dynamic", which leaves sequences of the old length as they were, as tiling does.

        Args:
            model: a Hugging Face model.
            max_position: the longest sequence that it shall take, in tokens, RoBERTa's rows for padding not
                counted.

        Returns:
            The same model.

        Raises:
            ValueError: as `longspan.extend`; for one, fewer positions than the model has.

        """
        return _extend(model, max_position)

    @staticmethod
    def update_tokenizer_model_max_length(tokenizer: AnyTokenizer, max_position: int) -> AnyTokenizer:
        """Let a tokenizer make sequences of up to so many tokens, also after it is saved and loaded.

        Args:
            tokenizer: a Hugging Face tokenizer.
            max_position: tokens of the longest sequence, special ones included.

        Returns:
            The same tokenizer.

        Raises:
            ValueError: a length below 1.

        """
        if max_position < 1:
            raise ValueError(f"max_position must be at least 1, got {max_position}")
        tokenizer.model_max_length = max_position
        # What save_pretrained writes.
        tokenizer.init_kwargs["model_max_length"] = max_position
        return tokenizer

    @staticmethod
    def replace_model_self_attention_with_sparse_self_attention(
        model: Model, max_position: int, sparsity_config: SparsityConfig | None = None
    ) -> Model:
        """Make a trained model sparse, and extend its positions where they are too few.

        The original put other modules into the model; this one keeps its modules and parameters, and goes
        through transformers' attention interface.

        Args:
            model: a Hugging Face model.
            max_position: the longest sequence that it shall take, in tokens. Positions are never taken away.
            sparsity_config: the pattern; None: `FixedSparsityConfig` with its defaults, as DeepSpeed's
                default mode, and as many heads as the model.

        Returns:
            The same model, in the mode (training or evaluation) in which it was.

        Raises:
            ValueError: as `longspan.extend` and `longspan.sparsify`.

        """
        if sparsity_config is None:
            sparsity_config = default_pattern(model.config, self_attention_layers(model))
        from longspan.positions import max_positions_of

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
            config: the configuration of the model, ``model.config``.
            layers: its layers, or some of them, such as ``model.bert.encoder.layer``.
            sparsity_config: the pattern; None: `FixedSparsityConfig` with as many heads as the model.

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
        """Pad a batch to a multiple of the block; not needed here. See `longspan.deepspeed.padding`."""
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
        """Drop the ``pad_len`` tokens that `pad_to_block_size` has added to ``[batch, length, ...]``."""
        return padding.unpad_sequence_output(pad_len, sequence_output)


def _extend(model: Model, max_position: int, sparsity: SparsityConfig | None = None) -> Model:
    # Here, because longspan.positions imports this package.
    from longspan.positions import extend
    from longspan.positions.architectures import has_rotary_positions

    method = "dynamic" if has_rotary_positions(model) else "tile"
    return extend(model, max_position, method=method, sparsity=sparsity)
