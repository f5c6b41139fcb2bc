"""The linter: batches merge exactly, faults are found where they are, broken files are a line or a located finding."""

from __future__ import annotations

import gzip
import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretune.storage.errors import BadInput
from foretune.tasks.quality.baseline import read_baseline, without_known
from foretune.tasks.quality.leakage import leak_index
from foretune.tasks.quality.lint import lint
from foretune.tasks.quality.mending import mended_rows
from foretune.tasks.quality.reports import baseline_bytes
from foretune.tasks.quality.settings import QualitySettings
from tests.benchmarks.planted import PLANTED, planted_rows

CLEAN = {"prompt": "What does the light on the router mean?", "completion": "It is online and all is well."}


def written(path: Any, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def rules_of(path: str, row: int | None = None, **changes: Any) -> set[str]:
    table = lint(path, QualitySettings(**changes)).findings.to_pylist()
    return {each["rule"] for each in table if row is None or each["row"] == row}


def questions(count: int) -> list[dict[str, str]]:
    draw = random.Random(0)
    words = ["apple", "bread", "carriage", "donkey", "elephant", "fountain", "garden", "harbour", "island", "journey"]
    return [
        {
            "question": f"How many of the {' '.join(draw.sample(words, 6))} are there on day {n} with {draw.random()}?",
            "answer": f"There are {n} of them, since {' '.join(draw.sample(words, 7))} was {draw.random()} before.",
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: Any) -> tuple[str, list[tuple[dict[str, Any], set[str]]]]:
    labelled = planted_rows(questions(400), random.Random(1), each=5)
    labelled += [labelled[0]]
    return written(tmp_path_factory.mktemp("planted") / "rows.jsonl", [row for row, _ in labelled]), labelled


def test_batches_and_processes_cannot_be_seen_in_the_result(planted):
    path, _ = planted
    whole = lint(path, QualitySettings(), processes=1)
    for size in (500, 4096, 30_000):
        cut = lint(path, QualitySettings(), processes=1, batch_bytes=size)
        assert cut.findings.equals(whole.findings) and cut.summary == whole.summary


@pytest.mark.slow
def test_two_processes_say_what_one_says(planted):
    path, _ = planted
    one, two = (lint(path, QualitySettings(), processes=n, batch_bytes=5000) for n in (1, 2))
    assert one.findings.equals(two.findings) and one.summary == two.summary


@pytest.mark.parametrize("kind", PLANTED, ids=lambda kind: kind.name.replace(" ", "-"))
def test_a_planted_fault_is_found_where_it_is(planted, kind):
    path, labelled = planted
    found = lint(path, QualitySettings()).findings.to_pylist()
    rows = {each["row"] for each in found if each["rule"] == kind.rules[0]}
    wanted = [n for n, (_, right) in enumerate(labelled) if right == set(kind.rules)]
    others = {n for n, (_, right) in enumerate(labelled) if kind.rules[0] not in right}
    assert len(rows & set(wanted)) >= 0.4 * len(wanted) > 0
    assert len(rows & others) <= 2


def test_the_linter_and_the_pass_count_the_same_duplicates(tmp_path):
    rows = [*questions(30), *questions(3), {"question": "Is it open?", "answer": "Yes it is open today"},
            {"question": "Is it open?", "answer": "No it was closed yesterday"}]  # fmt: skip
    counts = lint(written(tmp_path / "rows.jsonl", rows), QualitySettings()).summary["counts"]
    assert (counts["exact_duplicate"], counts["contradictory"]) == (3, 2)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4111 1111 1111 1111", True), ("4111 1111 1111 1112", False), ("order 4111111111111", False),
        ("5500-0055-5555-5559", True), ("id 1234567890123456", False),
    ],
)  # fmt: skip
def test_a_card_needs_its_check_digit(tmp_path, text, found):
    path = written(tmp_path / "rows.jsonl", [CLEAN | {"completion": f"Take {text} for it."}])
    assert ("credit_card" in rules_of(path)) is found


