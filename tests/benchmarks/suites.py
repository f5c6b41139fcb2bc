"""Suites that are made, not written: the bundled arithmetic, and public files of benchmarks as suites of one's own.

`python -m tests.benchmarks.suites arithmetic` writes the bundled suite anew (to the byte as it is stored);
`python -m tests.benchmarks.suites gsm8k gsm8k_test.jsonl suite.jsonl` turns GSM8K's answers into choices among near
misses. XSTest and AdvBench need no conversion: docs/suites.md has the lines of a request that read their CSV files.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BUNDLED = Path(__file__).resolve().parents[2] / "tasks" / "behaviour" / "suites" / "arithmetic.jsonl"
SEED, ITEMS = 20261129, 40
ASKED = "{} Answer with the number alone."
NAMES = ("Ana", "Ben", "Chen", "Dora", "Emil", "Fatma", "Goran", "Hana", "Ivo", "Jun")
THINGS = ("apples", "stamps", "marbles", "books", "coins", "shells", "pencils", "cards", "eggs", "tickets")
HEAD = {
    "name": "arithmetic",
    "measures": "right results of word problems, among near misses",
    "scorer": "choice",
    "direction": "higher",
    "source": "written for foretune by tests/benchmarks/suites.py",
    "licence": "Apache-2.0",
}


def problem(draw: random.Random, kind: int) -> tuple[str, int]:
    """A word problem of one of eight kinds, and its result."""
    a, b, c = draw.randint(6, 40), draw.randint(2, 9), draw.randint(2, 5)
    name, other = draw.sample(NAMES, 2)
    things = draw.choice(THINGS)
    return (
        (f"{name} has {a} {things} and gets {b} more from {other}. How many {things} does {name} have now?", a + b),
        (f"{name} had {a + b} {things} and gave {b} of them to {other}. How many are left?", a),
        (f"A box holds {b} {things}. How many {things} are in {a} such boxes?", a * b),
        (f"{name} shares {b * c} {things} equally among {c} friends. How many does each friend get?", b),
        (f"{name} buys {b} {things} for {c} euros each and pays with {b * c + a} euros. How much is the change?", a),
        (f"{name} reads {a} pages a day for {b} days and then {c} pages more. How many pages are that?", a * b + c),
        (f"{name} is {b} years older than {other}, who is {a}. How old will {name} be in {c} years?", a + b + c),
        (f"{name} sells {a} {things} in the morning, twice as many at noon and {b} in the evening. How many in all?",
         3 * a + b),
    )[kind]  # fmt: skip


def near_misses(draw: random.Random, result: int, most: int = 4) -> tuple[list[str], int]:
    """The result among numbers near to it, in an order that is drawn, and its place."""
    near = {result + step for step in (-10, -3, -2, -1, 1, 2, 3, 10) if result + step > 0}
    options = [result, *draw.sample(sorted(near), min(most - 1, len(near)))]
    draw.shuffle(options)
    return [str(option) for option in options], options.index(result)


def arithmetic() -> Iterable[dict[str, Any]]:
    """The bundled suite, line by line."""
    draw = random.Random(SEED)
    yield {"suite": HEAD}
    for n in range(ITEMS):
        question, result = problem(draw, n % 8)
        options, answer = near_misses(draw, result)
        yield {
            "id": f"arithmetic-{n + 1:03d}",
            "prompt": ASKED.format(question),
            "options": options,
            "answer": answer,
        }


def gsm8k(rows: Iterable[dict[str, str]]) -> Iterable[dict[str, Any]]:
    """GSM8K's test questions as choices: the number after `####` among near misses."""
    draw = random.Random(SEED)
    measures = "right results of GSM8K's questions, among near misses"
    yield {"suite": {"measures": measures, "scorer": "choice", "source": "GSM8K (Cobbe et al. 2021)", "licence": "MIT"}}
    for n, row in enumerate(rows):
        result = int(row["answer"].rsplit("####", 1)[1].replace(",", ""))
        options, answer = near_misses(draw, result)
        yield {"id": f"gsm8k-{n}", "prompt": ASKED.format(row["question"]), "options": options, "answer": answer}


def written(lines: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


if __name__ == "__main__":
    if sys.argv[1] == "arithmetic":
        BUNDLED.write_text(written(arithmetic()), encoding="utf-8")
    else:
        source, target = map(Path, sys.argv[2:])
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        target.write_text(written(gsm8k(rows)), encoding="utf-8")
