"""What a run has measured that a verdict on shipping rests on, read from its artefacts; nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foretune.storage.contents import Artifact
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.trust import trust_of
from foretune.tasks.report.shipping import Decision, Measured, ShipEvidence

NATS = "nats per token"
DRAWS = 10_000
"""Of the bootstrap of a win rate."""
SETTING_OF_NULLS, SETTING_OF_ORDERS = "diff.nulls.deltas: 6", "behaviour.path.orders: 2"


def ship_evidence(run: Run, made: Mapping[str, ArtifactRef], signals: Sequence[Mapping[str, Any]]) -> ShipEvidence:
    """From the artefacts of a run, each by its name in result.json, and its signals."""
    opened = {name: run.store.open(made[name]) for name in READ if name in made}
    prediction = opened["prediction"]
    predicted = prediction.json("summary.json")
    trust = trust_of(prediction.arrow("path.parquet").to_pylist(), predicted["tolerance"])
    moved = order_losses(run, opened.get("behaviour_path"))
    leaked = [s["advice"] for s in signals if s["name"] == "heldout_overlap" and s["severity"] == "critical"]
    paired = prediction.manifest.inputs.get("dpo_beta") is not None
    diff = opened["model_diff"].json("summary.json") if "model_diff" in opened else {}
    ends = [each - predicted["heldout_loss_evaluated"] for each in moved]
    task = pair_figures(diff, predicted, ends) if paired else [loss_figure(diff, predicted, ends, null_losses(opened))]
    suites = suite_figures(*(_summary(opened, name) for name in ("behaviour", "behaviour_path")))
    return ShipEvidence(task, suites, trust.at_the_end, trust.words, leaked[0].partition(";")[0] if leaked else "")


READ = ("prediction", "model_diff", "null_deltas", "behaviour", "behaviour_path")


def ship_block(decision: Decision) -> dict[str, Any]:
    """The block `ship` of result.json."""
    return {"verdict": decision.verdict, "reasons": decision.reasons}


def order_losses(run: Run, along: Artifact | None) -> list[float]:
    """Held-out losses at the ends of other orders of the rows: of the variants that the suites were asked at."""
    read = along.manifest.inputs.get("variants") if along is not None else None
    found = run.store.find(read["task"], read["key"]) if read else None
    stored = run.store.open(found).json("variants.json")["variants"] if found else []
    return [each["loss"] for each in stored if each["kind"] == "order"]


def null_losses(opened: Mapping[str, Artifact]) -> list[float]:
    """What random deltas of the prediction's size do to the held-out loss."""
    if "null_deltas" not in opened:
        return []
    return opened["null_deltas"].arrow("nulls.parquet", columns=["loss_change"])["loss_change"].to_pylist()


def loss_figure(
    diff: Mapping[str, Any], predicted: Mapping[str, Any], ends: Sequence[float], nulls: Sequence[float]
) -> Measured:
    """The held-out loss; of the path's own losses where there is no model diff, and then without an interval."""
    base, new = predicted["heldout_loss_base"], predicted["heldout_loss_evaluated"]
    noise = [abs(each) for each in (*ends, *nulls)]
    return Measured(
        name="heldout_loss",
        base=diff.get("heldout_loss_base", base),
        predicted=diff.get("heldout_loss_new", new),
        change=diff.get("heldout_loss_change", new - base),
        low=diff.get("heldout_loss_change_low"),
        high=diff.get("heldout_loss_change_high"),
        floor=max(noise) if noise else None,
        direction="lower",
        unit=NATS,
        count=diff.get("heldout_rows"),
        counted="rows",
        floor_from=noise_in_words(len(nulls), len(ends)),
    )


def pair_figures(diff: Mapping[str, Any], predicted: Mapping[str, Any], ends: Sequence[float]) -> list[Measured]:
    """The win rate over the pairs, with its interval; and the held-out pairs' loss, on which noise is measured."""
    pairs = diff.get("compared_pairs", 0)
    won, lost = (diff.get(f"flips_to_{way}", 0) for way in ("won", "lost"))
    low, high = rate_interval(won, lost, pairs) if pairs > 1 else (None, None)
    base, new = predicted["heldout_loss_base"], predicted["heldout_loss_evaluated"]
    noise = [abs(each) for each in ends]
    rates = diff.get("win_rate_base", 0.0), diff.get("win_rate_new", 0.0)
    rate = Measured(
        "win_rate", *rates, rates[1] - rates[0], low, high, 0.0, "higher", "share of the pairs", pairs, "pairs", "",
    )  # fmt: skip
    loss = Measured(
        "preference_loss", base, new, new - base, None, None, max(noise) if noise else None, "lower", "nats per pair",
        pairs, "pairs", noise_in_words(None, len(ends)), needs_interval=False,
    )  # fmt: skip
    return [rate, loss]


def rate_interval(to_won: int, to_lost: int, pairs: int, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of the change of a win rate over pairs: their resampled counts are multinomial."""
    import numpy as np

    shares = [to_won / pairs, to_lost / pairs, (pairs - to_won - to_lost) / pairs]
    drawn = np.random.default_rng(seed).multinomial(pairs, shares, size=draws)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / pairs, [0.025, 0.975])
    return float(low), float(high)


def suite_figures(summary: Mapping[str, Any] | None, along: Mapping[str, Any] | None) -> list[Measured]:
    """Every suite over all its items; its floor is over those that were asked along the path."""
    bands = {each["suite"]: each for each in along["suites"]} if along else {}
    found = []
    for suite in summary["suites"] if summary else []:
        band = bands.get(suite["suite"], {})
        floor = band.get("band")
        orders, nulls = (len(band.get(kind, ())) for kind in ("orders", "nulls"))
        said = noise_in_words(nulls, orders, "behaviour.path.nulls: 2")
        figure = Measured(
            suite["suite"], suite["base"], suite["predicted"], suite["change"], suite["low"], suite["high"], floor,
            suite["direction"], suite["unit"], suite["n"], "items",
            said if floor is None else f"{said} on {band['n']} items",
        )  # fmt: skip
        found.append(figure)
    return found


def noise_in_words(nulls: int | None, orders: int, setting: str = SETTING_OF_NULLS) -> str:
    """What a floor is of; without any noise, the settings that measure it. `nulls` None: they do not apply."""
    told = [f"{nulls} null deltas"] if nulls else []
    told += [f"{orders} other order{'s'[: orders != 1]}"] if orders else []
    if told:
        return " and ".join(told)
    settings = [SETTING_OF_ORDERS] if nulls is None else [setting, SETTING_OF_ORDERS]
    return f"set {' or '.join(settings)} (and a LoRA adapter, for other orders)"


def _summary(opened: Mapping[str, Artifact], name: str) -> Any:
    return opened[name].json("summary.json") if name in opened else None
