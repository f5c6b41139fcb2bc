"""What each way of finding leaked rows finds and takes for one: planted into questions of another half of GSM8K."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from foretune.tasks.quality.diversity import all_words
from foretune.tasks.quality.leakage import LeakIndex
from foretune.tasks.quality.measured import WAYS as MEASURED_WAYS
from foretune.tasks.quality.phrases import normal_text
from tests.benchmarks.public_data import data_folder

EACH = 100
WAYS = ("exact", "13 words in a row", "nearly the same words")


def reworded(text: str, share: float, random_: random.Random) -> str:
    """A share of the words left out or replaced, one pair of sentences swapped: a paraphrase as a program writes it."""
    words = text.split()
    for at in random_.sample(range(len(words)), round(share * len(words))):
        words[at] = random_.choice(["", "about", "then", "so", "quite", words[at] + "s"])
    sentences = " ".join(word for word in words if word).split(". ")
    return ". ".join([*sentences[1:], sentences[0]]) if len(sentences) > 2 else ". ".join(sentences)


def leak_rows(_: Path) -> list[dict[str, Any]]:
    """A row a way and a kind: 100 planted leaks of each kind, and the 659 questions of the half that nobody leaked."""
    rows = [json.loads(line) for line in (data_folder() / "gsm8k_test.jsonl").open()]
    draw = random.Random(0)
    draw.shuffle(rows)
    benchmark, clean = rows[:660], rows[660:]
    index = LeakIndex("benchmark_leak", "GSM8K, half")
    for number, row in enumerate(benchmark):
        asked = all_words(normal_text(row["question"]).text)
        index.add(number, [asked, [*asked, *all_words(normal_text(row["answer"]).text)]])
    kinds = {
        "same text": lambda q: q.upper().replace(",", " ,"),
        "inside of a longer text": lambda q: f"Solve the following and explain. {q} Give only the number at the end.",
        "a tenth of the words changed": lambda q: reworded(q, 0.1, draw),
        "a quarter of the words changed": lambda q: reworded(q, 0.25, draw),
        "two fifths of the words changed": lambda q: reworded(q, 0.4, draw),
    }
    wrong = [_way(index, row["question"]) for row in clean]
    made = []
    for kind, change in kinds.items():
        ways = [_way(index, change(row["question"])) for row in draw.sample(benchmark, EACH)]
        for at, way in enumerate(WAYS):
            known = WAYS[: at + 1]  # what this way and the surer ones find together
            right = sum(found in known for found in ways)
            made.append(
                {
                    "rule": f"benchmark_leak, up to {way}", "set": f"{kind}; other half of GSM8K",
                    "rows": EACH + len(clean), "true_positive": right,
                    "false_positive": sum(found in known for found in wrong), "false_negative": EACH - right,
                }
            )  # fmt: skip
    return [*made, *_as_rules(index, benchmark, kinds, wrong, draw)]


def _as_rules(
    index: LeakIndex, benchmark: list[Any], kinds: dict[str, Any], wrong: list[str | None], draw: random.Random
) -> list[dict[str, Any]]:
    """What stands beside a count: each way by itself, and all together, over all kinds of planted leaks."""
    ways = [_way(index, change(r["question"])) for change in kinds.values() for r in draw.sample(benchmark, EACH)]
    sets = f"leaks of {len(kinds)} kinds planted in half of GSM8K, the other half"
    missed = ways.count(None)
    counted = [
        {
            "rule": rule, "set": sets, "rows": len(ways) + len(wrong), "true_positive": sum(w in by for w in ways),
            "false_positive": sum(w in by for w in wrong), "false_negative": sum(w not in by for w in ways),
        }
        for rule, by in (
            *((name, (way,)) for way, name in MEASURED_WAYS.items()), ("heldout_leak", WAYS), ("benchmark_leak", WAYS)
        )
    ]  # fmt: skip
    assert counted[-1]["false_negative"] == missed
    return counted


def _way(index: LeakIndex, text: str) -> str | None:
    found = index.found([all_words(normal_text(text).text)])
    return None if found is None else found[0]
