"""Tables of the report: the rows behind the charts, cut to the length that the settings allow."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from foretune.tasks.report.concepts import moving_order

if TYPE_CHECKING:
    from pandas import DataFrame

    from foretune.tasks.report.settings import ReportSettings
    from foretune.tasks.report.views import ReportView


@dataclass(frozen=True)
class Column:
    title: str
    key: str
    kind: Literal["number", "signed", "text", "code", "flags", "verdict"] = "number"


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


def _both_ends(frame: DataFrame, column: str, top: int) -> list[dict[Hashable, Any]]:
    """The `top` largest and the `top` smallest rows of `column`, largest first, none twice."""
    ordered = frame.sort_values(column, ascending=False, kind="stable")
    ends = ordered if len(ordered) <= 2 * top else ordered.iloc[[*range(top), *range(-top, 0)]]
    return ends.to_dict("records")


def _moved(features: DataFrame, column: str, top: int) -> list[dict[Hashable, Any]]:
    """The `top` features that rise and that fall most, largest first, in the order of terminal and result.json."""
    rising, falling = moving_order(features[column].tolist(), features["z"].tolist() if "z" in features else None)
    return features.iloc[[*rising[:top], *reversed(falling[:top])]].to_dict("records")


def flagged_rows(samples: DataFrame, top: int) -> Table | None:
    """Rows with at least one flag, the most flagged first; duplicates name the row that they repeat."""
    flagged = samples[samples["flags"].map(len) > 0]
    worst = flagged.loc[flagged["flags"].map(len).sort_values(ascending=False, kind="stable").index].head(top)
    row_of = dict(zip(samples["sample_id"], samples["row"], strict=True))
    columns = (
        Column("row", "row"),
        Column("flags", "flags", "flags"),
        Column("tokens", "tokens"),
        Column("trained", "trained_tokens"),
        Column("same as row", "original"),
        Column("text", "text", "text"),
    )
    originals = [row_of.get(original) for original in worst["duplicate_of"]]
    caption = f"{len(worst):,} of {len(flagged):,} flagged rows"
    return _table(caption, columns, worst.assign(original=originals).astype({"original": object}).to_dict("records"))  # pyright: ignore[reportArgumentType]


def influential_rows(rows: DataFrame, top: int) -> Table | None:
    """Both ends of the influence ranking, most harmful first."""
    columns = (
        Column("rank", "rank"),
        Column("row", "row"),
        Column("score", "score", "signed"),
        Column("z", "z", "signed"),
        Column("verdict", "verdict", "verdict"),
        Column("outlier", "outlier", "code"),
        Column("moves held-out rows", "nearest", "text"),
        Column("text", "text", "text"),
    )
    records = _both_ends(rows, "score", top)
    return _table(f"{len(records):,} of {len(rows):,} rows, most harmful first", columns, records)


def scored_tokens(tokens: DataFrame) -> Table | None:
    """The label tokens of one sample with their share of its score, in order."""
    columns = (Column("position", "position"), Column("token", "token", "code"), Column("share", "share", "signed"))
    labels = tokens[tokens["label"]]
    return _table(f"{len(labels):,} tokens of the chosen row", columns, labels.to_dict("records"))


def moving_features(features: DataFrame, top: int) -> Table | None:
    """Both ends of the feature changes: by what was measured, with the estimates beside it."""
    columns = (
        Column("feature", "feature", "code"),
        Column("concept", "label", "text"),
        Column("now", "base_act"),
        *([Column("change", "change", "signed"), Column("z", "z", "signed")] if "change" in features else []),
        Column("predicted change", "predicted_change", "signed"),
        Column("score", "score", "signed"),
        Column("dormant", "dormant", "code"),
    )
    records = _moved(features, "change" if "change" in features else "predicted_change", top)
    return _table(f"{len(records):,} features of {len(features):,}", columns, records)


def changed_features(features: DataFrame, top: int) -> Table | None:
    """Both ends of the feature changes measured on the checkpoint."""
    columns = (
        Column("feature", "feature", "code"),
        Column("concept", "label", "text"),
        Column("base", "base"),
        Column("checkpoint", "new"),
        Column("change", "change", "signed"),
        Column("z", "z", "signed"),
    )
    records = _moved(features, "change", top)
    return _table(f"{len(records):,} features of {len(features):,}", columns, records)


def preference_pairs(pairs: DataFrame, top: int) -> Table | None:
    """The pairs of lowest margin."""
    columns = (
        Column("margin (nats)", "margin_raw", "signed"),
        Column("per token", "margin_per_token", "signed"),
        Column("against the reference", "margin_reference", "signed"),
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
    """The probes whose next-token distribution moves most."""
    columns = (
        Column("KL (nats per token)", "kl"),
        Column("perplexity, base", "perplexity_base"),
        Column("perplexity, checkpoint", "perplexity_new"),
        Column("text", "text", "text"),
    )
    largest = probes.sort_values("kl", ascending=False, kind="stable").head(top)
    return _table(f"{len(largest):,} of {len(probes):,} probes", columns, largest.to_dict("records"))


def passes(timeline: Sequence[Mapping[str, Any]]) -> Table | None:
    """Every pass that the run computed with what it cost."""
    columns = (
        Column("pass", "label", "code"),
        Column("start (s)", "start"),
        Column("seconds", "seconds"),
        Column("forward passes over the training rows", "forward_passes"),
    )
    return _table(f"{len(timeline):,} passes", columns, timeline)


def report_tables(view: ReportView, settings: ReportSettings) -> dict[str, Table | None]:
    """All tables of the page by name; None where the pass did not run or has no rows to show."""
    top_features, top_rows = settings.top_features, settings.top_rows
    long = 2 * top_rows
    probes = view.model_diff.probes if view.model_diff else None
    tokens = view.influence.tokens if view.influence else None
    return {
        "flagged-rows": view.quality and flagged_rows(view.quality.samples, long),
        "moving-features": view.features and moving_features(view.features.features, top_features),
        "influential-rows": view.influence and influential_rows(view.influence.rows, top_rows),
        "scored-tokens": scored_tokens(tokens) if tokens is not None else None,
        "preference-pairs": view.preference and preference_pairs(view.preference.pairs, long),
        "moved-modules": view.prediction and moved_modules(view.prediction.layers, long),
        "changed-features": view.sae_diff and changed_features(view.sae_diff.features, top_features),
        "probe-texts": probe_texts(probes, long) if probes is not None else None,
    }
