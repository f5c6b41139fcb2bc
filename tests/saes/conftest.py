"""Activations to encode; models and batches are those of the loading room."""

from __future__ import annotations

import pytest

from tests.loading.conftest import batch, opened  # noqa: F401


@pytest.fixture
def resid():
    """Activations [4, 7, 32] away from zero mean."""
    import torch

    return 3 * torch.randn(4, 7, 32, generator=torch.Generator().manual_seed(9)) + 1
