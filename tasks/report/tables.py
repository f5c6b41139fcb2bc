"""Tables of the report: the rows behind the charts, cut to the length that the settings allow."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from foretune.tasks.report.concepts import UNCLEAR, moving_order, name_test, share

if TYPE_CHECKING:
    from pandas import DataFrame

    from foretune.tasks.report.settings import ReportSettings
    from foretune.tasks.report.spent import PassCost
    from foretune.tasks.report.views import ConceptsView, ReportView


CHANGED = 500
"""Tensors of the table of changed weights, which a reader sorts."""
WITHIN = 3
"""Features within noise that are shown: those that the estimates would have had move most."""


@dataclass(frozen=True)
class Column:
    title: str
    key: str
    kind: Literal["number", "signed", "text", "code", "flags", "verdict", "feature"] = "number"


@dataclass(frozen=True)
class Table:
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]  # one cell per column; missing values are None


def _cell(value: Any) -> Any:
    """A plain Python value, None for what pandas holds as missing."""
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    return None if value is None or value != value else value


def _table(caption: str, columns: Sequence[Column], records: Sequence[Mapping[Any, Any]]) -> Table | None:
    if not records:
        return None
    flags = {column.key for column in columns if column.kind == "flags"}
    rows = [
        [list(record[c.key]) if c.key in flags else _cell(record.get(c.key)) for c in columns] for record in records
    ]
    return Table(caption, columns, rows)


def scored_tokens(tokens: DataFrame) -> Table | None:
    """The label tokens of one sample with their share of its score, in order."""
    columns = (
        Column("position", "position"),
        Column("token", "token", "code"),
        Column("share (nats per token)", "share", "signed"),
    )
    labels = tokens[tokens["label"]]
    return _table(f"{len(labels):,} tokens of the chosen row", columns, labels.to_dict("records"))


def concepts(view: ConceptsView, top: int) -> Table | None:
    """A line per family that moves beyond its noise, then what the estimates would have had move and noise explains."""
    columns = (
        Column("concept", "label", "text"),
        Column("feature", "feature", "feature" if view.browsed else "code"),
        Column("measured", "verdict", "text"),
        Column("change (activation)", "change", "signed"),
        Column("standard error", "error"),
        Column("z over rows", "z", "signed"),
        Column("z among null deltas", "z_null", "signed"),
        Column("fires on (share of tokens)", "fires", "text"),
        Column("halves of the rows agree", "stable", "code"),
        Column("features like it", "alike"),
        Column("name from", "named", "text"),
        Column("estimated: tangent", "predicted_change", "signed"),
        Column("estimated: score", "score", "signed"),
    )
    rows = view.rows
    leaders = rows[(rows["feature"] == rows["family"]) & rows["beyond_noise"]].to_dict("records")
    rising, falling = moving_order([row["change"] for row in leaders])
    chosen = [leaders[n] for n in (*rising[:top], *reversed(falling[:top]))]
    within = rows[~rows["beyond_noise"]]
    order = within["predicted_change"].abs().sort_values(ascending=False, kind="stable").index
    chosen += within.loc[order].head(WITHIN).to_dict("records")
    records = [_concept(row) for row in chosen]
    caption = f"{len(leaders):,} concepts move beyond noise, of {len(rows):,} features; the most strengthened first"
    return _table(caption, columns, records)


def _concept(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    plain = {str(name): value for name, value in row.items()}
    return {
        **plain,
        "label": plain["label"] or UNCLEAR,
        "fires": f"{share(plain['fires_new'])}, was {share(plain['fires_base'])}",
        "stable": bool(plain["stable"]) if "stable" in plain else None,
        "alike": plain["members"] - 1 if plain["members"] > 1 else None,
        "named": name_test(plain),
    }


def preference_pairs(pairs: DataFrame, top: int) -> Table | None:
    """The pairs of lowest margin."""
    columns = (
        Column("margin (nats)", "margin_raw", "signed"),
        Column("margin (nats per token)", "margin_per_token", "signed"),
        Column("against the reference (nats)", "margin_reference", "signed"),
        Column("text", "text", "text"),
    )
    lowest = pairs.sort_values("margin_per_token", kind="stable").head(top)
    return _table(f"{len(lowest):,} of {len(pairs):,} pairs, lowest margin first", columns, lowest.to_dict("records"))


def moved_modules(layers: DataFrame, top: int) -> Table | None:
    """The modules whose predicted change is largest."""
    columns = (
        Column("module", "module", "code"),
        Column("K_ii", "K_ii"),
        Column("eta_eff", "eta_eff"),
        Column("norm of the change", "norm"),
        Column("clipped", "clipped", "code"),
    )
    largest = layers.sort_values("norm", ascending=False, kind="stable").head(top)
    return _table(
        f"{len(largest):,} of {len(layers):,} modules, largest change first",
        columns,
        largest.to_dict("records"),
    )


def probe_texts(probes: DataFrame, top: int) -> Table | None:
    """The probes whose perplexity changes most."""
    columns = (
        Column("KL (nats per token)", "kl"),
        Column("perplexity, base (equally likely tokens)", "perplexity_base"),
        Column("perplexity, predicted model (equally likely tokens)", "perplexity_new"),
        Column("text", "text", "text"),
    )
    from foretune.tasks.report.charts.losses import by_change

    largest = by_change(probes).head(top)
    return _table(f"{len(largest):,} of {len(probes):,} probes", columns, largest.to_dict("records"))


def suites(figures: Sequence[Mapping[str, Any]]) -> Table | None:
    """Every behaviour suite with its interval."""
    columns = (
        Column("suite", "title", "text"),
        Column("items", "n"),
        Column("base", "base"),
        Column("predicted", "predicted"),
        Column("change", "change", "signed"),
        Column("from", "low", "signed"),
        Column("to", "high", "signed"),
        Column("rise", "up"),
        Column("fall", "down"),
        Column("p (sign test)", "p"),
        Column("verdict", "verdict", "text"),
        Column("score", "unit", "text"),
    )
    rows = [{**each, "title": str(each["suite"]).replace("_", " ")} for each in figures]
    return _table(f"{len(figures)} suites, {sum(each['n'] for each in figures):,} items", columns, rows)


def suites_on_the_way(figures: Sequence[Mapping[str, Any]]) -> Table | None:
    """Every suite that was asked along the path, with its band and where it leaves it."""
    columns = (
        Column("suite", "title", "text"),
        Column("items", "n"),
        Column("change at the end", "change", "signed"),
        Column("band", "band"),
        Column("beyond it from step", "leaves_at"),
        Column("last step within", "last_within"),
        Column("gain there", "gain", "text"),
    )
    rows = [
        {
            **each,
            "title": str(each["suite"]).replace("_", " "),
            "change": each["curve"][-1]["change"],
            "gain": "" if each["gain_within"] is None else f"{each['gain_within']:.0%}",
        }
        for each in figures
    ]
    return _table(f"{len(figures)} suites on the way", columns, rows)


def changed_weights(layers: DataFrame, top: int) -> Table | None:
    """The tensors that move, the largest relative change first."""
    columns = (
        Column("module", "short", "code"),
        Column("relative", "relative"),
        Column("change", "delta_norm"),
        Column("base", "norm_base"),
        Column("cosine", "cosine"),
        Column("stable rank", "stable_rank"),
        Column("singular values", "singular", "code"),
    )
    moved = layers[layers["delta_norm"] > 0]
    if "relative" not in moved:
        return None
    largest = moved.sort_values("relative", ascending=False, kind="stable").head(top).to_dict("records")
    for row in largest:
        row["short"] = _short(row["module"])
        row["singular"] = ", ".join(f"{value:.3g}" for value in row.get("singular_values", []))
    caption = f"{len(largest):,} of {len(moved):,} tensors that change, by norm of the change over norm of the base"
    return _table(caption, columns, largest)


def _short(name: str) -> str:
    """A tensor's name without what all have."""
    return name.removeprefix("model.").removesuffix(".weight")


