"""The language of a text, as far as stop words and scripts tell it: enough to see that a row is in another one."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Set

import numpy as np

from foretune.tasks.quality.word_arrays import WordArrays, hash_of

_STOP = {
    "en": "the and of to is in that it for was with on are be this you have not what from they which or an by",
    "de": "der die und das ist nicht ein eine ich sie mit den auf für von dem zu auch wie im es sind wir wird",
    "fr": "le la les des est une dans que pour qui pas vous sur avec sont au ce du il nous mais être et",
    "es": "el los las que una por con para del como está pero más su este son muy también se lo es y",
    "it": "il di che è per una con non sono del della gli come anche più nel questo ma ha si le",
    "pt": "o que não uma com para os do da em por mais como são você isso está mas ao no na e",
    "nl": "de het een van is dat niet op zijn voor met die ook maar er aan wordt deze kan je en",
    "pl": "nie się na jest że do jak to co ale przez dla po są oraz może być tak",
    "tr": "bir ve bu için ile olarak da de çok ne gibi daha olan en kadar var",
}  # fmt: skip
_WORDS = {language: frozenset(words.split()) for language, words in _STOP.items()}
_SCRIPTS = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
    ("ar", re.compile("[\u0600-\u06ff]")),
    ("he", re.compile("[\u0590-\u05ff]")),
    ("hi", re.compile("[\u0900-\u097f]")),
    ("el", re.compile("[\u0370-\u03ff]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
)
LANGUAGES = ("", *_WORDS, *(script for script, _ in _SCRIPTS))
"""By number, the empty one for a text that does not say."""
_BY_WORD: dict[str, list[str]] = {}
for _language, _known in _WORDS.items():
    for _word in _known:
        _BY_WORD.setdefault(_word, []).append(_language)
_LEAST = 4  # different stop words; the runner-up has less than half


def language_of(normal: str, words: Set[str]) -> str:
    """The language of a normalised text of these different words; empty where it does not say."""
    if not normal.isascii():
        letters = sum(map(str.isalpha, normal))
        for language, script in _SCRIPTS:
            if 2 * len(script.findall(normal)) > letters > 0:
                return language
    if len(words) < _LEAST:
        return ""
    found = Counter(language for word in words & _BY_WORD.keys() for language in _BY_WORD[word])
    if not found:
        return ""
    language = max(found, key=found.__getitem__)
    most = found.pop(language)
    second = max(found.values(), default=0)
    return language if most >= _LEAST and 2 * second < most else ""


def languages_of(words: WordArrays) -> np.ndarray:
    """[texts] the numbers in LANGUAGES of ASCII texts, as `language_of` says of each."""
    known, spoken = _stop_hashes()
    at = np.minimum(np.searchsorted(known, words.hashes), len(known) - 1)
    there = np.flatnonzero(known[at] == words.hashes)
    text, at = words.text[there], at[there]
    count = np.array([np.bincount(text, spoken[at, n], minlength=len(words.total)) for n in range(len(_WORDS))])
    best = count.argmax(axis=0)
    ordered = np.sort(count, axis=0)
    said = (words.different >= _LEAST) & (ordered[-1] >= _LEAST) & (2 * ordered[-2] < ordered[-1])
    return np.where(said, best + 1, 0).astype(np.uint8)


@functools.cache
def _stop_hashes() -> tuple[np.ndarray, np.ndarray]:
    """(sorted hashes of all ASCII stop words, [words, languages] whose they are)."""
    words = [word for word in _BY_WORD if word.isascii()]
    hashes = hash_of(words)
    order = np.argsort(hashes)
    spoken = np.array([[language in _BY_WORD[words[n]] for language in _WORDS] for n in order.tolist()], np.float64)
    return hashes[order], spoken
