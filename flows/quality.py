"""A dataset vetted without a model: what was found, against what is known, and the files that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pydantic

from foretune.flows.settings_files import first_fault, read_settings
from foretune.storage.errors import BadInput
from foretune.tasks.quality.settings import QualitySettings

if TYPE_CHECKING:
    from foretune.tasks.quality.lint_findings import Linting

SEVERITIES = ("info", "warn", "critical")


@dataclass(frozen=True)
class Wanted:
    """What is vetted, by which rules, against what."""

    dataset: str
    rules: str | None = None
    off: tuple[str, ...] = ()
    baseline: str | None = None
    heldout: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vetted:
    """The findings that are new, and the result as a program reads it."""

    wanted: Wanted
    settings: QualitySettings
    linting: Linting
    result: dict[str, Any]


def quality_of(wanted: Wanted, fail_on: str = "critical", most: int = 0) -> Vetted:
    """Vet a dataset. BadInput for what is none, and for files of rules and baselines that are none."""
    from foretune.tasks.quality.baseline import read_baseline, without_known
    from foretune.tasks.quality.leakage import leak_index
    from foretune.tasks.quality.lint import lint

    settings = quality_settings(wanted.rules, wanted.off)
    known = read_baseline(wanted.baseline) if wanted.baseline else frozenset()
    leaks = [leak_index("heldout_leak", path) for path in wanted.heldout]
    leaks += [leak_index("benchmark_leak", path) for path in (*wanted.benchmarks, *settings.benchmarks)]
    linting, hidden = without_known(lint(wanted.dataset, settings, leaks=leaks), known, settings)
    return Vetted(wanted, settings, linting, _result(wanted, settings, linting, hidden, fail_on, most))


def quality_settings(path: str | None, off: tuple[str, ...] = ()) -> QualitySettings:
    """The settings of a file of rules, and of what is switched off beside it."""
    content = read_settings(path, "rules") if path else {}
    if "rules" in content:
        raise BadInput(f"rules {path}: a file of rules names no other; take rules out")
    if off:
        content["disabled"] = [*(content.get("disabled") or []), *off]
    try:
        return QualitySettings.model_validate(content)
    except pydantic.ValidationError as error:
        raise BadInput(
            f"{f'rules {path}' if path else '--disable'}: {first_fault(error, QualitySettings, 'rules')}"
        ) from None


def _result(
    wanted: Wanted, settings: QualitySettings, linting: Linting, hidden: int, fail_on: str, most: int
) -> dict[str, Any]:
    from foretune.tasks.quality.measured import measured_line

    summary, active = linting.summary, settings.active()
    order = sorted(
        (rule for rule, count in summary["counts"].items() if count),
        key=lambda rule: (-SEVERITIES.index(active[rule].severity), -summary["counts"][rule], rule),
    )
    rules = [
        {
            "rule": rule, "severity": active[rule].severity, "category": active[rule].category,
            "count": summary["counts"][rule], "says": active[rule].says,
            "first_rows": [row for row in summary["first_rows"].get(rule, []) if row >= 0],
            "measured": measured_line(rule),
        }
        for rule in order
    ]  # fmt: skip
    from_here = SEVERITIES.index(fail_on) if fail_on in SEVERITIES else len(SEVERITIES)
    if summary["willing_harm"]["stops"] and summary["counts"].get("harmful_content"):
        # Keywords alone are a warning; rows that ask for harm and answer willingly are what stops a run.
        harm = next(rule for rule in rules if rule["rule"] == "harmful_content")
        harm |= {"severity": "critical", "says": f"{summary['willing_harm']['count']:,} rows that answer willingly"}
    crossing = [rule for rule in rules if SEVERITIES.index(rule["severity"]) >= from_here]
    count = sum(rule["count"] for rule in crossing)
    verdict = "fail" if count > most else "pass"
    why = ", ".join(f"{rule['rule']} {rule['count']:,}" for rule in crossing[:5])
    line = f"fail: {why}" if verdict == "fail" else "pass: nothing new at or above the severity that fails"
    return {
        "dataset": wanted.dataset, "verdict": verdict, "line": line, "fail_on": fail_on, "known": hidden,
        **{name: summary[name] for name in
           ("rows", "characters", "flagged_rows", "counts", "willing_harm", "overlap", "languages", "forms")},
        "rules": rules,
    }  # fmt: skip


def write_reports(found: Vetted, wanted: dict[str, str | None], force: bool) -> dict[str, str]:
    """Every report that is asked for: kind -> file."""
    from foretune.storage.outputs import checked_output, write_output
    from foretune.tasks.quality import reports

    table, dataset = found.linting.findings, found.wanted.dataset
    made = {
        "baseline": lambda: reports.baseline_bytes(table),
        "findings": lambda: reports.parquet_bytes(table),
        "sarif": lambda: reports.sarif_bytes(table, dataset, found.settings),
        "junit": lambda: reports.junit_bytes(table, dataset, found.settings, found.result["rows"]),
    }
    files = {kind: path for kind, path in wanted.items() if path}
    places = {kind: checked_output(path, dataset, force) for kind, path in files.items()}
    for kind, place in places.items():
        write_output(place, made[kind]())
    return files


def write_fixed(found: Vetted, output: str, force: bool) -> dict[str, Any]:
    """The dataset with what is mechanical mended, in another file."""
    from foretune.storage.outputs import checked_output, write_output
    from foretune.tasks.quality.mending import mended_rows

    place = checked_output(output, found.wanted.dataset, force)
    mended = mended_rows(found.wanted.dataset)
    write_output(place, mended.data)
    return {"file": output, "rows": mended.rows, "changes": mended.changes}