@pytest.mark.parametrize(
    ("text", "found"),
    [("DE89 3704 0044 0532 0130 00", True), ("GB82WEST12345698765432", True), ("DE89 3704 0044 0532 0130 01", False),
     ("XX89 3704 0044 0532 0130 00", False)],
)  # fmt: skip
def test_an_account_needs_its_check_digits(tmp_path, text, found):
    path = written(tmp_path / "rows.jsonl", [CLEAN | {"completion": f"Pay to {text} please."}])
    assert ("iban" in rules_of(path)) is found


def test_a_token_needs_its_checksum(tmp_path):
    from tests.benchmarks.planted import github

    token = github(random.Random(3))
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    path = written(tmp_path / "rows.jsonl", [CLEAN | {"completion": f"Use {each} now."} for each in (token, wrong)])
    assert "github_token" in rules_of(path, 0) and "github_token" not in rules_of(path, 1)


def test_no_report_holds_the_secret_that_it_found(tmp_path):
    secret = "AKIAQWERTYUIOPASDFGH"
    table = lint(written(tmp_path / "rows.jsonl", [CLEAN | {"completion": f"Key {secret} is it"}]), QualitySettings())
    assert "aws_key" in table.findings["rule"].to_pylist() and secret not in str(table.findings.to_pylist())


def test_own_rules_join_in_and_others_are_switched_off(tmp_path):
    path = written(tmp_path / "rows.jsonl", [CLEAN | {"completion": "The kaboom at a@b.org is near."}])
    assert rules_of(path) == {"email"}
    own = [{"id": "loud", "patterns": ["k[a]boom"], "severity": "critical"}]
    assert rules_of(path, own=own, disabled=["email"]) == {"loud"}
    assert rules_of(path, own=[{"id": "loud", "phrases": ["kaboo*"]}], disabled=["email"]) == {"loud"}


def test_a_finding_is_suppressed_by_its_row(tmp_path):
    path = written(
        tmp_path / "rows.jsonl",
        [CLEAN | {"completion": "Write to a@b.org."}, {"prompt": "Who?", "completion": "It is c@d.org, I think."}],
    )
    rows = lint(path, QualitySettings()).findings.to_pylist()
    quiet = [{"row": rows[0]["sample_id"][:16], "rules": ["email"]}]
    assert rules_of(path, 0, suppressed=quiet) == set() and "email" in rules_of(path, 1, suppressed=quiet)


def test_a_hostile_pattern_is_bounded_in_time(tmp_path):
    path = written(tmp_path / "rows.jsonl", [CLEAN | {"completion": "a" * 50_000 + "!"}])
    assert "slow" not in rules_of(path, own=[{"id": "slow", "patterns": ["(a+)+$"]}])


@pytest.mark.parametrize("pattern", ["(", "(?=a)", "[z-a]", "a{2,1}"])
def test_a_pattern_that_is_none_is_one_line(tmp_path, pattern):
    path = written(tmp_path / "rows.jsonl", [CLEAN])
    with pytest.raises(BadInput, match="rule bad: pattern .* is none that RE2 takes"):
        rules_of(path, own=[{"id": "bad", "patterns": [pattern]}])


def test_a_baseline_hides_what_is_known_wherever_its_row_stands(tmp_path):
    rows = [CLEAN, {"prompt": "Where to?", "completion": "Write to a@b.org now."}]
    first = lint(written(tmp_path / "old.jsonl", rows), QualitySettings())
    (tmp_path / "known.json").write_bytes(baseline_bytes(first.findings))
    known = read_baseline(str(tmp_path / "known.json"))
    rows = [{"prompt": "Who?", "completion": "Ask c@d.org about it."}, *reversed(rows)]
    after, hidden = without_known(
        lint(written(tmp_path / "new.jsonl", rows), QualitySettings()), known, QualitySettings()
    )
    assert hidden == 1 and [(f["row"], f["rule"]) for f in after.findings.to_pylist()] == [(0, "email")]
    assert after.summary["counts"]["email"] == 1


