"""JUnit XML: what a pipeline shows as tests, one for everything that was looked at."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class JUnitCase:
    """One test: it passes, fails, could not be decided (`error`), or was not asked for (`skipped`)."""

    classname: str
    name: str
    outcome: Literal["pass", "failure", "error", "skipped"] = "pass"
    kind: str = ""  # of a failure or an error
    message: str = ""  # of anything but a pass
    text: str = ""  # what is said at length


def junit_document(title: str, suite: str, cases: Sequence[JUnitCase], properties: Mapping[str, str]) -> bytes:
    """One suite of these tests; `suite` is what they are about."""
    outcomes = [case.outcome for case in cases]
    counts = {"tests": len(cases), "failures": outcomes.count("failure"), "errors": outcomes.count("error")}
    counted = {name: str(count) for name, count in counts.items()}
    top = ElementTree.Element("testsuites", {"name": title, **counted})
    skipped = str(outcomes.count("skipped"))
    within = ElementTree.SubElement(top, "testsuite", {"name": _xml(suite), **counted, "skipped": skipped})
    listed = ElementTree.SubElement(within, "properties")
    for name, value in properties.items():
        ElementTree.SubElement(listed, "property", name=name, value=_xml(value))
    for case in cases:
        told = ElementTree.SubElement(within, "testcase", classname=case.classname, name=_xml(case.name))
        if case.outcome != "pass":
            said = ElementTree.SubElement(told, case.outcome, {"type": case.kind} if case.kind else {})
            said.set("message", _xml(case.message))
            said.text = _xml(case.text)
        elif case.text:
            ElementTree.SubElement(told, "system-out").text = _xml(case.text)
    return ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    """Without what XML 1.0 cannot hold."""
    return _NOT_XML.sub("?", text)
