"""Requests, gates, and what a trigger names, spoiled."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import strategies as st

from tests.hostile.attempts import Case
from tests.hostile.kinds.attempt import Attempt, dumped, escapable, in_words, planned, yaml_text
from tests.hostile.values import (
    PATHS,
    TEXTS,
    damaged_bytes,
    spoiled,
    texts,
    values,
)


def _whole_request() -> dict[str, Any]:
    from foretune.flows.request import parse_request

    whole = parse_request({"dataset": {"path": "d"}, "model": {"name_or_path": "m"}}).model_dump(mode="json")
    for name in ("dataset", "model", "runtime"):
        whole[name] = {
            k: v for k, v in whole[name].items() if k not in ("path", "name_or_path", "root", "heldout", "max_length")
        }
    return whole


@st.composite
def requests(draw: Any) -> Attempt:
    """Every setting with values of every type, unknown keys, and YAML that is none."""
    whole = _whole_request()
    section = draw(st.sampled_from([name for name in whole if isinstance(whole[name], dict)]))
    key = draw(st.sampled_from([*(whole[section] or ["x"]), "x", "version"]))
    value = draw(values)
    how = draw(st.sampled_from(["key", "key", "key", "section", "unknown", "bytes", "override", "overrides"]))
    if how == "bytes":
        data = draw(damaged_bytes(yaml.safe_dump(whole).encode()))

    def prepare(case: Case) -> list[str]:
        if how == "override":
            return planned(
                case, "--set", f"{section}.{key}={value if isinstance(value, str) else dumped(value)}".replace("\0", "")
            )
        if how == "overrides":
            return planned(case, "--set", str(value).replace("\0", ""), "--set", f"{key}={section}")
        if how == "bytes":
            case.request.write_bytes(data)
            return planned(case)
        content = case.content()
        if how == "key":
            content[section] = (content.get(section) or {}) | {key: value}
        elif how == "section":
            content[section] = value
        else:
            content[str(value)] = value
        case.request.write_text(yaml_text(content))
        return planned(case)

    return Attempt(in_words(how, section, key, value), prepare)


@st.composite
def gates(draw: Any) -> Attempt:
    """Gates through `vet`, over a dataset that is not there, so that nothing is simulated."""
    rule = {"number": "heldout_loss_evaluated", "above": 3.0, "verdict": "fail", "severity": "warn", "reason": "agreed"}
    content = draw(spoiled({"version": 1, "rules": [rule, {"signal": "any", "reason": "x"}], "accept_warn": False}))
    data = draw(st.one_of(st.none(), st.none(), damaged_bytes(yaml.safe_dump({"rules": [rule]}).encode())))

    def prepare(case: Case) -> list[str]:
        file = case.folder / "gate.yaml"
        file.write_bytes(data if data is not None else yaml_text(content).encode())
        return ["vet", str(case.request), "--gate", str(file), "--dataset", str(case.folder / "none.jsonl")]

    return Attempt(in_words(content, data), prepare)


@st.composite
def triggers(draw: Any) -> Attempt:
    """What an event's payload may give a vetting: places of datasets that nobody meant."""
    place = draw(st.one_of(st.sampled_from([*PATHS, *TEXTS]), texts))

    def prepare(case: Case) -> list[str]:
        gate = case.folder / "gate.yaml"
        gate.write_text("rules: [{signal: any, reason: x}]\n")
        place_here = (
            place.replace("\0", "")
            .encode(errors="surrogateescape" if escapable(place) else "replace")
            .decode(errors="surrogateescape")
        )
        case.rows.unlink()
        (case.folder / "heldout.jsonl").unlink()  # nothing is simulated
        return ["vet", str(case.request), "--gate", str(gate), f"--dataset={place_here}"]

    return Attempt(in_words(place), prepare)
