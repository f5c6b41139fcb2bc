"""Names that a language model writes: an OpenAI-compatible endpoint, asked once per feature, where a request names one.

Nothing is asked by default. The key is read from the environment for the header alone; text of the rows is sent without
what looks like a secret; the first request that fails for good ends the asking, and names from evidence stay.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from foretune.storage.display import one_line
from foretune.storage.redaction import redacted
from foretune.tasks.concepts.evidence import Contexts, Evidence
from foretune.tasks.inputs.concepts import LabelEndpoint

FEWEST_WORDS, MOST_WORDS, LONGEST = 2, 6, 60  # words and characters of a label
SHOWN = 10  # contexts of a prompt
LEFT, RIGHT = 24, 8  # tokens of each
MOST_BYTES = 1 << 20  # of a reply
ASKED = (
    "You name features of a language model. Each line is a text on which one feature is active; the token on which "
    "it is active stands between << and >>. Answer with what the lines have in common: a name of 2 to 6 words, and "
    "nothing else."
)


class EndpointFault(Exception):
    """One request failed for good; its text is one line."""


class _Busy(EndpointFault):
    """It may work when asked again."""


@dataclass
class Written:
    """What an endpoint wrote."""

    labels: dict[int, str] = field(default_factory=dict)
    asked: int = 0
    fault: str | None = None  # why the asking ended early


def written_labels(endpoint: LabelEndpoint, prompts: Iterable[tuple[int, str]]) -> Written:
    """A label per (feature, prompt), as far as the endpoint answers; an answer that is no name gives none."""
    found, headers = Written(), {}
    if endpoint.key_variable:
        key = os.environ.get(endpoint.key_variable, "").strip()
        if not key:
            found.fault = f"the environment variable {endpoint.key_variable} is not set"
            return found
        headers["Authorization"] = f"Bearer {key}"
    with httpx.Client(timeout=endpoint.timeout, headers=headers, follow_redirects=False) as client:
        for feature, prompt in prompts:
            try:
                answer = _asked(client, endpoint, prompt)
            except EndpointFault as fault:
                found.fault = one_line(redacted(str(fault)), 200)
                break
            found.asked += 1
            label = label_of(answer)
            if label is not None:
                found.labels[feature] = label
    return found


def prompt_of(evidence: Evidence, contexts: Contexts, promoted: str | None) -> str:
    """The contexts that a name is made from, never those that test it, and the tokens that the feature promotes."""
    lines = [evidence.marked(int(token), LEFT, RIGHT) for token in contexts.shown[:SHOWN]]
    if promoted:
        lines.append(f"The feature makes these tokens likelier: {promoted}")
    return redacted("\n".join(lines))


def label_of(answer: str) -> str | None:
    """Two to six words of an answer, its thoughts and quotes left out; None for one without two words."""
    said = re.sub(r"(?s)<think>.*?(?:</think>|$)", "", answer).strip()
    first = said.splitlines()[0] if said else ""
    first = re.sub(r"^(?:name|label|answer)\s*:\s*", "", first.strip(), flags=re.IGNORECASE)
    words = one_line(first.strip(" \t\"'`*#.“”‘’"), 400).split()[:MOST_WORDS]
    label = " ".join(words)[:LONGEST].strip(" ,;:.-")
    return label if len(label.split()) >= FEWEST_WORDS and re.search(r"\w", label) else None


def _asked(client: httpx.Client, endpoint: LabelEndpoint, prompt: str) -> str:
    """The endpoint's answer. EndpointFault where it has none after the attempts allowed."""
    body = {
        "model": endpoint.model,
        "messages": [{"role": "system", "content": ASKED}, {"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 200,
    }
    tries = Retrying(
        stop=stop_after_attempt(endpoint.attempts),
        wait=wait_exponential(multiplier=0.5, max=8),
        retry=retry_if_exception_type(_Busy),
        reraise=True,
    )
    return tries(_once, client, f"{endpoint.url}/chat/completions", body)


def _once(client: httpx.Client, url: str, body: Mapping[str, Any]) -> str:
    try:
        with client.stream("POST", url, json=body) as response:
            if response.status_code == 429 or response.status_code >= 500:
                raise _Busy(f"it answers with status {response.status_code}")
            if response.status_code != 200:
                raise EndpointFault(f"it answers with status {response.status_code}")
            content = bytearray()
            for part in response.iter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise EndpointFault(f"its answer has more than {MOST_BYTES:,} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _Busy(f"{type(error).__name__}: {error}") from None
    return _content(bytes(content))


def _content(reply: bytes) -> str:
    try:
        choices: Sequence[Any] = json.loads(reply)["choices"]
        content = choices[0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise EndpointFault("its answer is none of a chat: it has no choices[0].message.content") from None
    return content if isinstance(content, str) else ""