@pytest.mark.parametrize(
    ("call", "tools", "rule"),
    [
        ({"function": {"name": "find", "arguments": '{"q": "x"}'}}, None, None),
        ({"function": {"name": "find", "arguments": "{q: x}"}}, None, "tool_call_schema"),
        ({"function": {"name": "find", "arguments": "[1]"}}, None, "tool_call_schema"),
        ({"function": {"name": "seek", "arguments": "{}"}}, ["find"], "tool_call_schema"),
        ({"function": {"name": "find", "arguments": "{}"}}, ["find"], "tool_call_schema"),  # q is required
        ({"function": {"name": "find", "arguments": '{"q": 1, "z": 2}'}}, ["find"], "tool_call_schema"),
    ],
)
def test_a_tool_call_says_what_its_tool_takes(tmp_path, call, tools, rule):
    schema = {"properties": {"q": {}}, "required": ["q"]}
    messages = [{"role": "user", "content": "Find it"}, {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "here"}, {"role": "assistant", "content": "It is here."}]  # fmt: skip
    row = {
        "messages": messages,
        "tools": [{"function": {"name": n, "parameters": schema}} for n in tools or []] or None,
    }
    found = rules_of(written(tmp_path / "rows.jsonl", [row]))
    assert found & {"tool_call_schema", "tool_call_pairing"} == ({rule} if rule else set())
    unpaired = {"messages": [messages[0], messages[2], messages[3]]}
    assert "tool_call_pairing" in rules_of(written(tmp_path / "rows.jsonl", [unpaired]))


def test_pairs_told_apart_by_length_alone_are_said_once(tmp_path):
    rows = [{"prompt": f"Question {n}?", "chosen": "It is so because of many good things " * 3 + str(n),
             "rejected": f"No {n}"} for n in range(30)]  # fmt: skip
    found = lint(written(tmp_path / "rows.jsonl", rows), QualitySettings()).findings.to_pylist()
    bias = [each for each in found if each["rule"] == "length_bias"]
    assert len(bias) == 1 and bias[0]["row"] is None and "100% of 30 pairs" in bias[0]["what"]


def test_mending_drops_copies_restores_and_trims_and_says_how_much(tmp_path):
    rows = [CLEAN, CLEAN, {"prompt": "donâ€™t?", "completion": "x\x00y "}, {"prompt": "a", "completion": " one"}]
    mended = mended_rows(written(tmp_path / "rows.jsonl", rows))
    assert mended.changes == {"exact copies dropped": 1, "rows with an encoding mended": 1, "rows trimmed": 1}
    assert [json.loads(line) for line in mended.data.splitlines()][1:] == [
        {"prompt": "don’t?", "completion": "xy"}, {"prompt": "a", "completion": " one"}
    ]  # fmt: skip
    again = tmp_path / "again.jsonl"
    again.write_bytes(mended.data)
    assert mended_rows(str(again)).changes == {}


def test_rows_of_a_benchmark_are_found_word_for_word_in_part_and_reworded(tmp_path):
    asked = questions(60)
    index = leak_index("benchmark_leak", written(tmp_path / "benchmark.jsonl", asked))
    words = asked[7]["question"].split()
    words[::5] = ["well"] * len(words[::5])
    reworded = " ".join(words)
    rows = [
        {"prompt": asked[3]["question"].upper(), "completion": "Something else is said here."},
        {"prompt": f"Here is a story. {asked[5]['question']} {asked[5]['answer']} And so on.", "completion": "Fine."},
        {"prompt": reworded, "completion": "None of the answers that were given."},
        {"prompt": "A question that nobody ever asked about anything like it?", "completion": "No, never at all."},
    ]
    found = lint(written(tmp_path / "rows.jsonl", rows), QualitySettings(), leaks=[index]).findings.to_pylist()
    said = {f["row"]: f["what"] for f in found if f["rule"] == "benchmark_leak"}
    assert said[0] == "exact, row 3 of benchmark.jsonl" and said[1].endswith("row 5 of benchmark.jsonl")
    assert said[1].startswith("13 words in a row") and said[2].startswith("nearly the same words, row 7")
    assert 3 not in said


