"""Two models' next-token distributions on the label tokens of a table: per token, per row, and the worst of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.tasks.loading import label_caller
from foretune.tasks.samples.minibatches import minibatches

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.comparison import SampleSums, TokenComparison, WorstTokens

CONTEXT_TOKENS = 32
"""Shown before a token of large divergence."""


def compare_rows(
    base: LoadedModel, new: LoadedModel, table: pa.Table, batch_tokens: int, worst: int
) -> tuple[TokenComparison, WorstTokens] | None:
    """Both models on every label token of `table`, rows by their places in it; None where no row has one."""
    import torch

    from foretune.tasks.numerics.comparison import compare_logits, joined

    calls = label_caller(base, []), label_caller(new, [])
    parts, rows = [], []
    for minibatch in minibatches(table, batch_tokens, base.device):
        with torch.no_grad():
            before, after = (call({}, minibatch.batch) for call in calls)
        parts.append(compare_logits(before, after, minibatch.batch.labels, worst))
        rows.append(minibatch.rows)
    return joined(parts, rows, worst) if parts else None


def set_summary(
    prefix: str, tokens: TokenComparison, sums: SampleSums, bins: int, draws: int
) -> dict[str, float | int | None]:
    """Figures of one set of rows, each under its name with the prefix, and the loss change with its interval."""
    from foretune.tasks.numerics.bootstrap import paired_interval
    from foretune.tasks.numerics.comparison import summarise

    found: dict[str, float | int | None] = dict(summarise(tokens, bins))
    compared = sums.tokens > 0
    change = (sums.loss_new - sums.loss_base)[compared]
    interval = paired_interval(change, sums.tokens[compared], draws)
    found |= {
        "loss_change": float(change.sum() / sums.tokens.sum()),
        "loss_change_low": interval and interval.low,
        "loss_change_high": interval and interval.high,
        "rows": int(compared.sum()),
        "tokens": int(sums.tokens.sum()),
    }
    return {f"{prefix}_{name}": value for name, value in found.items()}


def token_table(name: str, table: pa.Table, tokens: TokenComparison) -> pa.Table:
    """Every label token of the set `name`: its place, and its figures under both models, in float32."""
    from dataclasses import fields

    import pyarrow as pa

    columns: dict[str, Any] = {"set": [name] * len(tokens.kl), "sample_id": table["sample_id"].take(tokens.row.numpy())}
    figures = {field.name: getattr(tokens, field.name).float().numpy() for field in fields(tokens)[2:]}
    return pa.table({**columns, "position": tokens.position.numpy(), **figures})


def worst_tokens(name: str, table: pa.Table, worst: WorstTokens, loaded: LoadedModel) -> list[dict[str, Any]]:
    """The tokens of largest KL in their context, with the likeliest tokens of both models."""
    from math import exp

    found, tokenizer = [], loaded.tokenizer
    ids, samples = table["input_ids"].to_pylist(), table["sample_id"].to_pylist()
    tokens = worst.tokens
    for n, (row, position) in enumerate(zip(tokens.row.tolist(), tokens.position.tolist(), strict=True)):
        before = ids[row][max(0, position - CONTEXT_TOKENS) : position]
        record = {
            "set": name,
            "sample_id": samples[row],
            "position": position,
            "context": tokenizer.decode(before),
            "token": tokenizer.decode([ids[row][position]]),
            "p_base": exp(-float(tokens.loss_base[n])),
            "p_new": exp(-float(tokens.loss_new[n])),
            "kl": float(tokens.kl[n]),
            "js": float(tokens.js[n]),
        }
        for side in ("base", "new"):
            top = getattr(worst, f"top_{side}")[n].tolist()
            record[f"top_{side}"] = [tokenizer.decode([token]) for token in top]
            record[f"top_{side}_p"] = getattr(worst, f"probability_{side}")[n].tolist()
        found.append(record)
    return found


def row_losses(table: pa.Table, sums: SampleSums) -> list[dict[str, Any]]:
    """Per row with a label: its label tokens, and the sums over them in nats of both losses and divergences."""
    columns = (values.tolist() for values in (sums.tokens, sums.loss_base, sums.loss_new, sums.kl, sums.js))
    return [
        {"sample_id": sample_id, "tokens": round(tokens), "loss_base": base, "loss_new": new, "kl": kl, "js": js}
        for sample_id, tokens, base, new, kl, js in zip(table["sample_id"].to_pylist(), *columns, strict=True)
        if tokens
    ]


def probe_rows(table: pa.Table, sums: SampleSums, regression: float) -> list[dict[str, Any]]:
    """Per probe: perplexities, token KL in nats, and whether its perplexity rose by more than `regression`."""
    from math import exp

    texts = dict(zip(table["sample_id"].to_pylist(), table["completion"].to_pylist(), strict=True))
    rows = []
    for row in row_losses(table, sums):
        before, after = exp(row["loss_base"] / row["tokens"]), exp(row["loss_new"] / row["tokens"])
        rows.append(
            {
                "text": texts[row["sample_id"]],
                "tokens": row["tokens"],
                "perplexity_base": before,
                "perplexity_new": after,
                "kl": row["kl"] / row["tokens"],
                "regressed": after > before * (1 + regression),
            }
        )
    return rows
