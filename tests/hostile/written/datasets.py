"""Rows and dataset files that are wrong, or larger than they look."""

from __future__ import annotations

import gzip
import os

from tests.hostile.contract import SECRET
from tests.hostile.written.attempt import Written, plan, rows, template, words

BOMBS = {
    "gzip bomb": Written(rows(gzip.compress(b'{"text": "a"}\n' * 10**6, 1) * 60, "r.jsonl.gz"), 2, "once unpacked"),
    "gzip of gzip": Written(rows(gzip.compress(gzip.compress(b"{}")), "r.jsonl.gz"), 2, ""),
    "gzip torn": Written(rows(gzip.compress(b'{"text": "a"}\n' * 99)[:40], "r.jsonl.gz"), 2, ""),
    "gzip that is none": Written(rows('{"text": "a"}\n', "r.jsonl.gz"), 2, "gzip"),
    "row of 50 MB": Written(rows('{"text": "' + "word " * 10**7 + '"}\n'), 2, "16 million characters"),
    "row of 1 MB": Written(rows('{"text": "' + "word " * 2 * 10**5 + '"}\n{"text": "b"}\n'), 0, ""),
    "nested 500": Written(rows('{"text": "a", "x": ' + "[" * 500 + "]" * 500 + "}\n"), 2, "64 levels"),
    "nested 10^6": Written(rows('{"text": "a", "x": ' + "[" * 10**6), 2, "line 1"),
    "1e9999": Written(rows('{"text": "a", "x": 1e9999}\n'), 2, "no JSON value"),
    "digits in a row": Written(rows('{"text": "a", "x": ' + "9" * 100_000 + "}\n"), 2, "Exceeds"),
    "a pipe as dataset": Written(lambda c: (c.rows.unlink(), os.mkfifo(c.rows), ["plan", str(c.request)])[2], 2, "pipe or a device"),
    "/dev/zero as dataset": Written(plan(dataset={"path": "/dev/zero"}), 2, "pipe or a device"),
    "/dev/stdin as dataset": Written(plan(dataset={"path": "/dev/stdin"}), 2, ""),
    "a pipe as request": Written(lambda c: (c.request.unlink(), os.mkfifo(c.request), ["plan", str(c.request)])[2], 2, "no regular one"),
    "/dev/zero as request": Written(words("plan", "/dev/zero"), 2, "no regular one"),
    "/dev/zero as gate": Written(words("vet", "REQUEST", "--gate", "/dev/zero"), 2, "no regular one"),
    "/dev/zero as labels": Written(plan(sae={"path": "/dev/zero"}), 2, ""),
    "/dev/zero as model": Written(plan(model={"name_or_path": "/dev/zero"}), 2, ""),
    "/dev/zero as GGUF": Written(lambda c: ((c.folder / "m.gguf").symlink_to("/dev/zero"), c.change(model={"name_or_path": str(c.folder / "m.gguf")}), ["plan", str(c.request)])[2], 2, ""),
    "labels are a device": Written(lambda c: (c.change(sae={"path": str(c.sae), "labels": "/dev/zero"}), ["plan", str(c.request)])[1], 2, "pipe or a device"),
    "preferences are a device": Written(plan(dataset={"preferences": "/dev/zero"}), 2, "pipe or a device"),
    "probes are a device": Written(plan(dataset={"probes": "/dev/zero"}), 2, ""),
    "held-out rows are a device": Written(plan(dataset={"heldout": {"path": "/dev/zero"}}), 2, "pipe or a device"),
    "root is a device": Written(words("runs", "--root", "/dev/zero"), 2, "is a file"),
    "template 10^10": Written(template("{{ 'a' * 10**10 }}"), 2, "2 GB"),
    "template 10^8": Written(template("{{ 'a' * 10**8 }}"), 2, "16 million"),
    "template without end": Written(template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), 2, "without end"),
    "template range": Written(template("{{ range(10**9)|list }}"), 2, "Range too big"),
    "template classes": Written(template("{{ ''.__class__.__mro__ }}"), 2, ""),
    "template includes": Written(template("{% include '/etc/passwd' %}"), 2, ""),
    "template torn": Written(template("{% for"), 2, ""),
    "template raises": Written(template("{{ raise_exception('\x1b[31m" + SECRET[:0] + "') }}"), 2, ""),
    "template divides": Written(template("{{ 1/0 }}"), 2, ""),
    "template deep": Written(template("{% if 1 %}" * 500 + "{% endif %}" * 500), 2, ""),
    "template parentheses": Written(template("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"), 2, ""),
}  # fmt: skip

