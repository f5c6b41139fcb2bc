"""Rows that ask for harm and answer willingly: the severity of keywords, and how many rows it takes to say stop.

One keyword is a word that somebody used. A row counts here when its prompt is strong (a critical keyword, two
different warn ones, or a warn one beside another of any severity), its answer does not decline, and the answer is
flagged too; under a critical keyword any keyword in the answer will do. A keyword that is part of another one found
("kill" in "kill someone") is not a second one. A row without a prompt needs a critical keyword and two more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROWS = 3
SHARE = 0.0015
"""`harmful_content` is critical from three such rows on that are more than this share of all. Of 2,115 ordinary rows
(GSM8K, self-instruct, a Vicuna identity set) none counts, so their true share is below 0.0014 (95 %)."""


def willing_rows(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Row numbers, ascending, of the rows of pass 0 (flags, matches) that count."""
    return sorted(row["row"] for row in rows if is_willing(row))


def is_willing(row: Mapping[str, Any]) -> bool:
    """Whether a row asks for harm and answers willingly."""
    if "harmful_content" not in row["flags"]:
        return False
    prompt, completion = (_keywords(row["matches"], part) for part in ("prompt", "completion"))
    if row["prompt_digest"] is None:
        return "critical" in completion.values() and len(completion) >= ROWS
    if "critical" in prompt.values():
        return bool(completion)
    return _strong(prompt) and (len(completion) >= 2 or any(s != "info" for s in completion.values()))


def stopping_count(rows: int) -> float:
    """More willing rows than this, of so many rows, are critical."""
    return max(ROWS - 1, SHARE * rows)


def _keywords(matches: Sequence[Mapping[str, Any]], part: str) -> dict[str, str]:
    """Keyword -> severity, of one part; without those that are part of another one."""
    found = {m["phrase"]: m["severity"] for m in matches if m["rule"] == "harmful_content" and m["part"] == part}
    stems = [phrase.rstrip("*") for phrase in found]
    return {p: s for p, s in found.items() if not any(p.rstrip("*") in o and o != p.rstrip("*") for o in stems)}


def _strong(keywords: Mapping[str, str]) -> bool:
    severities = list(keywords.values())
    return "critical" in severities or ("warn" in severities and len(severities) >= 2)
