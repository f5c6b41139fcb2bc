"""What a forward tells of each row, as the landscape's shards store it."""

from __future__ import annotations

from typing import Any


def row_losses(ids: list[str], losses: dict[int, tuple[float, float]]) -> list[dict[str, Any]]:
    """Summed loss and label tokens of every row; zero for a row without labels."""
    return [
        {"sample_id": sample_id, "loss_sum": loss_sum, "tokens": tokens}
        for sample_id, (loss_sum, tokens) in ((each, losses.get(row, (0.0, 0.0))) for row, each in enumerate(ids))
    ]