def directions(read: DataFrame, summary: Mapping[str, Any]) -> Table | None:
    """The first directions of the changes, as the tokens at their two ends."""
    columns = (
        Column("module", "short", "code"),
        Column("direction", "rank"),
        Column("stream", "side", "code"),
        Column("singular value", "singular_value"),
        Column("share", "share"),
        Column("promotes, or is excited by", "up", "code"),
        Column("suppresses, or is damped by", "down", "code"),
    )
    rows = [
        {
            **row,
            "short": _short(row["module"]),
            "up": " · ".join(row["promoted"]),
            "down": " · ".join(row["suppressed"]),
        }
        for row in read.to_dict("records")
    ]
    modules, of = summary.get("modules_read"), summary.get("readable_modules")
    return _table(f"first directions of {modules} of {of} modules at the residual stream, as tokens", columns, rows)


def passes(timeline: Sequence[Mapping[str, Any]]) -> Table | None:
    """Every pass that the run computed with what it cost."""
    columns = (
        Column("pass", "label", "code"),
        Column("start (s)", "start"),
        Column("seconds", "seconds"),
        Column("forward passes over the training rows", "forward_passes"),
    )
    return _table(f"{len(timeline):,} passes", columns, timeline)


def planned_passes(costs: Sequence[PassCost]) -> Table | None:
    """What the computed passes spent, against what was planned for them."""
    columns = (
        Column("task", "task", "code"),
        Column("forward passes", "forward_passes"),
        Column("planned", "planned_forward_passes"),
        Column("told as", "bound", "text"),
        Column("seconds", "seconds"),
        Column("seconds planned", "planned_seconds"),
    )
    return _table("forward passes and seconds spent, and planned", columns, [asdict(cost) for cost in costs])


def report_tables(view: ReportView, settings: ReportSettings) -> dict[str, Table | None]:
    """All tables of the page by name; None where the pass did not run or has no rows to show."""
    top_features, long = settings.top_features, 2 * settings.top_rows
    diff = view.model_diff
    probes = diff.probes if diff else None
    tokens = view.influence.tokens if view.influence else None
    more = {f"concepts-{n}": concepts(each, top_features) for n, each in enumerate(view.more_concepts, start=2)}
    return {
        **more,
        "concepts": view.concepts and concepts(view.concepts, top_features),
        "scored-tokens": scored_tokens(tokens) if tokens is not None else None,
        "preference-pairs": view.preference and preference_pairs(view.preference.pairs, long),
        "moved-modules": view.prediction and moved_modules(view.prediction.layers, long),
        "suites-on-the-way": view.behaviour_path and suites_on_the_way(view.behaviour_path.suites),
        "suites": view.behaviour and suites([each.figures for each in view.behaviour.suites]),
        "probe-texts": probe_texts(probes, long) if probes is not None else None,
        "changed-weights": diff and changed_weights(diff.layers, CHANGED),
        "directions": directions(diff.directions, diff.summary) if diff and diff.directions is not None else None,
    }
