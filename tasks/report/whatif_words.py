"""What a what-if says of its settings, the same on its page and in the terminal."""

from __future__ import annotations

from typing import Any

REPEATED = "the run's own"
"""`predicted_from` of a row that is the run's own answer."""


def shown_outcomes(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the table: the grid, and the run's own setting first where the grid does not repeat it."""
    settings = result["settings"]
    return settings if any(each["predicted_from"] == REPEATED for each in settings) else [result["own"], *settings]


def mark(outcome: dict[str, Any]) -> str:
    """What stands before a row."""
    return "best" if outcome["best"] else "lowest predicted" if outcome["lowest"] else ""


def setting_in_words(outcome: dict[str, Any]) -> str:
    """The changed values of a row."""
    changed = outcome["changed"].items()
    return ", ".join(f"{path.rsplit('.', 1)[-1]} {value}" for path, value in changed) or "as simulated"


def standing(result: dict[str, Any]) -> str:
    """Which setting comes out first, by what, and how far that may be trusted."""
    outcomes = shown_outcomes(result)
    lowest = next(each for each in outcomes if each["lowest"])
    best = next((each for each in outcomes if each["best"]), None)
    tolerance = f"{result['tolerance']:g} nats"
    if best is None:
        return (
            f"Lowest predicted: {setting_in_words(lowest)}, {lowest['predicted_loss']:.3f}, trusted within "
            f"{tolerance}: {lowest['status']}. None is called best, since none was evaluated: leave --no-evaluate out."
        )
    evaluated = sum(each["evaluated_loss"] is not None for each in outcomes)
    trusted = "" if best["trusted_steps"] == best["steps"] else f", trusted: {best['status']}"
    return (
        f"Best of the {evaluated} evaluated of {len(outcomes)}: {setting_in_words(best)}, "
        f"{best['evaluated_loss']:.3f} on its predicted weights{trusted}. "
        f"Where a row is trusted, prediction and evaluation agree within {tolerance}."
    )
