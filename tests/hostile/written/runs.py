"""What commands write, delete and read of stored runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import yaml

from tests.hostile.attempts import Case
from tests.hostile.values import ESCAPE, OVERRIDE, TAG
from tests.hostile.written.attempt import Written, of_run, result_field, run_file, words

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
