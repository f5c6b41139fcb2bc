"""Which answer of a pair either model prefers, and which pairs they decide differently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.tasks.loading import label_caller
from foretune.tasks.samples.minibatches import minibatches

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.comparison import SampleSums


def pair_rows(
    base: LoadedModel, new: LoadedModel, table: pa.Table, chosen: SampleSums, batch_tokens: int
) -> list[dict[str, Any]]:
    """Per pair log p(chosen) - log p(rejected) in nats under both models; `chosen` holds the sums of its losses."""
    import torch

    from foretune.tasks.numerics.losses import sequence_logprobs

    calls = {"base": label_caller(base, []), "new": label_caller(new, [])}
    rows = []
    samples = table["sample_id"].to_pylist()
    for minibatch in minibatches(table, batch_tokens, base.device):
        assert minibatch.rejected is not None  # a table of pairs
        margins = {}
        for side, call in calls.items():
            with torch.no_grad():
                rejected = sequence_logprobs(call({}, minibatch.rejected), minibatch.rejected.labels)
            won = -getattr(chosen, f"loss_{side}")[list(minibatch.rows)]
            margins[side] = (won - rejected.double().cpu()).tolist()
        rows += [
            {"sample_id": samples[row], "margin_base": before, "margin_new": after}
            for row, before, after in zip(minibatch.rows, margins["base"], margins["new"], strict=True)
        ]
    return sorted(rows, key=lambda row: row["sample_id"])


def pair_summary(rows: list[dict[str, Any]], draws: int) -> dict[str, Any]:
    """Win rates, flips with McNemar's exact p-value, and the mean change of the margin with its interval; times
    beta that is the change of DPO's implicit reward margin."""
    import torch

    from foretune.tasks.numerics.bootstrap import paired_interval
    from foretune.tasks.numerics.flips import flips

    base, new = (torch.tensor([row[f"margin_{side}"] for row in rows], dtype=torch.float64) for side in ("base", "new"))
    found = flips(base, new)
    interval = paired_interval(new - base, torch.ones(len(rows)), draws)
    return {
        "win_rate_base": found.won_base / len(rows),
        "win_rate_new": found.won_new / len(rows),
        "compared_pairs": len(rows),
        "pairs_won_base": found.won_base,
        "pairs_won_new": found.won_new,
        "flips_to_won": found.to_won,
        "flips_to_lost": found.to_lost,
        "flips_p": found.p_value,
        "margin_change": float((new - base).mean()),
        "margin_change_low": interval and interval.low,
        "margin_change_high": interval and interval.high,
    }
