"""How far a run is: passes done of those planned, and about how long the rest takes, by what is remembered of each."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput, StorageFault

if TYPE_CHECKING:
    from foretune.flows.request import Request

Plan = Callable[[], dict[str, Any]]
"""`make_plan` of the request that runs: its tasks, each with its key, its state and its seconds."""


class Remaining:
    """Asks for the plan in a thread, so that nobody waits for it; says nothing before it is there, nor without one."""

    def __init__(self, plan: Plan | None = None) -> None:
        self._tasks: dict[str, float | None] = {}  # seconds by key, of those that wait
        self._total = self._workers = 0
        self._ended: set[str] = set()
        if plan is not None:
            threading.Thread(target=self._ask, args=(plan,), daemon=True).start()

    def _ask(self, plan: Plan) -> None:
        with contextlib.suppress(BadInput, StorageFault, OSError):  # the run meets the same fault, and says so
            planned = plan()
            self._tasks = {task["key"]: task["seconds"] for task in planned["tasks"] if task["state"] == "run"}
            self._workers = max(1, planned["workers"])
            self._total = len(planned["tasks"])

    def ended(self, key: str) -> None:
        """The pass with this key was computed."""
        self._ended.add(key)

    @property
    def words(self) -> str:
        """As in `12 of 78, about 3 min left`; "" before the plan is there, and where nothing waits."""
        waiting = {key: seconds for key, seconds in self._tasks.items() if key not in self._ended}
        if not self._tasks:
            return ""
        done = f"{self._total - len(waiting)} of {self._total}"
        known = [seconds for seconds in waiting.values() if seconds is not None]
        if not waiting or 2 * len(known) < len(waiting):
            return done
        more = "more than " if len(known) < len(waiting) else "about "
        return f"{done}, {more}{duration(sum(known) / self._workers)} left"


def planner(request: Request) -> Plan:
    """`make_plan` of a request, whose module is imported when it is asked."""

    def planned() -> dict[str, Any]:
        from foretune.flows.commands.plan import make_plan

        return make_plan(request)

    return planned


def passes_in_words(counts: dict[str, Any]) -> str:
    """As in `4 run, 74 found`."""
    if not counts["run"]:
        return f"nothing was computed: {counts['cached']} found"
    return f"{counts['run']} run, {counts['cached']} found"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as people say them."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
