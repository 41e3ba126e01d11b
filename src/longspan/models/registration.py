"""Registration of the attention implementation ``longspan`` in transformers.

``import longspan`` arranges that it happens as soon as transformers' models are imported. It does not import
them: they take seconds and, through torch's compiler, import Triton where it is installed.
"""

from __future__ import annotations

NAME = "longspan"


def register() -> None:
    """Register the attention function and the mask function; imports transformers' modelling code."""
    import torch
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

    from longspan.models.attention_interface import longspan_attention
    from longspan.models.masks import longspan_mask

    if NAME in ALL_ATTENTION_FUNCTIONS:
        return
    AttentionInterface.register(NAME, longspan_attention)
    # The mask function reads closures and values, which torch.compile cannot trace: one clean break before
    # the layers. `disable` imports torch's compiler, which transformers has already imported.
    AttentionMaskInterface.register(NAME, torch.compiler.disable(longspan_mask))
