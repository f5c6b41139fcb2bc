"""One server and worker for all tests of the deployments."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deployments.team import Team, running_team


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with running_team(tmp_path_factory.mktemp("team")) as running:
        yield running
