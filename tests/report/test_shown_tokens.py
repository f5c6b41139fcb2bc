"""Tokens as a page shows them: a secret is gone that no token holds alone."""

from __future__ import annotations

import pytest

from foretune.tasks.report.shown_tokens import all_shown, shown_tokens

SECRET = "hf_abcdefghijklmnopqrstuvwx"


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        (["Use", " it", "\u202e now"], ["Use", " it", "\\u202e now"]),
        (["With ", "hf_abcdefg", "hijklmnopqr", "stuvwx", " or", " not"], ["With ", "***", "", "", " or", " not"]),
        ([SECRET, " and ", *SECRET, "."], ["***", " and ", "***", *[""] * (len(SECRET) - 1), "."]),
        (["a", " ", SECRET[:9], SECRET[9:]], ["a", " ", "***", ""]),
    ],
)  # fmt: skip
def test_a_secret_across_tokens_is_one_mark(tokens, shown):
    assert shown_tokens(tokens) == shown


def test_texts_beside_a_secret_stay():
    assert all_shown(["a", f"key {SECRET}", "b\x1b"]) == ["a", "key ***", "b\\x1b"]
