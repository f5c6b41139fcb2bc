"""What a user gets wrong outside of the settings: one line with the remedy, and no secret in it."""

from __future__ import annotations

import http.server
import io
import logging
import socket
import threading
import warnings
from pathlib import Path

import pydantic
import pytest

from foretune.flows.commands.console import LivePasses
from foretune.flows.commands.last_line import unforeseen
from foretune.flows.commands.terminal import Terminal
from foretune.flows.commands.whatif import finite_outcome
from foretune.flows.environment import _one_line_warnings, show_logs_safely
from foretune.flows.request import Request, load_request, parse_request
from foretune.flows.server import check_server, open_prefect
from foretune.storage.errors import BadInput, Panic, failure_line, panics_as_errors
from foretune.storage.runs import Run
from foretune.tasks.engine.announcements import escape

SECRET = "SECRETwJalrXUtnFEMI9"


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@b/d.jsonl",
        f"https://h/d.jsonl?X-Amz-Signature={SECRET}",
        f"s3://k:{SECRET}@b",
    ],
)
def test_credentials_in_a_request_are_refused_before_anything_is_stored(uri):
    content = {"dataset": {"path": uri}, "model": {"name_or_path": "m"}}
    with pytest.raises(BadInput, match="dataset.path carries credentials; .*AWS_PROFILE") as caught:
        parse_request(content, where="r.yaml")
    assert SECRET not in str(caught.value)
    with pytest.raises(pydantic.ValidationError, match="carries credentials") as refused:
        Request.model_validate(content)
    assert SECRET not in str(refused.value)


def test_a_wrong_value_is_shown_visibly():
    with pytest.raises(BadInput) as caught:
        parse_request(
            {"dataset": {"path": "d"}, "model": {"name_or_path": "m"}, "training": {"epochs": "\x1b[31m\u202e"}}
        )
    assert "\x1b" not in str(caught.value) and "\\u202e" in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_path_that_no_file_can_have_is_one_line(name):
    with pytest.raises(BadInput):
        load_request(name)


@pytest.fixture
def prefect_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "profiles.toml"))
    return tmp_path


def at(url: str):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    return temporary_settings({PREFECT_API_URL: url})


def test_a_broken_profile_is_one_line(prefect_home):
    (prefect_home / "profiles.toml").write_text("active = [broken")
    with pytest.raises(BadInput, match="profiles.toml: not valid TOML"):
        open_prefect()
    (prefect_home / "profiles.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="profiles.toml: not valid TOML"):
        open_prefect()


def test_a_server_that_is_not_there_is_one_line(prefect_home):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with at(f"http://127.0.0.1:{port}/api"), pytest.raises(BadInput, match="cannot be reached .*unset PREFECT_API_URL"):
        check_server()


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>hello</html>"), (200, b'{"a": 1}'), (404, b"no")])
def test_another_programs_server_is_one_line(prefect_home, status, body):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with at(f"http://127.0.0.1:{server.server_port}/api"), pytest.raises(BadInput, match="Prefect server"):
            check_server()
    finally:
        server.shutdown()
        server.server_close()


class PanicException(BaseException):
    """As pyo3 names its own."""


def test_a_panic_is_an_error_like_any_other():
    with pytest.raises(Panic, match="called `Option::unwrap"):
        with panics_as_errors():
            raise PanicException("called `Option::unwrap()` on a `None` value")
    with pytest.raises(KeyboardInterrupt), panics_as_errors():
        raise KeyboardInterrupt


def test_memory_of_every_kind_says_what_to_lower():
    import pyarrow
    import torch

    for error in (
        MemoryError(),
        pyarrow.ArrowMemoryError("malloc of size 64 failed"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ):
        assert "batch_tokens" in failure_line(error)
        assert "traceback" not in unforeseen(error)


def test_what_nobody_foresaw_is_one_line_and_a_file_without_secrets(capsys, monkeypatch):
    monkeypatch.delenv("FORETUNE_DEBUG", raising=False)
    try:
        raise KeyError(f"http://k:{SECRET}@h \x1b[31m")
    except KeyError as error:
        line = unforeseen(error)
        kept = Path(line.rpartition(" ")[2])
        text = kept.read_text()
        kept.unlink()
        monkeypatch.setenv("FORETUNE_DEBUG", "1")
        assert "traceback is in" not in unforeseen(error)
    assert "Traceback" in text and SECRET not in text + line and "\x1b" not in text
    assert "Traceback" in capsys.readouterr().err


def test_log_records_of_ours_and_of_libraries_hold_no_secret(monkeypatch):
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    show_logs_safely()
    for name, seen in (("prefect.client", False), ("foretune.x", False), ("someone.else", True)):
        out = io.StringIO()
        handler, logger = logging.StreamHandler(out), logging.getLogger(name)
        logger.addHandler(handler)
        try:
            raise ValueError(f"http://k:{SECRET}@h")
        except ValueError:
            logger.error("at %s", f"http://k:{SECRET}@h \x1b", exc_info=True)
        logger.removeHandler(handler)
        assert (SECRET in out.getvalue()) == seen
        assert "Traceback" in out.getvalue()


def test_a_warning_on_the_command_line_is_a_line_of_ours_or_none(capsys, monkeypatch):
    ours = logging.getLogger("foretune")
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(ours, "propagate", True)
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    monkeypatch.delenv("FORETUNE_DEBUG", raising=False)
    with warnings.catch_warnings():
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        _one_line_warnings()
        warnings.warn("a library's")
        logging.getLogger("sae_lens.loading").warning("a library's")
        logging.getLogger("foretune.storage").warning("ours: %s", "a\nb")
    assert capsys.readouterr().err == "foretune: ours: a b\n"


def test_watch_survives_any_line(tmp_path):
    run = Run(str(tmp_path / "[b]root[/b]"), "20260101-000000-any-0000")
    good = b'{"run_id":"r","time":"t","source":"simulation","task":"a","label":"[/b]\\u202e",'
    good += b'"type":"pass_finished","seconds":1,"cached":false}'
    lines = [b"x", b"\x00" * 9, b'{"type":"pass_finished"}', good[:-9], good.replace(b":1,", b':"1",'), b"[" * 99999]
    lines += [good.replace(b"[/b]", b"y" * 5_000_000), b'{"run_id":"r","time":"t","source":"s","type":"new"}', good]
    (run.place / "events.jsonl").write_bytes(b"\n".join(lines))
    (run.place / "result.json").write_bytes(b'{"status": "completed"}')
    out = io.StringIO()
    with LivePasses(run, Terminal(width=200, file=out)) as live:
        live.until_finished()
    said = [line for line in out.getvalue().splitlines() if line.strip()]
    assert len(said) == 2 and "[/b]\\u202e" in said[1] and len(said[0]) < 200


def test_a_setting_whose_loss_is_not_finite_has_none():
    outcome = {"predicted_loss": float("inf"), "trusted_loss": 3.0, "evaluated_loss": None, "largest_movement": 1e300}
    assert finite_outcome(outcome) == dict.fromkeys(outcome)
    assert finite_outcome(outcome | {"predicted_loss": 2.0})["predicted_loss"] == 2.0


def test_markdown_from_outside_is_text():
    assert escape("a|b`c`<img src=x>\n# [x](y) ~~z~~\x1b") == (
        "a\\|b\\`c\\`&lt;img src=x&gt; \\# \\[x\\]\\(y\\) \\~\\~z\\~\\~\\\\x1b"
    )
