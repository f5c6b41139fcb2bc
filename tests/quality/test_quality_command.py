"""The command `quality` and `diff`: status, reports for other programs, the baseline, mending, versions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from foretune.flows.cli import app
from foretune.flows.quality import quality_settings
from foretune.flows.request import with_rules
from foretune.storage.errors import BadInput
from foretune.tasks.quality.measured import WAYS, measured, measured_line, summed
from foretune.tasks.quality.rules import RULES, builtin_rules
from tests.quality.sarif_schema import SCHEMA

PROJECT = Path(__file__).parents[2]
ROWS = [
    {"prompt": "What does the light mean?", "completion": "It is online and all is well."},
    {"prompt": "Which card?", "completion": "Take 4111 1111 1111 1111 for it. "},
    {"prompt": "Is that so?", "completion": "I donâ€™t think that it is."},
]


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def called(*words: str) -> tuple[int, dict[str, Any], str]:
    """Status, the JSON object of the last line, everything else on stdout."""
    ended = CliRunner().invoke(app, [*words, "--json"], standalone_mode=False)
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    *said, last = ended.stdout.splitlines()
    return int(ended.return_value or 0), json.loads(last), "\n".join(said)


def test_the_status_is_by_severity_and_count(tmp_path):
    path = written(tmp_path / "rows.jsonl", ROWS)
    status, result, said = called("quality", path)
    assert status == 3 and result["verdict"] == "fail" and result["line"] == "fail: credit_card 1"
    assert [rule["rule"] for rule in result["rules"]] == ["credit_card", "mojibake", "untrimmed"]
    assert "precision" in said and "rows of" in said and "4111" not in said
    assert called("quality", path, "--fail-on", "never")[0] == 0
    assert called("quality", path, "--most", "1")[0] == 0
    assert called("quality", path, "--fail-on", "warn", "--most", "1")[0] == 3
    assert called("quality", path, "--disable", "credit_card")[0] == 0
    with pytest.raises(BadInput, match="--fail-on high: give info, warn, critical or never"):
        called("quality", path, "--fail-on", "high")


def test_rows_that_ask_for_harm_and_answer_willingly_fail():
    status, result, _ = called("quality", str(PROJECT / "examples/demo/helpdesk.jsonl"))
    assert (
        status == 3 and result["line"] == "fail: harmful_content 3" and result["willing_harm"]["rows"] == [32, 55, 90]
    )


def test_reports_for_other_programs(tmp_path):
    path = written(tmp_path / "rows.jsonl", ROWS)
    names = {kind: str(tmp_path / kind) for kind in ("findings", "sarif", "junit")}
    _, result, said = called("quality", path, "--annotations", *[w for k, n in names.items() for w in (f"--{k}", n)])
    assert result["written"] == names
    table = pq.read_table(names["findings"]).to_pylist()
    card = next(finding for finding in table if finding["rule"] == "credit_card")
    assert ROWS[1]["completion"][card["start"] : card["end"]] == "4111 1111 1111 1111"
    assert (card["row"], card["line"], card["part"], card["severity"]) == (1, 2, "completion", "critical")

    sarif = json.loads(Path(names["sarif"]).read_text())
    run = sarif["runs"][0]
    assert sarif["version"] == "2.1.0" and run["tool"]["driver"]["name"] == "foretune" and len(sarif["runs"]) == 1
    assert {result["level"] for result in run["results"]} <= {"error", "warning", "note"}
    for each in run["results"]:
        assert run["tool"]["driver"]["rules"][each["ruleIndex"]]["id"] == each["ruleId"] and each["message"]["text"]
        assert each["locations"][0]["physicalLocation"]["region"]["startLine"] == each["properties"]["row"] + 1

    suites = ElementTree.parse(names["junit"]).getroot()
    failed = [case.get("name") for case in suites.iter("testcase") if case.find("failure") is not None]
    assert failed == ["credit_card", "mojibake"] and suites.get("failures") == "2"
    assert suites.get("tests") == str(len(RULES)) == str(len(list(suites.iter("testcase"))))

    lines = [line for line in said.splitlines() if line.startswith("::")]
    assert [re.match(r"::(\w+) file=(.*),line=(\d+),title=foretune (\w+)::", line)[3] for line in lines] == [
        "2",
        "3",
        "2",
    ]
    for name in names.values():
        assert b"4111" not in Path(name).read_bytes()


def test_only_what_is_new_fails(tmp_path):
    path, known = written(tmp_path / "rows.jsonl", ROWS), str(tmp_path / "known.json")
    assert called("quality", path, "--write-baseline", known)[0] == 3
    status, result, _ = called("quality", path, "--baseline", known)
    assert (status, result["known"], result["flagged_rows"]) == (0, 3, 0)
    written(tmp_path / "rows.jsonl", [{"prompt": "Whose?", "completion": "It is 5500005555555559, I say."}, *ROWS])
    status, result, _ = called("quality", path, "--baseline", known)
    assert status == 3 and result["rules"][0]["first_rows"] == [0]
    with pytest.raises(BadInput, match="no baseline of version 1"):
        (tmp_path / "none.json").write_text("{}")
        called("quality", path, "--baseline", str(tmp_path / "none.json"))


def test_mending_writes_another_file_and_says_what(tmp_path):
    path, fixed = written(tmp_path / "rows.jsonl", [*ROWS, ROWS[0]]), str(tmp_path / "fixed.jsonl")
    before = Path(path).read_bytes()
    _, result, said = called("quality", path, "--fix", "-o", fixed)
    assert result["fixed"]["changes"] == {
        "exact copies dropped": 1, "rows with an encoding mended": 1, "rows trimmed": 1,
    }  # fmt: skip
    assert "1 exact copies dropped" in said and Path(path).read_bytes() == before
    assert "I don’t think" in Path(fixed).read_text()
    with pytest.raises(BadInput, match="is the file that is read"):
        called("quality", path, "--fix", "-o", path, "--force")
    with pytest.raises(BadInput, match="give both --fix and -o FILE"):
        called("quality", path, "--fix")


def test_rows_of_held_out_files_are_found(tmp_path):
    asked = "How many routers stand in the hall of the old station by the river?"
    held = written(tmp_path / "held.jsonl", [{"prompt": asked, "completion": "There are seven."}])
    path = written(tmp_path / "rows.jsonl", [*ROWS[:1], {"prompt": asked, "completion": "Nobody knows that."}])
    status, result, _ = called("quality", path, "--heldout", held)
    assert status == 3 and result["line"] == "fail: heldout_leak 1"


def test_versions_differ_by_rows_and_by_what_rules_say(tmp_path):
    old = written(tmp_path / "old.jsonl", [*ROWS, ROWS[0]])
    changed = ROWS[2] | {"completion": "I don’t think that it is."}
    new = written(
        tmp_path / "new.jsonl", [{"prompt": "More?", "completion": "Write to a@b.org then."}, changed, ROWS[0]]
    )
    _, result, said = called("diff", old, new)
    assert [(r["row"], r["flags"]) for r in result["added"]] == [(0, ["email"])]
    assert [(r["row"], r["old_row"], r["flags"], r["had"]) for r in result["changed"]] == [(1, 2, [], ["mojibake"])]
    assert sorted(r["row"] for r in result["removed"]) == [1, 3] and result["kept"] == 1
    assert result["counts"]["credit_card"] == {"old": 1, "new": 0}
    assert "1 rows kept, 1 added, 1 changed, 2 removed" in said


RULE_FILE = """
own:
  - {id: ours, patterns: ['KD-[0-9]{4}'], severity: critical}