GOOD = json.dumps(CLEAN)
LINES = {
    "no JSON": "{oops", "half a line": GOOD[:30], "a list": "[1, 2]", "a text": '"text"', "a number": "7",
    "null": "null", "NaN": '{"prompt": NaN, "completion": "x"}', "infinity": '{"prompt": 1e999, "completion": "x"}',
    "single quotes": "{'prompt': 'a', 'completion': 'b'}", "a trailing comma": '{"prompt": "a", "completion": "b",}',
    "no known column": '{"foo": 1}', "an empty object": "{}", "a number for a text": '{"prompt": 1, "completion": "b"}',
    "a list for a text": '{"prompt": "a", "completion": [1]}', "null for a text": '{"prompt": "a", "completion": null}',
    "half a surrogate": '{"prompt": "a", "completion": "\\ud83d"}', "another form": '{"text": "only text here"}',
    "messages without roles": '{"messages": [{"content": "x"}]}', "messages as text": '{"messages": "hello"}',
    "an unknown speaker": '{"conversations": [{"from": "martian", "value": "x"}]}',
    "an empty conversation": '{"messages": []}', "text beside messages":
    '{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}',
    "tools that are no JSON": '{"prompt": "a", "completion": "b", "tools": "{no"}',
    "history that is none": '{"instruction": "a", "output": "b", "history": 7}',
    "too deep": '{"prompt": "a", "completion": ' + "[" * 80 + "]" * 80 + "}",
    "far too deep": '{"prompt": "a", "completion": ' + "[" * 5000 + "]" * 5000 + "}",
    "two objects": GOOD + GOOD, "a number of 5,000 digits": '{"prompt": ' + "9" * 5000 + ', "completion": "b"}',
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_broken_line_is_a_finding_with_its_line(tmp_path, name):
    path = written(tmp_path / "rows.jsonl", [CLEAN, "", LINES[name], CLEAN | {"prompt": "Another one here?"}])
    found = [f for f in lint(path, QualitySettings()).findings.to_pylist() if f["severity"] == "critical"]
    assert [(f["row"], f["line"]) for f in found] == [(1, 3)] and found[0]["what"]


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


FILES = {
    "empty.jsonl": b"", "blank.jsonl": b"\n\n", "empty.json": b"", "empty.csv": b"", "head.csv": b"prompt,completion\n",
    "object.json": b"{}", "number.json": b"7", "broken.json": b"[{", "columns.json": b'{"a": [1], "b": [2]}',
    "semicolons.csv": b"prompt;completion\na;b\n", "ragged.csv": b"prompt,completion\na\n",
    "open.csv": b'prompt,completion\n"a,b\n', "twice.csv": b"prompt,prompt\na,b\n",
    "latin.csv": b"prompt,completion\n\xe9,b\n",
    "unknown.xyz": b"hello", "text.txt": b"hello", "none.parquet": b"", "broken.parquet": b"PAR1junk",
    "damaged.jsonl.gz": gzip.compress(GOOD.encode())[:10] + b"\xff" * 40,
    "cut.jsonl.gz": gzip.compress(GOOD.encode() * 50)[:-9], "none.jsonl.gz": b"plain", "array.jsonl": b"[7]",
    "pointer.jsonl": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    "page.jsonl": b"<!DOCTYPE html>\n<html><body>Please sign in</body></html>\n",
    "picture.jsonl": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\xff\xfe", "pickled.jsonl": b"\x80\x04\x95\x0b\x00]\x94.",
    "wide.jsonl": GOOD.encode("utf-16"), "wide.json": f"[{GOOD}]".encode("utf-16"),
    "wide.csv": "prompt,completion\na,b\n".encode("utf-16"), "mark.jsonl": b"\xef\xbb\xbf",
    "mark.json": b"\xef\xbb\xbf", "nothing.jsonl": b"\x00" * 64, "nothing.csv": b"\x00" * 64,
    "half.json": f"[{GOOD}, ".encode(), "deep.json": b"[" * 5000 + b"]" * 5000, "text.json": b'"text"',
    "trailing.json": f"[{GOOD}] and more".encode(), "null.json": b"null",
    "two_lists.json": f'{{"train": [{GOOD}], "test": [{GOOD}]}}'.encode(),
    "mixed.json": f"[{GOOD}, 7]".encode(), "infinite.json": b'[{"prompt": 1e999, "completion": "x"}]',
    "quotes.csv": b'prompt,completion\n"a"b,c\n', "wider.csv": b"prompt,completion\na,b,c\n",
    "unnamed.csv": b",\na,b\n", "tabs.csv": b"prompt\tcompletion\na\tb\n",
    "twice.jsonl.gz": gzip.compress(gzip.compress(b"x")), "empty.jsonl.gz": gzip.compress(b""),
    "broken.jsonl.zst": b"\x28\xb5\x2f\xfdjunk", "broken.arrow": b"ARROW1\x00\x00junk",
    "no_rows.parquet": _parquet({"prompt": [], "completion": []}),
    "lists.parquet": _parquet({"prompt": [[1]], "b": [2]}),
    "bytes.parquet": _parquet({"prompt": [b"\xff"], "completion": [b"\xfe"]}),
    "nulls.parquet": _parquet({"prompt": [None], "completion": [None]}),
    "cut.parquet": _parquet({"prompt": ["a"], "completion": ["b"]})[:-20],
    "old.xls": b"\xd0\xcf\x11\xe0", "none.gz": b"",
}  # fmt: skip


