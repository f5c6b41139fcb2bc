"""What a match must pass beside its pattern: check digits, checksums, ranges that are given out, no example."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable

_EXAMPLE = re.compile(
    r"example|placeholder|your[_-]|changeme|password|passwd|<|\*\*|xxx|user:pass|foo:bar|secret|localhost",
    re.IGNORECASE,
)
_DOCUMENTED = re.compile(
    r"@(?:[\w-]+\.)*(?:example\.(?:com|org|net|edu)|example|test|invalid|localhost|domain\.com)$", re.I
)


def luhn(text: str) -> bool:
    """Whether the check digit of a card's number is right; numbers that all manuals print count as cards too."""
    digits = [int(each) for each in text if each.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


# Length by country, ISO 13616 registry; others are refused, since any two letters and digits would do for them.
_IBAN_LENGTHS = {
    code: int(length)
    for length, codes in {
        "15": "NO", "16": "BE", "18": "DK FI FO GL NL SD", "19": "MK SI", "20": "AT BA EE KZ LT LU XK MN",
        "21": "CH HR LI LV", "22": "BG BH CR DE GB GE IE ME RS VA", "23": "AE GI IL IQ TL OM SO",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG", "25": "LY PT ST", "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM", "28": "AL AZ BY CY DO GT HU LB NI PL SV", "29": "BR EG PS QA UA",
        "30": "JO KW MU YE", "31": "MT SC", "32": "LC", "33": "RU",
    }.items()
    for code in codes.split()
}  # fmt: skip


def iban(text: str) -> bool:
    """Whether country, length and check digits (mod 97, ISO 7064) of an account number are right."""
    plain = text.replace(" ", "")
    if _IBAN_LENGTHS.get(plain[:2]) != len(plain):
        return False
    turned = plain[4:] + plain[:4]
    return int("".join(str(int(sign, 36)) for sign in turned)) % 97 == 1


_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def github(text: str) -> bool:
    """Whether the last six signs of a token are the CRC-32 of the 30 before, in base 62. Fine-grained tokens (and
    placeholders are no tokens) carry one whose rule GitHub does not publish: their shape has to do."""
    if text.startswith("github_pat_"):
        return random(text)
    body = text[4:]
    value, tail = zlib.crc32(body[:30].encode()), ""
    for _ in range(6):
        value, rest = divmod(value, 62)
        tail = _BASE62[rest] + tail
    return body[30:] == tail


def random(text: str) -> bool:
    """Whether a key looks drawn: 2.5 bits a sign and more, and no word of a manual in it."""
    counts = Counter(text)
    bits = -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())
    return bits > 3 and not _EXAMPLE.search(text)


def example(text: str) -> bool:
    """Whether this is no example of a manual."""
    return not _EXAMPLE.search(text)


def email(text: str) -> bool:
    """Whether an address could be somebody's: not of a domain that is kept for documentation."""
    return not _DOCUMENTED.search(text) and not text.lower().endswith((".png", ".jpg", ".svg", ".js", ".py"))


def phone(text: str) -> bool:
    """Whether a number could be somebody's: not of 555, not one digit again and again."""
    digits = re.sub(r"\D", "", text)
    return not re.search(r"555\D{0,2}\d{4}$|555\D{0,2}01\d\d$", text) and len(set(digits)) > 3


def public_ip(text: str) -> bool:
    """Whether an address is routed in the Internet; versions of programs such as 1.2.3.4 pass for one."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return address.is_global and not text.startswith(("0.", "1.1.1.1", "8.8.")) and int(text.split(".")[0]) > 9


def jwt(text: str) -> bool:
    """Whether the first part is a JSON object that names an algorithm."""
    head = text.split(".")[0]
    try:
        value = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return False
    return isinstance(value, dict) and "alg" in value


CHECKS: dict[str, Callable[[str], bool]] = {
    "luhn": luhn, "iban": iban, "github": github, "random": random, "example": example, "email": email,
    "phone": phone, "public_ip": public_ip, "jwt": jwt,
}  # fmt: skip
"""By the names that the file of rules uses."""
