"""One server and worker for all tests of the deployments; on Postgres where Debian's packages are installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.deployments.postgres import binaries, running_postgres
from tests.deployments.team import Team, running_team


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with ExitStack() as stack:
        database = {}
        if binaries():
            database["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = stack.enter_context(running_postgres())
        yield stack.enter_context(running_team(tmp_path_factory.mktemp("team"), **database))
