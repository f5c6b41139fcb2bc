"""Text from outside, as it is shown: nothing unseen, nothing that writing needs is lost."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretune.storage.display import json_shown, one_line, shown, shown_tree, visible

CONTROLS = [*map(chr, range(0x00, 0x09)), *map(chr, range(0x0B, 0x20)), *map(chr, range(0x7F, 0xA0))]
FORMATS = [*"\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2060\u2066\u2069\ufeff\u3164\u115f\u034f"]
HIDDEN = st.sampled_from([*CONTROLS, *FORMATS, *map(chr, range(0xE0000, 0xE0080)), "\ud800", "\udfff", "\udcff"])
JOINED = st.sampled_from("\u200d\u200c\ufe0f\ufe00❤🔥👩\u0645\u06cc")
ANY = st.text(st.one_of(st.characters(), HIDDEN, JOINED), max_size=40)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\x1b[31mred\x1b]8;;http://x\x07", "a\\x1b[31mred\\x1b]8;;http://x\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202ecba\u2066", "abc\\u202ecba\\u2066"),
        ("ok\U000e0041\U000e0042", "ok\\U000e0041\\U000e0042"),
        ("zero\u200bwidth\ufeff\u2060", "zero\\u200bwidth\\ufeff\\u2060"),
        ("half\ud83d", "half\\ud83d"),
        ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\x85d"),
        ("over\rwritten", "over\\x0dwritten"),
        ("a\ufe0f", "a\\ufe0f"),
        ("❤\ufe0f\ufe0f\ufe01", "❤\ufe0f\\ufe0f\\ufe01"),
        ("x\U000e0100\U000e0101", "x\\U000e0100\\U000e0101"),
        ("a\u200db", "a\\u200db"),
        ("\u0645\u200c b", "\u0645\\u200c b"),
        ("ㅤhangul filler\u115f", "\\u3164hangul filler\\u115f"),
        ("🏴\U000e0067\U000e0062", "🏴\\U000e0067\\U000e0062"),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(text, seen):
    assert visible(text) == seen


@pytest.mark.parametrize(
    "text",
    [
        "हिन्दी עברית 👩‍🚀\tcafé\nسلام",
        "می‌خواهم",  # Persian: zero-width non-joiner
        "क्‍ष ക്‍",  # Indic: a joiner after the virama, and one at a word's end is shown
        "❤️‍🔥 👩‍❤️‍💋‍👨 🏳️‍🌈 👍🏽 1️⃣ #️⃣",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "葛\U000e0100城 ≨︀",
        "ʼn ½ ∂/∂x ≈ λ₁ → ∞  e\u0301",
        "C:\\x1b\\u202e\\tmp",
    ],
)
def test_what_writing_needs_stays(text):
    assert visible(text.replace("ക്‍", "")) == text.replace("ക്‍", "")


@settings(max_examples=600)
@given(ANY)
def test_showing_again_changes_nothing_and_leaves_nothing_unseen(text):
    once = shown(text)
    assert shown(once) == once
    for character in once:
        assert unicodedata.category(character) not in ("Cs", "Zl", "Zp")
        assert character in "\n\t" or unicodedata.category(character) != "Cc"
        assert not 0xE0000 <= ord(character) <= 0xE00FF or "🏴" in once
        assert character not in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\u200e\u200f\ufeff"
    once.encode("utf-8")


@given(HIDDEN)
def test_every_hidden_character_is_shown_by_its_code(character):
    assert f"{ord(character):x}" in visible(f"a{character}b")


def test_a_line_is_one_line_and_bounded():
    assert one_line("a\n b\r\n\tc") == "a b c"
    assert len(one_line("x" * 5_000_000)) == 2000
    assert one_line("abcdef", 4) == "abc…"
    assert one_line(f"at http://k:secretsecret@h/{'x' * 99}", 30).startswith("at http://***@h/")


@given(st.recursive(ANY | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=5))
def test_json_reads_back_as_it_was_and_shows_everything(value):
    text = json_shown(value, lambda plain: json.dumps(plain, ensure_ascii=False))
    assert json.loads(text) == value
    assert visible(text) == text
    text.encode("utf-8")


def test_a_tree_is_shown_in_names_and_values():
    assert shown_tree({"a\x1b": ["\u202e", 1]}) == {"a\\x1b": ["\\u202e", 1]}
