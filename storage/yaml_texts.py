"""YAML from outside, measured before it is made: without numbers that never end, and not larger than it looks."""

from __future__ import annotations

from typing import Any

import yaml

MOST_NODES = 100_000
"""Of a document with every alias written out: nine levels of nine aliases are a billion nodes in 500 bytes."""
DEEPEST = 50


class Refused(yaml.YAMLError):
    """A document that would not end, or not fit."""


def parse_yaml(text: bytes | str) -> Any:
    """What `yaml.safe_load` makes of it. Raises yaml.YAMLError for whatever it cannot be."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise Refused(f"more than {DEEPEST} levels deep") from None
    except (ValueError, OverflowError) as error:  # a date of month 13, a number of 5,000 digits
        raise Refused(str(error)) from None


def _measure(top: yaml.Node) -> None:
    """Refused for more nodes or levels than a request can need, every alias counted as often as it stands there."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        if depth > DEEPEST:
            raise Refused(f"more than {DEEPEST} levels deep")
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = 0  # until it is counted
            inner = [each for item in node.value for each in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + sum(size(each, depth + 1) for each in inner)
        elif not sizes[id(node)]:
            raise Refused("an alias stands inside of what it names")
        if sizes[id(node)] > MOST_NODES:
            raise Refused(f"more than {MOST_NODES:,} values once its aliases are written out")
        return sizes[id(node)]

    size(top, 0)
