"""Figures of the held-out rows beside those of null deltas."""

from __future__ import annotations

from typing import Any


def held_figures(summary: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """What is held against null deltas: nats per label token, and changes of calibration."""
    return {
        "loss_change": summary[f"{prefix}loss_new"] - summary[f"{prefix}loss_base"],
        "kl": summary[f"{prefix}kl"],
        "js": summary[f"{prefix}js"],
        "ece_change": summary[f"{prefix}ece_new"] - summary[f"{prefix}ece_base"],
        "brier_change": summary[f"{prefix}brier_new"] - summary[f"{prefix}brier_base"],
    }


def against_null_rows(summary: dict[str, Any], nulls: list[dict[str, float]]) -> dict[str, Any]:
    """Of each held-out figure the nulls' mean and standard deviation, how many of these it is away, and z."""
    from foretune.tasks.numerics.nulls import against_nulls

    found: dict[str, Any] = {"null_deltas": len(nulls)}
    for name, figure in held_figures(summary, "heldout_").items():
        beside = against_nulls(figure, [row[name] for row in nulls])
        if beside is not None:
            found |= {
                f"heldout_{name}_null_mean": beside.mean,
                f"heldout_{name}_null_sd": beside.sd,
                f"heldout_{name}_null_sds": beside.sds,
                f"heldout_{name}_z": beside.z,
            }
    return found