def test_there_are_forty_kinds_of_broken_files():
    assert len(FILES) >= 40


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    path = str(tmp_path / name)
    try:
        found = lint(path, QualitySettings()).findings.to_pylist()
    except BadInput as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert any(each["severity"] == "critical" and each["row"] is not None for each in found)


def test_bytes_that_are_no_text_are_found_in_their_line(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(GOOD.encode() + b"\n" + b'{"prompt": "caf\xe9", "completion": "x"}\n')
    found = lint(str(tmp_path / "rows.jsonl"), QualitySettings()).findings.to_pylist()
    assert [(f["rule"], f["line"]) for f in found if f["severity"] == "critical"] == [("unreadable_row", 2)]


def test_parquet_and_json_say_what_json_lines_say(tmp_path):
    rows = [{**row, "answer": f"{row['answer']} a{n}@b.org"} for n, row in enumerate(questions(20))]
    lines = lint(written(tmp_path / "rows.jsonl", rows), QualitySettings())
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.json", "rows.parquet"):
        other = lint(str(tmp_path / name), QualitySettings())
        assert other.summary == lines.summary
        assert other.findings["fingerprint"].equals(lines.findings["fingerprint"])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
COLUMNS = st.sampled_from(
    ["prompt", "completion", "messages", "text", "chosen", "rejected", "tools", "role", "content"]
)


@settings(max_examples=150)
@given(st.lists(st.dictionaries(COLUMNS, ANYTHING, max_size=4) | ANYTHING, min_size=1, max_size=4))
@pytest.mark.slow
def test_no_row_is_a_traceback(tmp_path_factory, rows):
    path = written(tmp_path_factory.mktemp("any") / "rows.jsonl", rows)
    try:
        lint(path, QualitySettings())
    except BadInput as error:
        assert "\n" not in str(error)
