"""Which signals of a simulation came true in the real runs."""

from __future__ import annotations

from typing import Any


def came_true(
    landscape: dict[str, Any],
    prediction: dict[str, Any],
    records: list[dict[str, Any]],
    dead: list[set[str]],
    losses: list[float],
) -> list[dict[str, Any]]:
    """`dead_layer`, `gradient_spike` and `beyond_horizon`: simulated or not, in how many real runs, and a verdict.

    `landscape` and `prediction` are the passes' summaries; `records`, `dead` modules and `losses` are one per real
    run, the losses on the rows that the predicted path was evaluated on. A real run is beyond the horizon when its
    loss differs from the predicted one by more than the tolerance.
    """
    simulated = {signal["name"] for part in (landscape, prediction) for signal in part["signals"]}
    spikes = [any(signal["name"] == "gradient_spike" for signal in record["signals"]) for record in records]
    diverged = [abs(loss - prediction["heldout_loss_predicted"]) > prediction["tolerance"] for loss in losses]
    return [
        _row("dead_layer", simulated, [bool(modules) for modules in dead], _modules(landscape["dead_layers"], dead)),
        _row("gradient_spike", simulated, spikes, "mean largest gradient norm against the limit"),
        _row(
            "beyond_horizon",
            simulated,
            diverged,
            f"predicted loss {prediction['heldout_loss_predicted']:.4f}, real "
            f"{', '.join(f'{loss:.4f}' for loss in losses)}, tolerance {prediction['tolerance']:g}",
        ),
    ]


def dead_modules(layers: list[dict[str, Any]]) -> set[str]:
    """Weights, under the base model's names, of which no trainable parameter gets a gradient."""
    alive: dict[str, bool] = {}
    for layer in layers:
        name = base_name(layer["module"])
        alive[name] = alive.get(name, False) or not layer["dead"]
    return {name for name, lives in alive.items() if not lives}


def base_name(parameter: str) -> str:
    """`base_model.model.a.b.lora_A.default.weight` is the adapter of `a.b.weight`."""
    inner = parameter.removeprefix("base_model.model.")
    for factor in (".lora_A.", ".lora_B."):
        inner = f"{inner.split(factor)[0]}.weight" if factor in inner else inner
    return inner


def _modules(simulated: list[str], dead: list[set[str]]) -> str:
    real = set.union(*dead)
    both, only, missed = real & set(simulated), set(simulated) - real, real - set(simulated)
    named = {"in both": both, "only simulated": only, "only real": missed}
    return "; ".join(f"{word}: {', '.join(sorted(names))}" for word, names in named.items() if names) or "none"


def _row(name: str, simulated: set[str], real: list[bool], detail: str) -> dict[str, Any]:
    predicted, happened = name in simulated, 2 * sum(real) >= len(real) and any(real)
    verdicts = {
        (True, True): "came true",
        (True, False): "did not come true",
        (False, True): "missed",
        (False, False): "rightly silent",
    }
    return {
        "name": name,
        "simulated": predicted,
        "real_runs": sum(real),
        "of_runs": len(real),
        "verdict": verdicts[predicted, happened],
        "detail": detail,
    }
