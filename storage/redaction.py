"""Secrets in text: credentials of URLs, signatures, keys and tokens are shown as `***`.

By structure (user information and signing parameters of a URL, headers, private keys), by the form of well-known
keys, and by value: what the environment holds under a name that says secret, token, password or key.
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

MARK = "***"
SHORTEST = 8
"""Characters of a value that is looked for word for word: a shorter one is found in ordinary text too."""
ROUNDS = 8
"""What one rule hides can show another one its form (a password that passed for a port); it is hidden then too."""

_SIGNED = (
    r"x-amz-[a-z-]+|x-goog-[a-z-]+|signature|sig|tokens?|keys?|api[_-]?key|access[_-]?key|access[_-]?token|id_token|"
    r"refresh_token|auth[_-]?token|awsaccesskeyid|googleaccessid|key-pair-id|policy|password|passwd|pwd|secret|"
    r"client_secret|credentials?"
)
_HEADERS = r"proxy-authorization|authorization|x-amz-security-token|x-amz-signature|x-api-key|x-auth-token"
_FIELDS = (
    r"aws_secret_access_key|aws_session_token|secret_?access_?key|session_?token|access_token|client_secret|"
    r"prefect_api_auth_string|prefect_api_key|accountkey|sharedaccesssignature"
)
_HIDDEN = rf"\g<1>{MARK}"

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE if insensitive else 0), shown)
    for pattern, shown, insensitive in (
        # To the end where the last line is missing: a message that was cut still holds most of the key.
        (r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:(?s:.)*?-----END [A-Z0-9 ]*-----|(?s:.)*)", MARK, False),
        (r"([a-z][a-z0-9+.-]{0,30}://)[^\s/?#@'\"<>]+(?=@)", _HIDDEN, True),
        # An AWS secret may hold slashes, and people paste it as it is; a port is no password.
        (r"([a-z][a-z0-9+.-]{0,30}://)(?![^\s/?#@]*@)[^\s/?#@:'\"<>\[\]]+:(?!\d{0,5}(?:[/?#]|$))[^\s?#@'\"<>]+(?=@)",
         _HIDDEN, True),
        (rf"([?&;](?:{_SIGNED})(?:=|%3D))(?!\*\*\*)[^\s&;#'\"<>]+", _HIDDEN, True),
        (rf"(\b(?:{_HEADERS})[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer|token|aws4-hmac-sha256)\s+)?)"
         r"(?!\*\*\*|\s|(?:basic|bearer|token|aws4-hmac-sha256)\s)[^\s'\",]+", _HIDDEN, True),
        (rf"(\b(?:{_FIELDS})[\"']?\s*[:=]\s*[\"']?)(?!\*\*\*)[^\s'\",;&]{{6,}}", _HIDDEN, True),
        (r"((?:^|(?<=[^A-Za-z0-9]))(?:AKIA|ASIA)[A-Z0-9]{16}[\s:=,;'\"/]{1,4})[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
         _HIDDEN, False),
        (r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])", MARK, False),
        (r"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{20,}", MARK, False),
        (r"(?<![A-Za-z0-9])sk-(?=[A-Za-z0-9_-]*[0-9])[A-Za-z0-9_-]{20,}", MARK, False),
        (r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|pn[ub]_[A-Za-z0-9]{20,})",
         MARK, False),
        (r"(?<![A-Za-z0-9])(?:glpat-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{35})",
         MARK, False),
        (r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*", MARK, False),
        (r"(\bbearer\s+)(?=\S*[0-9=])[A-Za-z0-9._~+/-]{16,}=*", _HIDDEN, True),
    )
)  # fmt: skip
_BASIC = re.compile(r"(\bbasic\s+)([A-Za-z0-9+/]{8,}={0,2})", re.IGNORECASE)
# What every rule needs: text without any of it, as most is, costs one search.
_CANDIDATE = re.compile(
    r"://|[?&;]|authorization|PRIVATE KEY|x-a|AKIA|ASIA|hf_|sk-|gh[pousr]_|github_pat_|pn[ub]_|glpat-|xox|AIza|eyJ|"
    r"bearer|basic|secret|token|prefect_api|accountkey|sharedaccess",
    re.IGNORECASE,
)

_SECRET_NAME = re.compile(
    r"(?:SECRETS?|TOKENS?|PASSWORDS?|PASSWD|PASSPHRASE|KEYS?|CREDENTIALS?|AUTH_STRING)(?:_(?:ID|VALUE|\d+))?$|"
    r"(?:^|_)(?:SECRET|TOKEN|PASSWORD|PASSWD|KEY)(?:_|$)"
)
_PLACE_NAME = re.compile(r"_(?:PATH|FILE|DIR|HOME|FOLDER)$")
_remembered: set[str] = set()


def redacted(text: str) -> str:
    """`text` with every secret in it as `***`; idempotent, and ordinary text stays as it is."""
    if len(text) >= SHORTEST:  # else it holds none; of a report's cells most are shorter
        for value in known_secrets():
            text = text.replace(value, MARK)
    return by_form(text)


def by_form(text: str) -> str:
    """The same without looking at this process's environment: what anyone can see to be a secret."""
    if not _CANDIDATE.search(text):
        return text
    for _ in range(ROUNDS):
        before = text
        for pattern, shown in _RULES:
            text = pattern.sub(shown, text)
        text = _BASIC.sub(_without_password, text)
        if text == before:
            break
    return text


def remember_secret(value: str | None) -> None:
    """Look for this value too, which is not in the environment: of a profile, of a settings file."""
    if value and _telling(value):
        _remembered.add(value)


def known_secrets() -> list[str]:
    """Values to look for word for word, the longest first: one may be a part of another."""
    named = {os.environ.get(name, "") for name in os.environ if _is_secret_name(name)}
    return sorted({value for value in named if _telling(value)} | _remembered, key=len, reverse=True)


def redacted_tree(value: Any, of_text: Callable[[str], str] = redacted) -> Any:
    """Plain values with every string in them redacted, names of fields too."""
    if isinstance(value, str):
        return of_text(value)
    if isinstance(value, dict):
        return {redacted_tree(name, of_text): redacted_tree(item, of_text) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_tree(item, of_text) for item in value]
    return value


def redact_error(error: BaseException) -> None:
    """Take the secrets out of an error, its notes and its causes in place: engines store and log what errors say."""
    for each in _chain(error):
        each.args = tuple(redacted(part) if isinstance(part, str) else part for part in each.args)
        if isinstance(each, OSError):
            for name in ("filename", "filename2", "strerror"):
                if isinstance(part := getattr(each, name), str):
                    setattr(each, name, redacted(part))
        if notes := getattr(each, "__notes__", None):
            each.__notes__ = [redacted(str(note)) for note in notes]


def _chain(error: BaseException) -> Iterator[BaseException]:
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]


@functools.lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    name = name.upper()
    return bool(_SECRET_NAME.search(name)) and not _PLACE_NAME.search(name)


@functools.lru_cache(maxsize=4096)
def _telling(value: str) -> bool:
    """Long enough to be looked for, and neither a mask nor a file: a name may say key and mean where one lies."""
    return len(value) >= SHORTEST and bool(value.strip("*")) and MARK not in value and not _is_path(value)


def _is_path(value: str) -> bool:
    try:
        return value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value))
    except (OSError, ValueError):
        return False


def _without_password(found: re.Match[str]) -> str:
    """A Basic header is base64 of user:password; any other word after "basic" is English."""
    try:
        said = base64.b64decode(found[2], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return found[0]
    return f"{found[1]}{MARK}" if ":" in said else found[0]
