"""Token ids for small models."""

import pytest
import torch
from torch import Tensor


@pytest.fixture
def ids() -> Tensor:
    """Two sequences of tokens, none of them special: int64 [2, 45]."""
    return torch.randint(0, 36, (2, 45), generator=torch.Generator().manual_seed(1))
