"""Which concepts carry the change of the loss, of suites and of answers, as page and result.json tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CAUSES_READ = ("concept_causes", "concept_behaviour", "features")
"""The artefacts that this is told from."""
WORDS = {"gain": "lowers the loss", "cost": "raises the loss", "nothing": "carries nothing"}
CARRYING = {
    "carries": "goes with it",
    "opposes": "works against it",
    "nothing": "carries nothing",
    "unsure": "too few to tell",
}


@dataclass(frozen=True)
class MeasureView:
    """One suite, or the answers, with every concept that was taken back there."""

    name: str
    figures: Mapping[str, Any]  # of summary.json
    rows: Sequence[Mapping[str, Any]]  # of effects.parquet, with label and words

    @property
    def line(self) -> str:
        """How many carry anything of this change."""
        count, carrying = len(self.rows), self.figures["carrying"]
        said = {0: "none", count: "all"}.get(carrying, f"{carrying:,}")
        return f"{said} of {count:,} {'carries' if carrying == 1 else 'carry'} any of it"


@dataclass(frozen=True)
class ConceptCausesView:
    """Concepts that were taken back, those that moved most first."""

    rows: Sequence[Mapping[str, Any]]  # of causes.parquet, with label and words
    figures: Mapping[str, Any]  # summary.json
    measures: Sequence[MeasureView] = ()
    left_out: Sequence[Mapping[str, str]] = ()  # suites that were not tried, and why

    @property
    def untried(self) -> list[tuple[str, str]]:
        """(reason, its suites)."""
        reasons = dict.fromkeys(each["reason"] for each in self.left_out)
        named = {
            why: [each["suite"].replace("_", " ") for each in self.left_out if each["reason"] == why] for why in reasons
        }
        return [(why, ", ".join(names)) for why, names in named.items()]

    @property
    def line(self) -> str:
        """How many carry anything."""
        count, carrying = len(self.rows), self.figures["carrying"]
        if not count:
            return "No concept moved beyond its noise: none was taken back."
        said = {0: "None", count: "All"}.get(carrying, f"{carrying:,}")
        return f"{said} of {count:,} concepts that moved most {'carries' if carrying == 1 else 'carry'} any of it."


def concept_causes_view(
    rows: Sequence[Mapping[str, Any]],
    labels: Mapping[int, str | None],
    summary: Mapping[str, Any],
    effects: Sequence[Mapping[str, Any]] = (),
    behaviour: Mapping[str, Any] | None = None,
) -> ConceptCausesView:
    """Of causes.parquet, the concepts' labels, and summary.json; `effects` and `behaviour` are the same of suites and
    answers."""
    told = [_told(row, labels, WORDS) for row in rows]
    measured = behaviour["measures"] if behaviour else []
    measures = [
        MeasureView(
            each["measure"].replace("_", " "),
            each,
            [_told(row, labels, CARRYING) for row in effects if row["measure"] == each["measure"]],
        )
        for each in measured
    ]
    return ConceptCausesView(told, summary, measures, behaviour["left_out"] if behaviour else ())


def opened_concept_causes(opened: Mapping[str, Any]) -> ConceptCausesView:
    """Of a run's opened artefacts, by their names."""
    held, named = opened["concept_causes"], opened["features"].arrow("features.parquet", columns=["feature", "label"])
    labels = {row["feature"]: row["label"] for row in named.to_pylist()}
    told = held.arrow("causes.parquet").to_pylist(), labels, held.json("summary.json")
    if "concept_behaviour" not in opened:
        return concept_causes_view(*told)
    beside = opened["concept_behaviour"]
    return concept_causes_view(*told, beside.arrow("effects.parquet").to_pylist(), beside.json("summary.json"))


def _told(row: Mapping[str, Any], labels: Mapping[int, str | None], words: Mapping[str, str]) -> dict[str, Any]:
    return {**row, "label": labels.get(row["feature"]) or f"#{row['feature']}", "words": words[row["verdict"]]}


def concept_causes_block(view: ConceptCausesView) -> dict[str, Any]:
    """`concept_causes` in result.json: per measure what the change is, and what each concept carries of it."""
    kept = ("feature", "label", "effect", "low", "high", "share", "random", "verdict")
    loss = {"measure": "loss", "unit": "nats per token", **view.figures}
    measures = [(loss, view.rows), *((each.figures, each.rows) for each in view.measures)]
    return {
        "measures": [
            {**figures, "concepts": [{name: row[name] for name in kept} for row in rows]} for figures, rows in measures
        ],
        "left_out": list(view.left_out),
    }
