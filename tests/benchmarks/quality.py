"""What vetting a dataset costs: seconds, CPU seconds and memory, by rows; and what each tool finds of planted faults.

`make bench-quality` writes results/quality.json. Rows of mean 400 characters are drawn from GSM8K's and self-instruct's
sentences, with a fault planted into every hundredth; all rules are on. Beside it a loop over a pandas frame with a
dozen regular expressions and `duplicated`, as people write one. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.environment import environment, with_earlier, write_results
from tests.benchmarks.planted import PLANTED, planted_rows
from tests.benchmarks.public_data import data_folder
from tests.benchmarks.vetting_rivals import LINTERS, vetting_rivals

SIZES = (10_000, 100_000, 1_000_000)
CHARACTERS = 400

CHILD = """
import json, resource, sys, time
from {module} import {function} as measured
if __name__ == "__main__":
    began = time.perf_counter()
    found = measured(sys.argv[1])
    seconds = time.perf_counter() - began
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    print(json.dumps(found | dict(seconds=round(seconds, 2), cpu_seconds=round(cpu, 2),
        peak_mb=round(own.ru_maxrss / 1024), peak_mb_of_a_child=round(children.ru_maxrss / 1024))))
"""


def linted(path: str) -> dict[str, Any]:
    """foretune with every rule on."""
    from foretune.tasks.quality.lint import lint
    from foretune.tasks.quality.settings import QualitySettings

    found = lint(path, QualitySettings())
    return {
        "rows": found.summary["rows"], "characters": found.summary["characters"],
        "rules": len(found.summary["counts"]), "findings": found.findings.num_rows,
        "found": {rule: count for rule, count in found.summary["counts"].items() if count},
    }  # fmt: skip


NAIVE = {
    "email": r"[\w.+-]+@[\w-]+\.[\w.]+", "credit_card": r"\b(?:\d[ -]*?){13,16}\b", "phone": r"\+?\d[\d ()-]{8,}\d",
    "ssn": r"\d{3}-\d{2}-\d{4}", "ip": r"\d{1,3}(?:\.\d{1,3}){3}", "aws": r"AKIA[A-Z0-9]{16}",
    "github": r"gh[pousr]_\w{36}", "key": r"-----BEGIN .*PRIVATE KEY", "template": r"<\|\w+\|>|\[/?INST\]",
    "as an AI": r"(?i)as an ai|i'm sorry, but|i cannot", "replacement": "\ufffd", "html": r"</?\w+>",
}  # fmt: skip


def naive(path: str) -> dict[str, Any]:
    """A dozen regular expressions, duplicates and empty answers, over a pandas frame row by row."""
    import re

    import pandas as pd

    frame = pd.read_json(path, lines=True)
    prompt, answer = frame.columns[:2]
    patterns = {name: re.compile(pattern) for name, pattern in NAIVE.items()}
    found = dict.fromkeys((*NAIVE, "empty", "duplicate"), 0)
    characters = 0
    for _, row in frame.iterrows():
        text = f"{row[prompt]} {row[answer]}"
        characters += len(text) - 1
        for name, pattern in patterns.items():
            found[name] += bool(pattern.search(text))
        found["empty"] += not str(row[answer]).strip()
    found["duplicate"] = int(frame.astype(str).duplicated().sum())
    return {
        "rows": len(frame),
        "characters": characters,
        "rules": len(found),
        "findings": sum(found.values()),
        "found": found,
    }


TOOLS = {"foretune": linted, "pandas loop": naive}


def measured(tool: str, path: Path, data: str) -> dict[str, Any]:
    """One tool on one file, in a process of its own."""
    script = path.with_suffix(".py")
    script.write_text(
        CHILD.format(module=__name__.replace("__main__", "tests.benchmarks.quality"), function=TOOLS[tool].__name__)
    )
    done = subprocess.run(
        [sys.executable, str(script), str(path)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    row = json.loads(done.stdout.splitlines()[-1])
    per_row = round(1e6 * row["cpu_seconds"] / row["rows"], 1)
    return {"tool": tool, "data": data, **row, "cpu_microseconds_per_row": per_row}


def commanded(path: Path, data: str) -> dict[str, Any]:
    """The command itself, with its start."""
    import resource

    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("foretune")), "quality", str(path), "--json", "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(done.stdout.splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "tool": "foretune quality, the command", "data": data, "rows": result["rows"],
        "characters": result["characters"], "rules": len(result["counts"]), "findings": sum(result["counts"].values()),
        "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2),
    }  # fmt: skip


def drawn(path: Path, rows: int) -> None:
    """Rows of mean 400 characters, sentence by sentence from public sets; a fault in every hundredth."""
    data = data_folder()
    gsm8k = [json.loads(line) for line in (data / "gsm8k_test.jsonl").open()]
    seed = [json.loads(line) for line in (data / "self_instruct_seed_tasks.jsonl").open()]
    texts = [row["question"] for row in gsm8k] + [row["instruction"] for row in seed]
    words = [word for text in texts for word in text.split()]
    draw = random.Random(rows)
    faults = [row for row, right in planted_rows(gsm8k, random.Random(0)) if right]
    with path.open("w") as stream:
        for number in range(rows):
            if number % 100 == 99:
                row = dict(draw.choice(faults))
            else:
                at = draw.randrange(len(words) - 40)
                asked = " ".join(draw.choices(words, k=16) + words[at : at + 12])
                answer = " ".join(draw.choices(words, k=36) + words[at : at + 12])
                row = {"question": f"{asked}?", "answer": f"{answer}."}
            stream.write(json.dumps(row) + "\n")


def faults_of(folder: Path) -> list[dict[str, Any]]:
    """Fault by fault: how many of each kind foretune and the loop find, and how often they flag a clean row."""
    import re

    from tests.benchmarks.rules import flagged

    clean = [json.loads(line) for line in (data_folder() / "gsm8k_test.jsonl").open()]
    labelled = planted_rows(clean, random.Random(0))
    ours = flagged([row for row, _ in labelled], folder)
    theirs = [
        {name for name, p in NAIVE.items() if re.search(p, f"{row.get('question')} {row.get('answer')}")}
        | ({"empty"} if not row.get("answer", "").strip() else set())
        for row, _ in labelled
    ]
    rows = []
    for kind in PLANTED:
        at = [number for number, (_, right) in enumerate(labelled) if right == set(kind.rules)]
        rows.append(
            {
                "tool": "both", "fault": kind.name, "planted": len(at),
                "foretune": sum(bool(ours[number] & set(kind.rules)) for number in at),
                "pandas loop": sum(bool(theirs[number]) for number in at),
            }
        )  # fmt: skip
    untouched = [number for number, (_, right) in enumerate(labelled) if not right]
    rows.append(
        {
            "tool": "both", "fault": "none: flagged for nothing", "planted": len(untouched),
            "foretune": sum(bool(ours[number]) for number in untouched),
            "pandas loop": sum(bool(theirs[number]) for number in untouched),
        }
    )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    sizes = parser.parse_args().sizes
    started = environment()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gsm8k = folder / "gsm8k.jsonl"
        gsm8k.write_bytes((data_folder() / "gsm8k_test.jsonl").read_bytes())
        rows = [measured(tool, gsm8k, "GSM8K test") for tool in TOOLS] + [commanded(gsm8k, "GSM8K test")]
        faults = folder / "planted.jsonl"
        clean = [json.loads(line) for line in gsm8k.open()]
        faults.write_text("".join(json.dumps(row) + "\n" for row, _ in planted_rows(clean, random.Random(0))))
        rows += [measured(tool, faults, "faults planted in GSM8K") for tool in TOOLS]
        rows += vetting_rivals(faults, "faults planted in GSM8K")
        train = folder / "train.jsonl"
        drawn(train, 7473)
        rows.append(commanded(train, "7473 drawn rows"))
        for size in sizes:
            path = folder / f"{size}.jsonl"
            drawn(path, size)
            tools = TOOLS if size <= 100_000 else ("foretune",)
            rows += [measured(tool, path, f"{size} drawn rows") for tool in tools]
            if size == min(sizes):
                rows += vetting_rivals(path, f"{size} drawn rows", LINTERS)
            path.unlink()
        rows += faults_of(folder)
    write_results("quality", with_earlier("quality", rows, ("tool", "data", "fault")), started)
    for row in rows:
        print({name: value for name, value in row.items() if name != "found"})


if __name__ == "__main__":
    main()
