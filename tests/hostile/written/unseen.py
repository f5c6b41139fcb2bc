"""Characters that are not seen and secrets that must not be, wherever a text can stand."""

from __future__ import annotations

import json

from tests.hostile.contract import SECRET
from tests.hostile.values import ESCAPE, OVERRIDE, TAG, ZERO_WIDTH
from tests.hostile.written.attempt import Written, gate, of_run, plan, result_field, rows, run_file, words

UNSEEN = {
    "escape": ESCAPE,
    "override": OVERRIDE,
    "tag": TAG,
    "zero width": ZERO_WIDTH,
    "bell": "\x07",
    "c1": "\x9b31m",
    "cr": "a\rb",
    "line": "a\u2028b",
}

TEXT = {
    f"{name} in {place}": Written(prepare, status, "")
    for name, text in UNSEEN.items()
    for place, prepare, status in (
        ("the request's name", plan(name=f"x{text}"), 0),
        ("a key", plan(**{f"x{text}": 1}), 2),
        ("a value", plan(training={"optimizer": text}), 2),
        ("the dataset's path", plan(dataset={"path": f"none{text}.jsonl"}), 2),
        ("a column", rows([{f"c{text}": "a"}]), 2),
        ("a role", rows([{"messages": [{"role": text, "content": "a"}]}]), 0),
        ("the model's path", plan(model={"name_or_path": f"./none{text}"}), 2),
        ("a module", plan(adapter={"target_modules": [text]}), 2),
        ("an option", words("plan", "REQUEST", f"--{text}"), 2),
        ("a command", words(f"x{text}"), 2),
        ("a run", words("report", f"x{text}", "--root", "ROOT"), 2),
        ("an override", words("plan", "REQUEST", "--set", f"a{text}.b=1"), 2),
        ("a root", words("runs", "--root", f"none{text}"), 0),
        ("a gate", gate(json.dumps({"rules": [{"number": text, "above": 1, "reason": text}], text: 1})), 2),
    )
} | {
    "half of a pair in a row": Written(rows('{"text": "\\ud83d"}\n{"text": "b"}\n'), 2, ""),
    "half of a pair in a name": Written(plan(name="x\\ud83d"), 0, ""),
    "half of a pair in a key": Written(rows('{"\\ud83d": "b"}\n'), 2, ""),
    "half of a pair in a request": Written(lambda c: (c.request.write_text('{"name": "\\ud83d", "dataset": {"path": "d"}, "model": {"name_or_path": "m"}}'), ["plan", str(c.request)])[1], 2, ""),
    "bytes that are no text": Written(rows(b'{"text": "\xff"}\n'), 2, ""),
    "UTF-16": Written(rows('{"text": "a"}'.encode("utf-16")), 2, ""),
    "byte order mark": Written(rows(b'\xef\xbb\xbf{"text": "a b c"}\n{"text": "d e f"}\n'), 0, ""),
    "ascii terminal": Written(plan(dataset={"path": "nöne\u202e.jsonl"}), 2, "no such", process=True, environment={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}),
}  # fmt: skip

PLACES = [f"http://key:{SECRET}@host/d.jsonl", f"https://h/d.jsonl?X-Amz-Signature={SECRET}", f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/x", f"s3://key:{SECRET}@b", f"s3://{SECRET}@b/x"]  # fmt: skip

SECRETS = {
    f"secret {number} in {place}": Written(prepare, 2, "")
    for number, uri in enumerate(PLACES)
    for place, prepare in (
        ("the dataset", plan(dataset={"path": uri})),
        ("the held-out rows", plan(dataset={"heldout": {"path": uri}})),
        ("the model", plan(model={"name_or_path": uri})),
        ("the SAE", plan(sae={"path": uri})),
        ("the root", plan(runtime={"root": uri})),
        ("an override", words("plan", "REQUEST", "--set", f"dataset.path={uri}")),
        ("--root", words("runs", "--root", uri)),
        ("the request's place", words("plan", uri)),
        ("the gate's place", words("vet", "REQUEST", "--gate", uri)),
        ("--dataset", words("vet", "REQUEST", f"--dataset={uri}")),
        ("a run", words("report", uri, "--root", "ROOT")),
        ("an output", of_run("clean", "latest", "-o", uri)),
        ("a folder", of_run("export", "latest", uri)),
    )
} | {
    "secret in a row's fault": Written(rows('{"text": 1, "x": "Bearer ' + SECRET + '0123456789"}\n'), 2, ""),
    "secret in a setting": Written(plan(training={"optimizer": f"{SECRET}-password"}), 2, "***"),
    "token in a path": Written(plan(dataset={"path": f"hf_{SECRET}abcdefgh.jsonl"}), 2, "credentials"),
    "password in an unknown option": Written(words("plan", "REQUEST", f"--{SECRET}-password"), 2, "***"),
    "secret in a stored result": Written(of_run("runs", spoil=result_field(summary={"answer": f"http://a:{SECRET}@h"})), 0, "", True),
    "secret in an event": Written(of_run("watch", "latest", spoil=run_file("events.jsonl", json.dumps({"run_id": "r", "time": "t", "source": "simulation", "type": "pass_failed", "task": "x", "label": f"http://a:{SECRET}@h", "error": f"http://a:{SECRET}@h"}) + "\n")), 0, "", True),
}  # fmt: skip
