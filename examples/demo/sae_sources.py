"""Texts for training the demo's SAE out of Debian's documentation packages and this Python's own files.

    apt-get download python3.11-doc postgresql-doc-15 debian-faq debian-reference-en anarchism libreoffice-help-en-us
    for deb in *.deb; do dpkg-deb -x $deb tree; done; cp --parents /usr/share/info/*.info*.gz tree
    python sae_sources.py tree OUT_FOLDER

Writes a text file per source, and the LibreOffice help as a chat: its headings ask, its pages answer. Files
are taken in the order of a hash of their names, up to a number of characters per source.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.metadata
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

CHARACTERS_PER_TOKEN = 4
SKIPPED = {"script", "style", "nav", "header", "footer", "aside", "head", "title"}
BLOCKS = {"p", "li", "dt", "dd", "h1", "h2", "h3", "h4", "pre", "tr", "div", "br", "table", "ul", "ol", "blockquote"}


@dataclass(frozen=True)
class Source:
    name: str  # of the file it becomes
    patterns: tuple[str, ...]  # glob patterns below the unpacked packages
    tokens: int  # about how many to take


SOURCES = (
    Source("info", ("usr/share/info/*.info*.gz",), 150_000),
    Source("python", ("usr/share/doc/python3.11/html/_sources/**/*.rst.txt",), 140_000),
    Source("postgresql", ("usr/share/doc/postgresql-doc-15/html/*.html",), 70_000),
    Source("debian", ("usr/share/doc/debian/FAQ/*.en.html", "usr/share/debian-reference/*.en.html"), 90_000),
    Source("essays", ("usr/share/doc/anarchism/markdown/sec*.md*",), 60_000),
)
CHAT = Source("libreoffice", ("usr/share/libreoffice/help/en-US/text/**/*.html",), 200_000)


class Text(HTMLParser):
    """The text of a page, paragraphs apart, without navigation."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.skipped = 0
        self.verbatim = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.skipped += tag in SKIPPED
        self.verbatim += tag == "pre"
        if tag in BLOCKS:
            self.parts.append("\n" if tag in ("li", "tr", "br") else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        self.skipped -= tag in SKIPPED and self.skipped > 0
        self.verbatim -= tag == "pre" and self.verbatim > 0
        if tag in BLOCKS:
            self.parts.append("\n" if tag in ("li", "tr") else "\n\n")

    def handle_data(self, data: str) -> None:
        if not self.skipped:
            self.parts.append(data if self.verbatim else re.sub(r"\s+", " ", data))


def page_text(html: str) -> str:
    parser = Text()
    parser.feed(html)
    lines = "\n".join(line.rstrip() for line in "".join(parser.parts).replace("\u00b6", "").split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def read(path: Path) -> str:
    """A file's text: unpacked, without markup where it is a page."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    return page_text(text) if path.suffix == ".html" else text


def chosen(tree: Path, source: Source, longest: int = 10**9) -> Iterator[str]:
    """The texts of a source's files, each cut to `longest` characters, until it has its number of them."""
    paths = {path for pattern in source.patterns for path in tree.glob(pattern) if path.is_file()}
    left = source.tokens * CHARACTERS_PER_TOKEN
    for path in sorted(paths, key=lambda each: hashlib.sha256(each.name.encode()).hexdigest()):
        if left <= 0:
            return
        text = read(path)[:longest]
        yield text[:left]
        left -= len(text)


def questions(tree: Path) -> Iterator[dict[str, str]]:
    """Rows of the help: the first heading of a page, and what stands below it."""
    for text in chosen(tree, CHAT, longest=1200):
        heading, _, body = text.partition("\n")
        if len(body) > 100:
            yield {"instruction": heading.strip(), "output": body.strip()}


def installed(tokens: int) -> tuple[str, str]:
    """Descriptions of the installed packages, and source code of the standard library."""
    packages = {each.name: each.read_text("METADATA") or "" for each in importlib.metadata.distributions()}
    bodies = (packages[name].partition("\n\n")[2] for name in sorted(packages))
    readmes = "\n\n".join(body[:8000] for body in bodies if len(body) > 500)
    library = Path(sysconfig.get_paths()["stdlib"])
    code = sorted(library.glob("*.py"), key=lambda each: hashlib.sha256(each.name.encode()).hexdigest())
    joined = "\n\n".join(path.read_text(encoding="utf-8", errors="replace")[:20_000] for path in code)
    return readmes[: tokens * CHARACTERS_PER_TOKEN], joined[: tokens * CHARACTERS_PER_TOKEN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, help="folder with the unpacked packages")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        text = "\n\n".join(chosen(options.tree, source))
        (options.out / f"{source.name}.txt").write_text(text, encoding="utf-8")
        print(f"{source.name}: {len(text):,} characters")
    rows = [json.dumps(row, ensure_ascii=False) for row in questions(options.tree)]
    (options.out / f"{CHAT.name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{CHAT.name}: {len(rows):,} questions")
    for name, text in zip(("packages", "code"), installed(70_000), strict=True):
        (options.out / f"{name}.txt").write_text(text, encoding="utf-8")
        print(f"{name}: {len(text):,} characters of Python {sys.version_info.major}.{sys.version_info.minor}")


if __name__ == "__main__":
    main()
