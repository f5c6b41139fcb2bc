"""What an input of a pass may offer beside its value; an input that offers none is plain JSON or a settings model."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Identified(Protocol):
    """Stands in keys for less than all its fields: a model by its weights' digest, rows by their ids."""

    def identity(self) -> Any:
        """Plain JSON."""


@runtime_checkable
class Sized(Protocol):
    """Says how much work it is, for estimates of time."""

    @property
    def work(self) -> tuple[int, int]:
        """Rows and tokens."""
        ...


@runtime_checkable
class DeviceBound(Protocol):
    """Computes on a device that passes take turns on: the parameter `model` of a pass."""

    def slot(self) -> contextlib.AbstractContextManager[None]:
        """Held while the pass computes."""
        ...
