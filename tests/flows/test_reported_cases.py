"""Cases from public reports that need a server or a model of their own: the command as a user types it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from foretune.tasks.samples.chat import load_tokenizer
from tests.samples.families import published
from tests.samples.test_trl_equality import assert_supervised_equal, ours, training

pytestmark = pytest.mark.slow

EXPIRED = "<Error><Code>{}</Code><Message>The provided token has expired.</Message></Error>"


@contextlib.contextmanager
def refusing_s3(head: int, get: int, code: str) -> Iterator[str]:
    """Endpoint of an S3 that knows nobody any more: a HEAD has no body that could say why."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(head, b"")

        def do_GET(self) -> None:
            self.answer(get, EXPIRED.format(code).encode())

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def foretune(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [str(Path(sys.executable).with_name("foretune")), *words]
    return subprocess.run(
        line, capture_output=True, text=True, cwd=cwd, env=os.environ | environment, timeout=400, check=False
    )


def request(folder: Path, model: Path, **dataset: object) -> str:
    heldout = {"fraction": 0.3}
    content = {"dataset": {"heldout": heldout, **dataset}, "model": {"name_or_path": str(model)}}
    content["adapter"] = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    content["training"] = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 2}
    (folder / "request.yaml").write_text(yaml.safe_dump(content))
    return "request.yaml"


FILE, PARTS = "s3://datasets/rows.jsonl", "s3://datasets/parts/train-*.jsonl"


@pytest.mark.parametrize(
    ("uri", "head", "get", "code", "words"),
    [
        (FILE, 400, 400, "ExpiredToken", "AWS_SESSION_TOKEN"),
        (PARTS, 403, 403, "ExpiredToken", "AWS_SESSION_TOKEN"),
        (PARTS, 400, 400, "InvalidToken", "AWS_SESSION_TOKEN"),
        (PARTS, 403, 403, "RequestTimeTooSkewed", "set this machine's clock"),
    ],
)
def test_credentials_that_ran_out_are_named(tmp_path, tiny_llama, s3_environment, uri, head, get, code, words):
    wanted = request(tmp_path, tiny_llama, path=uri)
    with refusing_s3(head, get, code) as endpoint:
        done = foretune("plan", wanted, cwd=tmp_path, AWS_ENDPOINT_URL=endpoint, AWS_SESSION_TOKEN="old")
    assert done.returncode == 2, done.stderr
    assert "S3 refuses the" in done.stderr and words in done.stderr
    assert len(done.stderr.splitlines()) == 1


ROWS = [
    {"messages": [{"role": "user", "content": f"Name a fruit, {n}."}, {"role": "assistant", "content": f"Cherry {n}."}]}
    for n in range(8)
]


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5"])
def test_assistant_only_on_a_stock_template_trains_what_trl_trains(tmp_path, tiny_llama, family):
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "chat_template.jinja").write_text(published(family))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = foretune(
        "plan", request(tmp_path, model, path="rows.jsonl", assistant_only_loss=True, max_length=256), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert not load_tokenizer(model).marks_assistant
    trained = training(model, tmp_path / "out", "sft", ROWS, assistant_only_loss=True).train_dataset
    samples = ours(model, ROWS, assistant_only_loss=True)
    assert_supervised_equal(trained, samples)
    assert 0 < sum(samples[0]["loss_mask"]) < len(samples[0]["loss_mask"]) / 2


def test_a_template_that_is_nearly_a_stock_one_is_one_line(tmp_path, tiny_llama):
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    (model / "chat_template.jinja").write_text(published("qwen3") + " ")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = foretune("plan", request(tmp_path, model, path="rows.jsonl", assistant_only_loss=True), cwd=tmp_path)
    assert done.returncode == 2 and "none of the stock templates that have a marked twin" in done.stderr
