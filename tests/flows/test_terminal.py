"""The terminal prints text from outside literally: no markup, no escape code, no secret, one line a line."""

from __future__ import annotations

import io
import json
import sys

import pytest

from foretune.flows.commands.terminal import Terminal, styled, take_any_encoding, write_error, write_json

HOSTILE = "[/b][link=http://x]\x1b[31m\u202e\U000e0041\nsecond :smile: http://k:SECRETS99@h"
LITERAL = "[/b][link=http://x]\\x1b[31m\\u202e\\U000e0041\\nsecond :smile: http://***@h"


def said(act) -> str:
    out = io.StringIO()
    act(Terminal(width=300, file=out))
    return out.getvalue()


def test_a_line_shows_what_is_there_and_stays_one_line():
    assert said(lambda t: t.say("  at ", HOSTILE, styled(HOSTILE, "bold"))) == f"  at {LITERAL}{LITERAL}\n"


def test_a_table_shows_what_is_there_in_heads_and_cells():
    text = said(lambda t: t.table([HOSTILE, "b"], [((HOSTILE, 3), "bold")]))
    assert text.count(LITERAL) == 2
    assert "\x1b" not in text


def test_what_one_types_again_is_whole_on_a_narrow_terminal():
    out = io.StringIO()
    heads = [
        "",
        "learning_rate",
        "lr_scheduler_type",
        "steps",
        "predicted",
        "evaluated",
        "trusted",
        "from",
        "largest move",
    ]
    row = [
        "best",
        "0.0002",
        "cosine_with_restarts",
        36,
        "3.624",
        "3.626",
        "whole run",
        "the measured path",
        "0.031 of it",
    ]
    Terminal(width=80, file=out).table(heads, [(row, "")], whole=3)
    said = out.getvalue()
    assert all(word in said for word in ("learning_rate", "lr_scheduler_type", "cosine_with_restarts"))
    assert max(map(len, said.splitlines())) <= 80


def test_a_name_of_megabytes_is_cut():
    assert len(said(lambda t: t.say("x" * 5_000_000, whole=True))) < 5000


def test_json_is_one_line_that_reads_back(capsys):
    write_json({"text": "a\x1b\u202e\ud800\nb", "url": "http://k:SECRETS99@h"})
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and line.isascii()
    assert json.loads(line) == {"text": "a\x1b\u202e\ud800\nb", "url": "http://***@h"}


def test_an_error_is_one_line(capsys):
    write_error(HOSTILE)
    assert capsys.readouterr().err == "foretune: " + LITERAL.replace("\\n", " ") + "\n"


def test_a_stream_of_another_encoding_spells_out_what_it_lacks(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    take_any_encoding()
    Terminal(width=80).say("a · b → 葛")
    write_json({"a": "葛"})
    sys.stdout.flush()
    assert raw.getvalue() == b'a \\xb7 b \\u2192 \\u845b\n{"a": "\\u845b"}\n'


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_says_nothing(quiet, capsys):
    Terminal(quiet=quiet).say("a")
    assert (capsys.readouterr().out == "") == quiet
