"""Attempts written by hand: what is done, the command, the status that it must end with and words of its line."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml

from tests.hostile.attempts import Case
from tests.hostile.contract import SECRET
from tests.hostile.values import ESCAPE, HALF, OVERRIDE, TAG, ZERO_WIDTH
from tests.loading import test_hostile_models as models
from tests.saes import test_hostile_saes as saes


class Written(NamedTuple):
    """One attempt."""

    prepare: Callable[[Case], list[str]]
    status: int
    said: str = ""
    own_root: bool = False
    process: bool = False
    environment: dict[str, str] = {}  # noqa: RUF012 - never changed


def plan(*options: str, **sections: Any) -> Callable[[Case], list[str]]:
    """`plan` with sections of the request changed."""

    def prepare(case: Case) -> list[str]:
        case.change(**sections)
        return ["plan", str(case.request), *options]

    return prepare


def setting(path: str, value: str) -> Callable[[Case], list[str]]:
    return plan("--set", f"{path}={value}")


def rows(data: str | bytes | list, name: str = "train.jsonl", **sections: Any) -> Callable[[Case], list[str]]:
    """`plan` over a dataset file of this content."""

    def prepare(case: Case) -> list[str]:
        content = "".join(json.dumps(row) + "\n" for row in data) if isinstance(data, list) else data
        file = case.folder / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
        case.change(dataset={"path": str(file)}, **sections)
        return ["plan", str(case.request)]

    return prepare


def of_run(*words: str, spoil: Callable[[Case], Any] | None = None, output: str = "") -> Callable[[Case], list[str]]:
    """A command on the finished run, after its root was spoiled. OUT is a file of the case's own."""

    def prepare(case: Case) -> list[str]:
        if spoil:
            spoil(case)
        if output:
            case.output = case.folder / output
        here = [
            w.replace("OUT", str(case.folder / "out")).replace("ROWS", str(case.folder / "heldout.jsonl"))
            for w in words
        ]
        return [*here, "--root", str(case.root)]

    return prepare


def run_file(name: str, data: str | bytes | None) -> Callable[[Case], Any]:
    """A file of the run's folder holds this, or is a folder."""

    def spoil(case: Case) -> None:
        file = case.run / name
        file.unlink(missing_ok=True)
        if data is None:
            file.mkdir()
        else:
            file.write_bytes(data if isinstance(data, bytes) else data.encode())

    return spoil


def result_field(**changes: Any) -> Callable[[Case], Any]:
    def spoil(case: Case) -> None:
        file = case.run / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def gate(text: str | bytes) -> Callable[[Case], list[str]]:
    def prepare(case: Case) -> list[str]:
        file = case.folder / "gate.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["vet", str(case.request), "--gate", str(file), "--dataset", str(case.folder / "none.jsonl")]

    return prepare


