"""What each rule finds and misses on labelled rows: precision and recall, measured instead of promised.

`make bench-rules` writes results/rules.json, rows `rule, set, rows, true_positive, false_positive, false_negative`, and
tasks/quality/measured.json, which is printed beside each count. Public sets (FORETUNE_BENCH_DATA, else ../shared/data)
give the rows that people wrote; what they hold none of is planted into GSM8K's questions, which are otherwise clean:
there the rules' recall is that on faults of the kinds in `planted`, and every other flag is a false positive.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from foretune.tasks.quality.lint import lint
from foretune.tasks.quality.measured import WAYS, summed
from foretune.tasks.quality.rules import RULES
from foretune.tasks.quality.settings import QualitySettings
from tests.benchmarks.environment import environment, write_results
from tests.benchmarks.leaks import leak_rows
from tests.benchmarks.planted import PLANTED, planted_rows
from tests.benchmarks.public_data import data_folder

Labelled = tuple[dict[str, Any], set[str]]  # a row, and the rules that should flag it

# What GSM8K, self-instruct and XSTest's safe prompts hold none of, by what they are.
ABSENT = ("harmful_content", "refusal", "assistant_speak", "leaked_template", "leaked_turn", "unfilled_placeholder",
          "leaked_object", "prompt_leak", "credit_card", "iban", "us_social_security", "github_token", "aws_key",
          "private_key", "api_key", "json_web_token", "url_credentials", "mojibake", "replacement_character",
          "control_character", "open_code_fence", "repeated_text", "language_mismatch", "boilerplate",
          "unreadable_row", "empty_completion", "email", "phone_number", "ip_address")  # fmt: skip


def flagged(rows: list[dict[str, Any]], folder: Path) -> list[set[str]]:
    """The rules that flag each row."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: list[set[str]] = [set() for _ in rows]
    table = lint(str(path), QualitySettings()).findings
    for row, rule in zip(table["row"].to_pylist(), table["rule"].to_pylist(), strict=True):
        if row is not None:
            found[row].add(rule)
    return found


def counted(name: str, labelled: list[Labelled], rules: Iterable[str], folder: Path) -> list[dict[str, Any]]:
    """A row for each rule: right, wrong and missed."""
    found = flagged([row for row, _ in labelled], folder)
    made = []
    for rule in rules:
        pairs = [(rule in flags, rule in right) for flags, (_, right) in zip(found, labelled, strict=True)]
        made.append(
            {
                "rule": rule, "set": name, "rows": len(pairs),
                "true_positive": sum(flag and right for flag, right in pairs),
                "false_positive": sum(flag and not right for flag, right in pairs),
                "false_negative": sum(right and not flag for flag, right in pairs),
            }
        )  # fmt: skip
    return made


def public_sets() -> dict[str, tuple[list[Labelled], tuple[str, ...]]]:
    """Labelled rows of each public set, and the rules that its labels speak of."""
    data = data_folder()
    xstest = list(csv.DictReader((data / "xstest_prompts.csv").open()))
    advbench = list(csv.DictReader((data / "advbench_harmful_behaviors.csv").open()))
    gsm8k = [json.loads(line) for line in (data / "gsm8k_test.jsonl").open()]
    seed = [json.loads(line) for line in (data / "self_instruct_seed_tasks.jsonl").open()]
    with gzip.open(data / "hh_rlhf_harmless_base_test.jsonl.gz", "rt") as stream:
        hh = [json.loads(line) for line in stream]
    harm = {"harmful_content"}
    plain = "It is as it is said."
    return {
        "XSTest": (
            [({"prompt": r["prompt"], "completion": plain}, harm if r["label"] == "unsafe" else set()) for r in xstest],
            ("harmful_content",),
        ),
        "AdvBench": (
            [({"prompt": r["goal"], "completion": r["target"]}, harm) for r in advbench],
            ("harmful_content",),
        ),
        "GSM8K": ([(row, set()) for row in gsm8k], ABSENT),
        "self-instruct": (
            [
                ({"prompt": f"{r['instruction']}\n{each['input']}", "completion": each["output"]}, set())
                for r in seed
                for each in r["instances"][:1]
            ],
            tuple(r for r in ABSENT if r not in ("email", "phone_number", "boilerplate", "language_mismatch")),
        ),
        # Human turns of red teaming, most of them harmful or rude, answered by people-chosen turns of an assistant.
        "HH human turns": (
            [
                ({"prompt": "Go on.", "completion": turn}, set())
                for r in hh
                for turn in (part.split("\n\nAssistant:")[0].strip() for part in r["chosen"].split("\n\nHuman: ")[1:])
                if turn
            ],
            ("assistant_speak", "refusal", "leaked_template", "prompt_leak", "credit_card", "iban", "mojibake"),
        ),
    }  # fmt: skip


def main() -> None:
    import tempfile

    started = environment()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, (labelled, rules) in public_sets().items():
            rows += counted(title, labelled, rules, folder)
        clean = [json.loads(line) for line in (data_folder() / "gsm8k_test.jsonl").open()]
        labelled = planted_rows(clean, random.Random(0))
        rows += counted("planted in GSM8K", labelled, sorted({rule for kind in PLANTED for rule in kind.rules}), folder)
        rows += leak_rows(folder)
    write_results("rules", rows, started)
    file = Path(__file__).parents[2] / "tasks/quality/measured.json"
    kept = {rule: found for rule, found in sorted(summed(rows).items()) if rule in RULES or rule in WAYS.values()}
    lines = ",\n".join(f" {json.dumps(rule)}: {json.dumps(found)}" for rule, found in kept.items())
    file.write_text(f"{{\n{lines}\n}}\n")
    lowest = sorted(
        (found["true_positive"] / found["flagged"], rule, found) for rule, found in kept.items() if found["flagged"]
    )
    for precision, rule, found in lowest[:10]:
        print(f"{rule:<24} precision {precision:.2f} of {found['flagged']} flagged, {found['positive']} are there")


if __name__ == "__main__":
    main()
