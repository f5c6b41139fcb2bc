"""A simulation started from Python: the same flow, checks and run folder as the command line's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from foretune.flows.environment import prepare
from foretune.runs import StoredRun, open_run

if TYPE_CHECKING:
    from foretune.flows.request import Request

    RequestLike: TypeAlias = Request | Mapping[str, Any] | str | os.PathLike[str]
    """A request, the mapping that a request.yaml would hold, or the path or `s3://` URI of one."""


def simulate(request: RequestLike) -> StoredRun:
    """Predict what the fine-tune would do, and open the run that tells it.

    Takes minutes the first time; what is stored under the request's root is looked up, not computed. Uses the Prefect
    server of the active profile, else one that lives as long as this process. Raises BadInput (a ValueError), before
    anything is run, for whatever is wrong with the request, and the error of the pass that failed otherwise; the
    failed run stays under the root and the same call goes on where it ended.
    """
    prepare()
    from foretune.flows.commands.options import check_inputs
    from foretune.storage.runs import Run, new_run_id

    read = _request(request)
    run = Run(read.runtime.root, new_run_id(datetime.now(UTC), read.run_name))
    check_inputs(read, run)
    from foretune.flows.failures import finished
    from foretune.flows.simulate import simulate as flow

    finished(run, lambda: flow(read, run_id=run.run_id))
    return open_run(run.run_id, run.root)


def plan(request: RequestLike) -> dict[str, Any]:
    """What `simulate` would do, without doing it; no model is loaded.

    `tasks`: every task with its `state` (cached or run), the reason (`why`), and seconds and bytes where something like
    it was measured; `run` and `cached` count them. `seconds`, `bytes`, `field_bytes` (of the gradient field) and
    `memory_bytes` (of one pass; `workers` run at once) are totals, None where not known. Raises BadInput (a
    ValueError) for whatever is wrong with the request.
    """
    prepare()
    from foretune.flows.commands.plan import make_plan

    return make_plan(_request(request))


def _request(request: RequestLike) -> Request:
    from foretune.flows.request import Request, load_request, parse_request

    if isinstance(request, Request):
        return request
    if isinstance(request, Mapping):
        return parse_request(dict(request))
    return load_request(os.fspath(request))