def labels(name: str, data: str | bytes) -> Callable[[Case], list[str]]:
    def prepare(case: Case) -> list[str]:
        (case.folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        case.change(sae={"path": str(case.sae), "labels": str(case.folder / name)})
        return ["plan", str(case.request)]

    return prepare


def words(*line: str) -> Callable[[Case], list[str]]:
    """A command line as it is; REQUEST, ROOT and OUT are places of the case."""

    def prepare(case: Case) -> list[str]:
        places = {"REQUEST": str(case.request), "ROOT": str(case.root), "OUT": str(case.folder / "out")}
        return [places.get(word, word) for word in line]

    return prepare


def template(text: str) -> Callable[[Case], list[str]]:
    def prepare(case: Case) -> list[str]:
        (case.model / "chat_template.jinja").write_text(text)
        case.rows.write_text(
            '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'
        )
        return ["plan", str(case.request)]

    return prepare


BOUNDS = {
    "epochs 1e300": Written(setting("training.epochs", "1e300"), 2, "training.epochs"),
    "epochs -1": Written(setting("training.epochs", "-1"), 2, "training.epochs"),
    "epochs nan": Written(setting("training.epochs", ".nan"), 2, "finite"),
    "epochs inf": Written(setting("training.epochs", ".inf"), 2, "finite"),
    "epochs list": Written(setting("training.epochs", "[1]"), 2, "training.epochs"),
    "epochs text": Written(setting("training.epochs", "many"), 2, "training.epochs"),
    "epochs true": Written(setting("training.epochs", "{}"), 2, "training.epochs"),
    "rank 10^12": Written(setting("adapter.r", str(10**12)), 2, "adapter.r"),
    "rank 0": Written(setting("adapter.r", "0"), 2, "adapter.r"),
    "rank 2.5": Written(setting("adapter.r", "2.5"), 2, "adapter.r"),
    "replays 1e9": Written(setting("influence.replays.runs", str(10**9)), 2, "influence.replays.runs"),
    "replays 1000000": Written(setting("influence.replays.runs", "1000000"), 2, "runtime.max_steps"),
    "digits": Written(setting("training.seed", "9" * 5000), 2, ""),
    "batch 1e9": Written(setting("training.batch_size", str(10**12)), 2, "training.batch_size"),
    "length 1e12": Written(setting("dataset.max_length", str(10**12)), 2, "dataset.max_length"),
    "length 0": Written(setting("dataset.max_length", "0"), 2, "dataset.max_length"),
    "workers 1e9": Written(setting("runtime.max_workers", str(10**9)), 2, "runtime.max_workers"),
    "minutes 0": Written(setting("runtime.pass_minutes", "0"), 2, "runtime.pass_minutes"),
    "steps": Written(plan("--set", "training.epochs=100000", "--set", "runtime.max_steps=10"), 2, "runtime.max_steps"),
    "dataset size": Written(setting("runtime.max_dataset_gb", "1e-9"), 2, "runtime.max_dataset_gb"),
    "attention": Written(setting("runtime.max_attention_gb", "1e-9"), 2, "runtime.max_attention_gb"),
    "fraction 1e300": Written(plan(dataset={"heldout": {"fraction": 1e300}}), 2, "dataset.heldout.fraction"),
    "fraction 1": Written(plan(dataset={"heldout": {"fraction": 1}}), 2, "fraction"),
    "YAML aliases": Written(lambda c: (c.request.write_text("a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))), ["plan", str(c.request)])[1], 2, "aliases"),
    "YAML circle": Written(lambda c: (c.request.write_text("dataset: &a {path: x, b: *a}\n"), ["plan", str(c.request)])[1], 2, "alias"),
    "YAML deep": Written(lambda c: (c.request.write_text("a: " + "[" * 100_000), ["plan", str(c.request)])[1], 2, "deep"),
    "YAML digits": Written(lambda c: (c.request.write_text("training: {epochs: " + "9" * 100_000 + "}"), ["plan", str(c.request)])[1], 2, ""),
    "YAML large": Written(lambda c: (c.request.write_text("a: [" + "m, " * 10**6 + "]"), ["plan", str(c.request)])[1], 2, "1 MB at most"),
    "YAML python": Written(lambda c: (c.request.write_text("a: !!python/object/apply:os.system ['touch x']\n"), ["plan", str(c.request)])[1], 2, ""),
    "YAML twice": Written(lambda c: (c.request.write_text(c.request.read_text() + "\n---\na: 1\n"), ["plan", str(c.request)])[1], 2, ""),
    "YAML tab": Written(lambda c: (c.request.write_text("a:\n\t- b\n"), ["plan", str(c.request)])[1], 2, ""),
    "YAML empty": Written(lambda c: (c.request.write_text(""), ["plan", str(c.request)])[1], 2, ""),
    "YAML list": Written(lambda c: (c.request.write_text("[1]"), ["plan", str(c.request)])[1], 2, ""),
    "YAML bytes": Written(lambda c: (c.request.write_bytes(b"\xff\xfe\x00"), ["plan", str(c.request)])[1], 2, ""),
    "YAML NUL": Written(lambda c: (c.request.write_bytes(b"a: \x00"), ["plan", str(c.request)])[1], 2, ""),
    "YAML date key": Written(lambda c: (c.request.write_text("2020-01-01: 1\n"), ["plan", str(c.request)])[1], 2, ""),
    "YAML null key": Written(lambda c: (c.request.write_text("? \n: 1\n"), ["plan", str(c.request)])[1], 2, ""),
    "YAML list key": Written(lambda c: (c.request.write_text("? [a]\n: 1\n"), ["plan", str(c.request)])[1], 2, ""),
    "whatif 1e300": Written(of_run("whatif", "latest", "--set", "training.learning_rate=1e300"), 2, "learning_rate", True),
    "whatif epochs 1e300": Written(of_run("whatif", "latest", "--set", "training.epochs=1e300"), 2, "training.epochs", True),
    "whatif nan": Written(of_run("whatif", "latest", "--set", "training.learning_rate=.nan"), 2, "finite", True),
    "whatif largest rate": Written(of_run("whatif", "latest", "--set", "training.learning_rate=1000"), 0, "", True),
    "whatif warmup 1e300": Written(of_run("whatif", "latest", "--set", "training.warmup_ratio=1e300"), 2, "", True),
    "whatif twice": Written(of_run("whatif", "latest", "--set", "training.epochs=1,1"), 2, "twice", True),
    "whatif empty": Written(of_run("whatif", "latest", "--set", "training.epochs=1,,2"), 2, "empty", True),
    "whatif none": Written(of_run("whatif", "latest", "--set", "training.epochs="), 2, "not of the form", True),
    "whatif other": Written(of_run("whatif", "latest", "--set", "sae.path=x"), 2, "", True),
    "whatif many": Written(of_run("whatif", "latest", "--set", "training.epochs=" + ",".join(map(str, range(1, 99))), "--set", "training.learning_rate=" + ",".join(f"{n}e-6" for n in range(1, 99))), 2, "are the most", True),
    "gc keep 1e300": Written(of_run("gc", "--keep-days", "1e300"), 0, "", True),
    "gc keep nan": Written(of_run("gc", "--keep-days", "nan"), 2, "keep", True),
    "gc keep inf": Written(of_run("gc", "--keep-days", "inf"), 0, "", True),
    "gc keep -1": Written(of_run("gc", "--keep-last", "-1"), 2, "keep-last", True),
    "gc keep digits": Written(of_run("gc", "--keep-last", "9" * 400), 0, "", True),
    "clean drop digits": Written(of_run("clean", "latest", "-o", "OUT", "--drop-harmful", "9" * 400, output="out"), 0, "", True),
    "seeds digits": Written(words("backtest", "REQUEST", "--seeds", "9" * 5000), 2, "--seeds"),
    "seeds text": Written(words("backtest", "REQUEST", "--seeds", "a,b"), 2, "whole numbers"),
    "seeds negative": Written(words("backtest", "REQUEST", "--seeds=-1"), 2, ""),
    "retrain -1": Written(words("backtest", "REQUEST", "--retrain", "-1"), 2, "retrain"),
}  # fmt: skip

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

OUTPUTS = {
    "clean over a file": Written(of_run("clean", "latest", "-o", "ROWS"), 2, "--force", True),
    "clean over the dataset": Written(of_run("clean", "latest", "-o", "OUT", "--force", spoil=lambda c: (c.folder / "out").symlink_to(yaml.safe_load((c.run / "request.yaml").read_text())["dataset"]["path"])), 2, "", True),
    "clean over a folder": Written(of_run("clean", "latest", "-o", ".", "--force"), 2, "", True),
    "clean over a device": Written(of_run("clean", "latest", "-o", "/dev/null", "--force"), 2, "", True),
    "clean to nowhere": Written(of_run("clean", "latest", "-o", "none/none/x.jsonl", output="none"), 0, "", True),
    "clean to an empty name": Written(of_run("clean", "latest", "-o", ""), 2, "", True),
    "clean below a file": Written(of_run("clean", "latest", "-o", "train.jsonl/x"), 2, "", True),
    "clean a long name": Written(of_run("clean", "latest", "-o", "x" * 400), 2, "too long", True),
    "clean an unknown rule": Written(of_run("clean", "latest", "-o", "OUT", "--drop-flagged", ESCAPE), 2, "no such rule", True),
    "clean without output": Written(of_run("clean", "latest"), 2, "output", True),
    "clean to http": Written(of_run("clean", "latest", "-o", "http://127.0.0.1:9/x"), 2, "", True),
    "export over a folder": Written(of_run("export", "latest", "model"), 2, "not an empty folder", True),
    "export over a file": Written(of_run("export", "latest", "train.jsonl"), 2, "", True),
    "export to S3": Written(of_run("export", "latest", "s3://bucket/x"), 2, "S3", True),
    "export to a device": Written(of_run("export", "latest", "/dev/null"), 2, "", True),
    "export to an empty name": Written(of_run("export", "latest", ""), 2, "", True),
    "export into the root": Written(of_run("export", "latest", "OUT", output="out"), 0, "", True),
    "export a long name": Written(of_run("export", "latest", "x" * 400), 2, "too long", True),
    "export of nothing": Written(of_run("export", "none", "OUT"), 2, "no run", True),
    "whatif over a folder": Written(of_run("whatif", "latest", "--set", "training.epochs=1,3", spoil=lambda c: (c.run / "whatif.html").mkdir()), 1, "not a file", True),
}  # fmt: skip


def _other_root(case: Case, *names: str) -> None:
    for name in names:
        (case.folder / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (case.folder / "other" / name).write_text("mine")


DELETION = {
    "gc of a wrong root": Written(lambda c: (_other_root(c, "artifacts/a/b/manifest.json", "runs/r/result.json"), ["gc", "--keep-last", "0", "--delete", "--root", str(c.folder / "other")])[1], 2, ""),
    "gc of nothing": Written(words("gc", "--root", "none"), 2, "not a storage root"),
    "gc of /": Written(words("gc", "--keep-last", "0", "--delete", "--root", "/"), 2, ""),
    "gc of a file": Written(words("gc", "--root", "train.jsonl"), 2, "is a file"),
    "gc of a model": Written(words("gc", "--keep-last", "0", "--delete", "--root", "model"), 2, ""),
    "gc of an empty name": Written(words("gc", "--root", ""), 2, "empty"),
    "gc keeps a note": Written(of_run("gc", "--keep-last", "0", "--delete", spoil=lambda c: (c.run / "note.txt").write_text("mine")), 0, "", True),
    "gc with a link beside": Written(of_run("gc", "--keep-last", "0", "--delete", spoil=lambda c: (c.root / "artifacts" / "link").symlink_to(c.folder / "model")), 0, "", True),
    "gc with a linked run": Written(of_run("gc", "--keep-last", "0", "--delete", spoil=lambda c: (c.root / "runs" / "20250101-000000-x-0a1b").symlink_to(c.folder / "model")), 0, "", True),
    "gc with a torn result": Written(of_run("gc", "--keep-last", "0", "--delete", spoil=run_file("result.json", "{")), 0, "", True),
    "gc with a folder as result": Written(of_run("gc", "--keep-last", "0", "--delete", spoil=run_file("result.json", None)), 0, "", True),
    "gc with a deep result": Written(of_run("gc", "--keep-last", "0", spoil=run_file("result.json", '{"a":' * 10**5)), 0, "", True),
    "gc with a climbing artefact": Written(of_run("gc", "--keep-last", "1", spoil=result_field(artifacts={"x": {"uri": "/a/../..", "sha256": "x"}})), 0, "", True),
    "gc of a newer format": Written(lambda c: (_other_root(c), (c.folder / "other").mkdir(exist_ok=True), (c.folder / "other" / "foretune.json").write_text('{"foretune_root": 99}'), ["gc", "--root", str(c.folder / "other")])[3], 2, "newer foretune"),
}  # fmt: skip

ANY = -1
"""A status of the contract: what is damaged decides."""
READ = [
    ["watch", "latest"],
    ["report", "latest"],
    ["lineage", "latest"],
    ["compare", "latest", "latest"],
    ["runs"],
    ["gc"],
]
DAMAGE: dict[str, Callable[[Case], Any]] = {
    "torn result": run_file("result.json", '{"status": "comp'),
    "null result": run_file("result.json", "null"),
    "folder as result": run_file("result.json", None),
    "result of types": result_field(summary=[], signals={}, artifacts=3),
    "result of characters": result_field(status=ESCAPE, summary={"answer": OVERRIDE + TAG}),
    "result of numbers": result_field(summary={"heldout_loss_base": 1e300, "heldout_loss_evaluated": -1e300, "rows": 10**30}),
    "no result": lambda c: (c.run / "result.json").unlink(),
    "torn request": run_file("request.yaml", "a: ["),
    "no report": lambda c: (c.run / "report.html").unlink(),
    "folder as report": run_file("report.html", None),
    "folder as events": run_file("events.jsonl", None),
    "events of anything": run_file("events.jsonl", b"x\n\x00\n" + b"[" * 10**5 + b"\n\xff\xfe\n{}\nnull\n"),
    "events of characters": run_file("events.jsonl", json.dumps({"run_id": "r", "time": "t", "source": "simulation", "type": "signal", "name": ESCAPE, "severity": OVERRIDE}) + "\n"),
}  # fmt: skip
STORED = {
    f"{words_[0]} with {name}": Written(of_run(*words_, spoil=spoil), ANY, "", True)
    for name, spoil in DAMAGE.items()
    for words_ in READ
    if not (words_[0] == "watch" and name == "no result")  # it waits
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
    "a folder": Written(plan(dataset={"path": "."}), 2, ""),
    "nothing": Written(plan(dataset={"path": "none.jsonl"}), 2, "no such"),
    "climbs": Written(plan(dataset={"path": "../../none.jsonl"}), 2, "no such"),
    "no permission": Written(plan(dataset={"path": "/proc/1/environ"}), 1, "permission"),
    "a loop of links": Written(lambda c: (c.rows.unlink(), c.rows.symlink_to("train.jsonl"), ["plan", str(c.request)])[2], 2, ""),
    "held-out is empty": Written(lambda c: ((c.folder / "heldout.jsonl").write_text(""), ["plan", str(c.request)])[1], 2, "empty"),
    "one row and a fraction": Written(rows('{"text": "a"}\n', dataset_={}), 2, ""),
}  # fmt: skip

NAMES = {
    "name of 400 characters": Written(plan(name="x" * 400), 0, ""),
    "name of 10^5 characters": Written(plan(name="x" * 10**5), 0, ""),
    "empty name": Written(plan(name=""), 0, ""),
    "name that climbs": Written(plan(name="../../x"), 0, ""),
    "dataset of 400 characters": Written(plan(dataset={"path": "x" * 400 + ".jsonl"}), 2, ""),
    "dataset of 5000 characters": Written(plan(dataset={"path": "x/" * 2500 + ".jsonl"}), 2, ""),
    "model of 400 characters": Written(plan(model={"name_or_path": "x" * 400}), 2, ""),
    "root of 400 characters": Written(words("plan", "REQUEST", "--root", "x" * 400), 2, ""),
    "root of 5000 characters": Written(words("runs", "--root", "x/" * 2500), 2, ""),
    "run of 10^5 characters": Written(words("report", "x" * 100_000, "--root", "ROOT"), 2, "no run"),
    "option of 10^5 characters": Written(words("plan", "REQUEST", "--" + "x" * 100_000), 2, ""),
    "override of 10^5 characters": Written(words("plan", "REQUEST", "--set", "x" * 100_000), 2, ""),
    "gate of 5000 characters": Written(words("vet", "REQUEST", "--gate", "x" * 5000), 2, ""),
    "request of 5000 characters": Written(words("plan", "x" * 5000), 2, ""),
    "NUL in a request": Written(words("plan", "a\0b"), 2, ""),
    "run that climbs": Written(words("report", "../../../etc/passwd", "--root", "ROOT"), 2, "no run"),
    "run of a pattern": Written(words("report", "*", "--root", "ROOT"), 2, "no run"),
    "empty run": Written(words("report", "", "--root", "ROOT"), 2, ""),
    "user of no name": Written(words("runs", "--root", "~nobody-here/x"), 2, "no user"),
    "one slash": Written(words("runs", "--root", "s3:/b"), 2, "slash"),
    "no bucket": Written(words("runs", "--root", "s3://"), 2, "no bucket"),
    "ftp": Written(words("runs", "--root", "ftp://x"), 2, "not supported"),
    "a hub id of slashes": Written(plan(model={"name_or_path": "a/b/c/d"}), 2, ""),
    "revision": Written(plan(model={"revision": "../../x"}), 0, ""),
}  # fmt: skip

GATES = {
    name: Written(gate(text), 2, "")
    for name, text in {
        "empty gate": "", "list gate": "[]", "null rules": "rules:", "rule without reason": "rules: [{signal: any}]", "rule of both": "rules: [{signal: any, number: x, above: 1, reason: r}]",
        "two bounds": "rules: [{number: rows, above: 1, below: 2, reason: r}]", "infinite bound": "rules: [{number: rows, above: .inf, reason: r}]", "bound 1e300": "rules: [{number: rows, above: 1e300, reason: r}]",
        "nan bound": "rules: [{number: rows, above: .nan, reason: r}]", "verdict": "rules: [{signal: any, verdict: maybe, reason: r}]", "unknown key": "rules: []\nx: 1", "version 2": "version: 2\nrules: []",
        "deep gate": "rules: " + "[" * 10**4, "bytes gate": b"\xff\xfe", "many rules": "rules: [" + "{signal: any, reason: r}, " * 20_000 + "]", "python gate": "rules: !!python/name:os.system ''",
    }.items()
}  # fmt: skip

LABELS = {
    name: Written(labels(file, data), 2 if refused else 0, "")
    for name, file, data, refused in (
        ("labels JSON", "l.json", '{"1": "rivers"}', False),
        ("labels JSONL", "l.jsonl", '{"index": 1, "description": "rivers"}\n', False),
        ("labels CSV", "l.csv", "index,description\n1,rivers\n", False),
    )
}

ENVIRONMENT = {
    f"{name}={value[:20]}": Written(plan(), status, said, process=True, environment={name: value})
    for name, value, status, said in (
        ("PREFECT_API_URL", "foo", 0, ""),
        ("PREFECT_HOME", "/proc/x", 0, ""),
        ("HOME", "/proc", 0, ""),
        ("HOME", "", 0, ""),
        ("PREFECT_PROFILES_PATH", "/dev/null", 0, ""),
        ("PREFECT_LOGGING_LEVEL", "x", 2, "PREFECT_"),
        ("PYTHONIOENCODING", "ascii", 0, ""),
        ("COLUMNS", "1", 0, ""),
        ("FORETUNE_CACHE", "/proc/x", 0, ""),
        ("TMPDIR", "/none", 0, ""),
        ("PYTHONWARNINGS", "error", 0, ""),
        ("OMP_NUM_THREADS", "x", 0, ""),
    )
} | {
    f"simulate with {name}={value[:20]}": Written(words("simulate", "REQUEST"), 2, said, process=True, environment={name: value})
    for name, value, said in (
        ("PREFECT_API_URL", "foo", "PREFECT_API_URL"),
        ("PREFECT_API_URL", "http://127.0.0.1:9/api", "PREFECT_API_URL"),
        ("PREFECT_API_URL", f"http://k:{SECRET}@127.0.0.1:9/api", "PREFECT_API_URL"),
        ("PREFECT_HOME", "/proc/x", "PREFECT_HOME"),
        ("HOME", "/proc", "PREFECT_HOME"),
    )
}  # fmt: skip


def _model(name: str) -> Written:
    damage, said = models.HOSTILE[name]

    def prepare(case: Case) -> list[str]:
        case.output = case.folder / "elsewhere"
        damage(case.model)
        return ["plan", str(case.request)]

    return Written(prepare, 2, said)


def _sae(name: str) -> Written:
    make = saes.HOSTILE[name][0]

    def prepare(case: Case) -> list[str]:
        shutil.rmtree(case.sae)
        case.change(sae={"path": str(make(case.sae) or case.sae)})
        return ["plan", str(case.request)]

    return Written(prepare, 2, "")


MODELS = {f"model: {name}": _model(name) for name in models.HOSTILE}
SAES = {f"SAE: {name}": _sae(name) for name in saes.HOSTILE}

THEMES: dict[str, dict[str, Written]] = {
    "bounds": BOUNDS, "bombs": BOMBS, "text": TEXT, "secrets": SECRETS, "outputs": OUTPUTS, "deletion": DELETION, "stored": STORED,
    "rows": ROWS, "names": NAMES, "gates": GATES, "labels": LABELS, "environment of processes": ENVIRONMENT, "models": MODELS, "SAEs": SAES,
}  # fmt: skip
_ = HALF