ROWS = {
    name: Written(rows(data), status, said)
    for name, data, status, said in (
        ("empty", "", 2, "empty"),
        ("blank lines", "\n\n\n", 2, "empty"),
        ("a list", "[1]\n", 2, ""),
        ("null", "null\n", 2, ""),
        ("number", "3\n", 2, ""),
        ("torn", '{"text": "a', 2, "line 1"),
        ("no fields", "{}\n", 2, ""),
        ("unknown form", '{"a": "b"}\n', 2, ""),
        ("null text", '{"text": null}\n', 2, ""),
        ("number as text", '{"text": 3}\n', 2, ""),
        ("empty text", '{"text": ""}\n', 2, ""),
        ("messages text", '{"messages": "a"}\n', 2, ""),
        ("messages null", '{"messages": [null]}\n', 2, ""),
        ("messages empty", '{"messages": []}\n', 2, ""),
        ("message without role", '{"messages": [{"content": "a"}]}\n', 2, ""),
        ("message without content", '{"messages": [{"role": "user"}]}\n', 2, ""),
        ("content a number", '{"messages": [{"role": "user", "content": 1}]}\n', 2, ""),
        ("tools text", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": "x"}\n', 2, ""),
        ("mixed forms", '{"text": "a"}\n{"prompt": "a", "chosen": "b", "rejected": "c"}\n', 2, ""),
        ("chosen number", '{"prompt": "a", "chosen": 1, "rejected": "c"}\n', 2, ""),
        ("prompt list", '{"prompt": [1], "completion": "c"}\n', 2, ""),
        ("twice the key", '{"text": "a b c", "text": "d e f"}\n{"text": "x y z"}\n', 0, ""),
        ("NaN", '{"text": NaN}\n', 2, ""),
        ("many columns", "{" + ", ".join(f'"c{n}": 1' for n in range(10_000)) + "}\n", 2, ""),
        ("long column", '{"' + "c" * 10**6 + '": 1}\n', 2, ""),
    )
} | {
    "csv without header": Written(rows("", "r.csv"), 2, ""),
    "csv of NUL": Written(rows(b"a,b\n\x00,\x00\n", "r.csv"), 2, ""),
    "csv uneven": Written(rows("instruction,output\na\nb,c,d\n", "r.csv"), 2, ""),
    "csv quote": Written(rows('instruction,output\n"a,b\n', "r.csv"), 2, ""),
    "csv long field": Written(rows('text\n"' + "a" * 200_000 + '"\n"b"\n', "r.csv"), 0, ""),
    "parquet torn": Written(rows(b"PAR1" + b"\x00" * 50 + b"PAR1", "r.parquet"), 2, ""),
    "parquet empty": Written(rows(b"", "r.parquet"), 2, ""),
    "json object": Written(rows('{"a": 1}', "r.json"), 2, ""),
    "json two lists": Written(rows('{"a": [{"text": "a"}], "b": [{"text": "b"}]}', "r.json"), 2, ""),
    "unknown kind": Written(rows("a", "r.xlsx"), 2, "unknown kind"),
    "no kind": Written(rows("a", "r"), 2, "unknown kind"),
    "a folder": Written(plan(dataset={"path": "."}), 0, "its training rows are read"),
    "a folder without rows": Written(plan(dataset={"path": "sae"}), 2, "sae"),
    "nothing": Written(plan(dataset={"path": "none.jsonl"}), 2, "no such"),
    "climbs": Written(plan(dataset={"path": "../../none.jsonl"}), 2, "no such"),
    "no permission": Written(plan(dataset={"path": "/proc/1/environ"}), 1, "permission"),
    "a loop of links": Written(lambda c: (c.rows.unlink(), c.rows.symlink_to("train.jsonl"), ["plan", str(c.request)])[2], 2, ""),
    "held-out is empty": Written(lambda c: ((c.folder / "heldout.jsonl").write_text(""), ["plan", str(c.request)])[1], 2, "empty"),
    "one row and a fraction": Written(rows('{"text": "a"}\n', dataset_={}), 2, ""),
}  # fmt: skip
