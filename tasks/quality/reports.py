"""The findings in the forms that other programs read: Parquet, SARIF 2.1.0, JUnit XML, GitHub's workflow commands."""

from __future__ import annotations

import importlib.metadata
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foretune.storage.display import one_line
from foretune.storage.junit import JUnitCase, junit_document
from foretune.tasks.quality.rules import Rule

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.quality.settings import QualitySettings

SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"info": "note", "warn": "warning", "critical": "error"}
MOST_RESULTS = 25_000
"""GitHub takes so many results of one SARIF run."""
MOST_ANNOTATIONS = 50
"""GitHub shows 10 of each kind of a step, 50 of a job."""


def parquet_bytes(findings: pa.Table) -> bytes:
    """Every finding; columns as in `lint_findings.findings_schema`."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(findings, sink, compression="zstd")
    return sink.getvalue()


def baseline_bytes(findings: pa.Table) -> bytes:
    """What `baseline.read_baseline` reads."""
    known = sorted(set(findings["fingerprint"].to_pylist()))
    return (json.dumps({"version": 1, "fingerprints": known}, indent=0) + "\n").encode()


def message_of(finding: dict[str, Any], rule: Rule) -> str:
    """A finding in one line."""
    where = "the dataset" if finding["row"] is None else f"row {finding['row']}"
    if finding["part"] in ("prompt", "completion", "rejected") and finding["end"]:
        where += f", {finding['part']} {finding['start']}-{finding['end']}"
    what = f" [{finding['what']}]" if finding["what"] and finding["what"] != finding["rule"] else ""
    return one_line(f"{where}: {rule.says}{what}", 500)


def sarif_bytes(findings: pa.Table, dataset: str, settings: QualitySettings) -> bytes:
    """One run of SARIF 2.1.0; lines where the file has some, spans as properties: they count in a part's text."""
    version = importlib.metadata.version("foretune")

    active = settings.active()
    used = [rule for name, rule in active.items() if name in set(findings["rule"].to_pylist())]
    index = {rule.id: number for number, rule in enumerate(used)}
    driver = {
        "name": "foretune", "version": version, "semanticVersion": version,
        "rules": [
            {
                "id": rule.id, "shortDescription": {"text": rule.says},
                "defaultConfiguration": {"level": LEVELS[rule.severity]},
                "properties": {"category": rule.category, "language": rule.language},
            }
            for rule in used
        ],
    }  # fmt: skip
    location = {"artifactLocation": {"uri": _uri(dataset)}}
    results = []
    for finding in findings.slice(0, MOST_RESULTS).to_pylist():
        region = {"region": {"startLine": finding["line"]}} if finding["line"] else {}
        results.append(
            {
                "ruleId": finding["rule"], "ruleIndex": index[finding["rule"]],
                "level": LEVELS[finding["severity"]], "message": {"text": message_of(finding, active[finding["rule"]])},
                "locations": [{"physicalLocation": location | region}],
                "partialFingerprints": {"foretune/v1": finding["fingerprint"]},
                "properties": {name: finding[name] for name in ("row", "part", "start", "end", "sample_id")},
            }
        )  # fmt: skip
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return (json.dumps({"$schema": SARIF, "version": "2.1.0", "runs": [run]}, indent=1) + "\n").encode()


def _uri(dataset: str) -> str:
    from urllib.parse import quote

    return dataset if "://" in dataset else quote(dataset)


def junit_bytes(findings: pa.Table, dataset: str, settings: QualitySettings, rows: int) -> bytes:
    """A test case a rule: it fails where the rule found something that is more than a note."""
    active = settings.active()
    by_rule: dict[str, list[dict[str, Any]]] = {rule: [] for rule in active}
    for finding in findings.to_pylist():
        by_rule[finding["rule"]].append(finding)
    cases = []
    for name, found in by_rule.items():
        rule, said = active[name], "\n".join(message_of(each, active[name]) for each in found[:20])
        failed = found and rule.severity != "info"
        case = JUnitCase(f"quality.{rule.category}", name, text=said)
        if failed:
            case = replace(case, outcome="failure", kind=rule.severity, message=f"{len(found)} findings: {rule.says}")
        cases.append(case)
    return junit_document("foretune quality", dataset, cases, {"rows": str(rows)})


def annotation_lines(findings: pa.Table, dataset: str, settings: QualitySettings) -> Iterator[str]:
    """GitHub's workflow commands, the worst first."""
    active = settings.active()
    kinds = {"info": "notice", "warn": "warning", "critical": "error"}
    order = {"critical": 0, "warn": 1, "info": 2}
    found = sorted(findings.to_pylist(), key=lambda finding: order[finding["severity"]])
    for finding in found[:MOST_ANNOTATIONS]:
        line = f",line={finding['line']}" if finding["line"] else ""
        place = f"file={_property(dataset)}{line},title={_property('foretune ' + finding['rule'])}"
        yield f"::{kinds[finding['severity']]} {place}::{_data(message_of(finding, active[finding['rule']]))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
