"""foretune: what fine-tuning a language model on a dataset would do, told before anything is trained.

>>> import foretune
>>> run = foretune.simulate("request.yaml")
>>> run.result["status"]
'completed'
>>> run.table("influence").columns[:3].to_list()
['sample_id', 'row', 'score']
>>> foretune.plan(run.request)["run"]
0
>>> foretune.open_run("latest", root=run.root) == run
True

Nothing heavy is imported before it is used: `import foretune` alone imports neither torch nor Prefect nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foretune.flows.request import Request
    from foretune.runs import open_run
    from foretune.simulation import plan, simulate
    from foretune.tasks.backtest.callback import TrainingEvents

    __version__: str

__all__ = ["Request", "TrainingEvents", "__version__", "open_run", "plan", "simulate"]

_HOMES = {
    "Request": "foretune.flows.request",
    "TrainingEvents": "foretune.tasks.backtest.callback",
    "open_run": "foretune.runs",
    "plan": "foretune.simulation",
    "simulate": "foretune.simulation",
}
"""Which module a public name is imported from when it is first asked for."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("foretune")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'foretune' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
