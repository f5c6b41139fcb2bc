"""Faults planted into clean rows, kind by kind, and the rules that should say so."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Row = dict[str, Any]
EACH = 20
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_HEX = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    name: str
    rules: tuple[str, ...]
    plant: Callable[[Row, Random], None]


def _drawn(random: Random, length: int, signs: str = _DIGITS) -> str:
    return "".join(random.choice(signs) for _ in range(length))


def card(random: Random) -> str:
    body = "4" + _drawn(random, 14, "0123456789")
    for last in "0123456789":
        digits = [int(each) for each in body + last]
        doubled = [sum(divmod(2 * each, 10)) for each in digits[-2::-2]]
        if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0:
            number = body + last
            return random.choice([number, " ".join(number[at : at + 4] for at in range(0, 16, 4))])
    raise AssertionError


def iban(random: Random) -> str:
    body = _drawn(random, 18, "0123456789")
    check = 98 - int(body + "131400") % 97
    number = f"DE{check:02d}{body}"
    return random.choice([number, " ".join(number[at : at + 4] for at in range(0, 22, 4))])


def github(random: Random) -> str:
    body = _drawn(random, 30)
    value, tail = zlib.crc32(body.encode()), ""
    for _ in range(6):
        value, rest = divmod(value, 62)
        tail = _DIGITS[rest] + tail
    return f"ghp_{body}{tail}"


def _inserted(make: Callable[[Random], str]) -> Callable[[Row, Random], None]:
    def plant(row: Row, random: Random) -> None:
        words = row["answer"].split(" ")
        at = random.randrange(1, len(words)) if len(words) > 1 else 1
        row["answer"] = " ".join([*words[:at], make(random), *words[at:]])

    return plant


def _answer(make: Callable[[str, Row, Random], str]) -> Callable[[Row, Random], None]:
    def plant(row: Row, random: Random) -> None:
        row["answer"] = make(row["answer"], row, random)

    return plant


def _one_of(*texts: str) -> Callable[[Random], str]:
    return lambda random: random.choice(texts)


PLANTED = (
    Kind("payment card", ("credit_card",), _inserted(card)),
    Kind("bank account", ("iban",), _inserted(iban)),
    Kind("e-mail address", ("email",), _inserted(lambda r: f"{_drawn(r, 6).lower()}@mail{r.randrange(99)}.org")),
    Kind("telephone number", ("phone_number",),
         _inserted(lambda r: r.choice([f"+49 30 {r.randrange(10**6, 10**7)}", f"(212) {r.randrange(556, 999)}-{r.randrange(1000, 9999)}"]))),
    Kind("social security number", ("us_social_security",),
         _inserted(lambda r: f"{r.randrange(100, 600):03d}-{r.randrange(10, 99)}-{r.randrange(1000, 9999)}")),
    Kind("IP address", ("ip_address",), _inserted(lambda r: f"{r.randrange(20, 99)}.{r.randrange(255)}.{r.randrange(255)}.{r.randrange(1, 255)}")),
    Kind("GitHub token", ("github_token",), _inserted(github)),
    Kind("AWS key", ("aws_key",), _inserted(lambda r: "AKIA" + _drawn(r, 16, _HEX))),
    Kind("private key", ("private_key",), _inserted(lambda r: f"-----BEGIN RSA PRIVATE KEY-----\n{_drawn(r, 64)}\n{_drawn(r, 64)}")),
    Kind("service key", ("api_key",), _inserted(lambda r: r.choice([f"sk-proj-{_drawn(r, 48)}", f"AIza{_drawn(r, 35)}", f"hf_{_drawn(r, 34)}"]))),
    Kind("web token", ("json_web_token",),
         _inserted(lambda r: f"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0{_drawn(r, 4)}.{_drawn(r, 43)}")),
    Kind("password in an address", ("url_credentials",), _inserted(lambda r: f"postgres://app:{_drawn(r, 12)}@db{r.randrange(99)}.internal/app")),
    Kind("UTF-8 read as Windows-1252", ("mojibake",), _inserted(_one_of("donâ€™t", "cafÃ©", "â€œyesâ€\x9d", "naÃ¯ve", "Ã¼ber", "Â£5"))),
    Kind("lost byte", ("replacement_character",), _inserted(_one_of("caf\ufffd", "\ufffd\ufffd"))),
    Kind("control character", ("control_character",), _inserted(_one_of("a\x00b", "\x1b[31mred\x1b[0m", "x\x08"))),
    Kind("zero width", ("invisible_character",), _inserted(_one_of("he\u200bllo", "\ufeffword", "soft\u00adhyphen"))),
    Kind("escapes", ("escaped_text",), _inserted(_one_of("first.\\nSecond", "caf\\u00e9", "salt &amp; pepper"))),
    Kind("chat marks", ("leaked_template",), _inserted(_one_of("<|im_end|>", "[/INST]", "<|eot_id|>", "<end_of_turn>", "\n### Response:\n"))),
    Kind("another speaker's turn", ("leaked_turn",), _answer(lambda a, _, r: a + r.choice(["\n\nHuman: and then?", "\nUser: thanks", "\n\nAssistant: so"]))),
    Kind("placeholder", ("unfilled_placeholder",), _inserted(_one_of("{{ name }}", "[insert number here]", "[Your Name]", "{input}"))),
    Kind("printed object", ("leaked_object",), _inserted(_one_of("[object Object]", "{'role': 'user', 'content': 'x'}", "<Reply object at 0x7f3a1c2b4d50>"))),
    Kind("stock phrases", ("assistant_speak",), _answer(lambda a, _, r: r.choice(["As an AI language model, I can say: ", "I'd be happy to help! "]) + a)),
    Kind("refusal", ("refusal",), _answer(lambda a, _, r: r.choice(["I'm sorry, but I can't help with that.", "I cannot assist with this request.", "Unfortunately I have to decline.", "I’m sorry, I can’t do that."]))),
    Kind("prompt repeated", ("prompt_leak",), _answer(lambda a, row, r: row["question"] + " " + a)),
    Kind("instructions given away", ("prompt_leak",), _answer(lambda a, _, r: r.choice(["My instructions are to be kind. ", "According to my instructions, ", "The hidden prompt told me: "]) + a)),
    Kind("furniture of a page", ("boilerplate",), _answer(lambda a, _, r: a + r.choice([" Subscribe to our newsletter!", " © 2024 Shop. All rights reserved.", " Click here to read more.", " Posted by admin at 3 pm"]))),
    Kind("markup", ("html_markup",), _answer(lambda a, _, r: f"<div class='x'><p>{a}</p><br/></div>")),
    Kind("said again and again", ("repeated_text",), _answer(lambda a, _, r: " ".join([a.split(".")[0][:60] + " so it is."] * 6))),
    Kind("fence left open", ("open_code_fence",), _answer(lambda a, _, r: a + "\n```python\nprint(1)")),
    Kind("white space at the end", ("untrimmed",), _answer(lambda a, _, r: a + r.choice([" ", "\n\n", "\t"]))),
    Kind("another language", ("language_mismatch", "other_language"),
         _answer(lambda a, _, r: r.choice(["Das ist nicht so einfach, denn wir haben die Zahl und sie ist mit dem Rest zu teilen.",
                                           "La réponse est que les trois sont dans une boîte avec des pommes pour vous.",
                                           "これは簡単な計算で、答えは十八です。"]))),
    Kind("no answer", ("empty_completion",), _answer(lambda a, _, r: r.choice(["", "...", "—"]))),
    Kind("a row of no form", ("unreadable_row",), lambda row, r: row.pop("answer")),
)  # fmt: skip


def planted_rows(clean: list[Row], random: Random, each: int = EACH) -> list[tuple[Row, set[str]]]:
    """Clean rows, `each` of them with one fault of each kind; beside a row the rules that should flag it."""
    labelled = [(copy.deepcopy(row), set[str]()) for row in clean]
    places = random.sample(range(len(labelled)), each * len(PLANTED))
    for number, place in enumerate(places):
        kind = PLANTED[number % len(PLANTED)]
        row, right = labelled[place]
        kind.plant(row, random)
        right.update(kind.rules)
    return labelled