disabled: [email]
min_completion_words: 3
"""


def test_a_request_has_the_rules_of_its_file_written_out(tmp_path):
    (tmp_path / "rules.yaml").write_text(RULE_FILE)
    named = str(tmp_path / "rules.yaml")
    assert quality_settings(named, ("untrimmed",)).disabled == ["email", "untrimmed"]
    quality = with_rules({"quality": {"rules": named, "disabled": ["refusal"]}})["quality"]
    assert quality["disabled"] == ["email", "refusal"] and quality["own"][0]["id"] == "ours"
    assert quality["min_completion_words"] == 3 and quality["rules"] == named


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("own: [{id: email}]", "email comes with foretune"),
        ("disabled: [e_mail]", "no rule 'e_mail'; the nearest is email"),
        ("own: [{id: Bad Name}]", "own.1.id"),
        ("colour: red", "unknown key colour"),
        ("[1, 2]", "holds no mapping"),
        ("rules: other.yaml", "names no other"),
        ("own: [{id: empty, phrases: ['*']}]", "holds no word"),
    ],
)
def test_a_file_of_rules_that_is_none_is_one_line(tmp_path, text, said):
    (tmp_path / "rules.yaml").write_text(text)
    with pytest.raises(BadInput, match=re.escape(said)) as caught:
        quality_settings(str(tmp_path / "rules.yaml"))
    assert "\n" not in str(caught.value)


def test_the_figures_beside_a_count_are_those_of_the_benchmark():
    rows = json.loads((PROJECT / "tests/benchmarks/results/rules.json").read_text())["rows"]
    assert measured() == {
        rule: found for rule, found in sorted(summed(rows).items()) if rule in {*RULES, *WAYS.values()}
    }
    assert re.match(
        r"precision 0\.\d\d \(\d+ of \d+ flagged\), recall 0\.\d\d .* rows of XSTest", measured_line("harmful_content")
    )
    assert measured_line("length_bias") is None


def test_every_rule_says_what_it_is_for():
    for name, rule in builtin_rules().items():
        assert name == rule.id and rule.says and rule.category and rule.language
        for pattern in rule.patterns.values():
            re.compile(pattern)
        assert not rule.patterns or rule.needs, f"{name}: patterns without what they need are tried on every text"


def test_what_is_written_for_code_scanning_is_sarif(tmp_path):
    import jsonschema

    rows = [*ROWS, {"prompt": "Is it?", "completion": "\ud83d"}, "no row", {"prompt": "a", "completion": "x\x00y"}]
    pairs = [{"prompt": f"Question {n}?", "chosen": "It is so because of many good things " * 3 + str(n),
              "rejected": f"No {n}"} for n in range(30)]  # fmt: skip
    folder = tmp_path / "a folder, ünd more"
    folder.mkdir()
    results = 0
    for name, each in (("rows.jsonl", rows), ("pairs.jsonl", pairs), ("clean.jsonl", ROWS[:1])):
        called("quality", written(folder / name, each), "--sarif", str(tmp_path / "found.sarif"), "--force")
        sarif = json.loads((tmp_path / "found.sarif").read_text())
        validator = jsonschema.Draft202012Validator(SCHEMA)
        assert not list(validator.iter_errors(sarif))
        results += len(sarif["runs"][0]["results"])
        broken = json.loads(json.dumps(sarif))
        broken["runs"][0]["tool"]["driver"].pop("name")
        assert list(validator.iter_errors(broken))
    assert results > 5


def test_the_hook_runs_in_a_repository(tmp_path):
    """As pre-commit runs it: the hook's entry and arguments, then the files that were changed."""
    (hook,) = yaml.safe_load((PROJECT / ".pre-commit-hooks.yaml").read_text())
    assert hook["id"] == "foretune-quality" and hook["language"] == "python"
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(*words: str) -> str:
        given = ["git", "-c", "user.name=a", "-c", "user.email=a@b.org", *words]
        return subprocess.run(given, cwd=repository, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    written(repository / "good.jsonl", ROWS[:1])
    written(repository / "bad.jsonl", ROWS)
    (repository / "notes.txt").write_text("no dataset")
    git("add", ".")
    staged = [name for name in git("diff", "--cached", "--name-only").split() if re.search(hook["files"], name)]
    assert staged == ["bad.jsonl", "good.jsonl"]
    entry = [str(Path(sys.executable).parent / hook["entry"].split()[0]), *hook["entry"].split()[1:]]
    assert hook.get("require_serial") or hook.get("pass_filenames", True)
    ended = {
        name: subprocess.run([*entry, *hook.get("args", []), name], cwd=repository, capture_output=True, text=True)
        for name in staged
    }
    assert ended["good.jsonl"].returncode == 0, ended["good.jsonl"].stderr
    assert ended["bad.jsonl"].returncode == 3 and "credit_card" in ended["bad.jsonl"].stdout
