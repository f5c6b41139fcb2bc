"""The tokenizer that training really uses: transformers builds some classes anew from the vocabulary in tokenizer.json,
with normalisation and splitting of its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from foretune.storage.cache import cache_dir
from foretune.storage.digests import digest_of, file_digest
from foretune.storage.errors import StorageFault
from foretune.storage.places import Place
from foretune.tasks.loading.files import companion_files, digest_by_name
from foretune.tasks.loading.foreign import reading
from foretune.tasks.loading.models import building
from foretune.tasks.loading.tokenizer_files import read_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AS_STORED = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that take tokenizer.json as it is."""

PROBES = (
    "Hello, world! It's 12345.67 o'clock; don't  wait\t...",
    " leading space", "two  spaces and trailing ", "\n\nnew\r\nlines\n", "", " ", "a", "▁lower▁one",
    "ÀÉÎ ñ ß ﬁ ① e\u0301 \u00a0 \u200b 日本語 한국어 العربية 🙂👩‍👩‍👧 \U0001f1e9\U0001f1ea",
    "def f(x):\n    return x**2  # comment\n\tif a!=b: pass", "CamelCase snake_case UPPER https://a.b/c?d=e&f=g",
)  # fmt: skip
VERSION = 1


def tokenizer_fingerprint(folder: Path) -> str:
    """Digest of everything but the weights (tokenizer, chat template, configuration), and of the tokenizer as
    transformers builds it where that is another one than tokenizer.json."""
    companions = digest_by_name(folder, companion_files(folder))
    used = tokenizer_file(folder)
    return companions if used == folder / "tokenizer.json" else digest_of([companions, file_digest(used)])


def tokenizer_file(folder: Path) -> Path:
    """tokenizer.json of the tokenizer that transformers opens from `folder`: the folder's own, or one in the user's
    cache where transformers builds another. transformers is asked once per tokenizer and version of it."""
    own = folder / "tokenizer.json"
    config = read_config(folder / "tokenizer_config.json")
    if not own.is_file() or config.get("tokenizer_class") in AS_STORED or config.get("auto_map"):
        return own
    versions = [importlib.metadata.version(library) for library in ("transformers", "tokenizers")]
    memo = Place(
        cache_dir() / "tokenizers" / digest_of([VERSION, digest_by_name(folder, companion_files(folder)), versions])
    )
    with contextlib.suppress(StorageFault):
        if (memo / "same").exists():
            return own
    built = memo / "tokenizer.json"
    if not built.exists():
        with building, reading(own, "add or mend its files"):
            text = _built_otherwise(folder)
        if text is None:
            with contextlib.suppress(StorageFault):
                (memo / "same").write_bytes(b"")
            return own
        built.write_bytes(text.encode())
    return built.local_path


def _built_otherwise(folder: Path) -> str | None:
    """transformers' tokenizer in the format of tokenizer.json; None where it gives the ids of the stored one."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    try:
        opened = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError:  # of a library that this class needs: the stored tokenizer is the best guess
        return None
    theirs = getattr(opened, "backend_tokenizer", None)
    if theirs is None:
        return None
    return None if _same(Tokenizer.from_file(str(folder / "tokenizer.json")), theirs) else theirs.to_str()


def _same(own: Tokenizer, theirs: Tokenizer) -> bool:
    """Whether both give the probes the same ids, once `own` has the added tokens that the configuration declares."""
    own.no_truncation()
    own.no_padding()
    known = {token.content for token in own.get_added_tokens_decoder().values()}
    added = [token for _, token in sorted(theirs.get_added_tokens_decoder().items())]
    for token in added:
        if token.content not in known:
            (own.add_special_tokens if token.special else own.add_tokens)([token])
    texts = [*PROBES, *(f"one {token.content} two{token.content}three{token.content}\n" for token in added[:32])]
    return all(
        own.encode(text, add_special_tokens=special).ids == theirs.encode(text, add_special_tokens=special).ids
        for text in texts
        for special in (True, False)
    )
