"""The overheads benchmark without its clock: what it compares, and what a cached shard asks of S3."""

from __future__ import annotations

import pytest

from tests.benchmarks import overheads

pytestmark = pytest.mark.slow


def test_a_cached_shard_costs_two_requests_at_most_and_lists_no_bucket(prefect_server, monkeypatch):
    monkeypatch.setattr(overheads, "TURNS", 1)
    disk, s3 = overheads.shard_rows(20)
    assert disk["tasks_cached"] == s3["tasks_cached"] == 20
    assert disk.keys() < s3.keys() and disk["seconds"] > 0 and disk["empty_flow_seconds"] > 0
    assert 0 < s3["requests_per_task"] <= 2.1  # its own folder, and its manifest where this machine never read it
    assert s3["bucket_listings_per_task"] == 0


def test_the_commands_that_are_compared_are_cached_and_light(
    prefect_server, tmp_path, tiny_llama, tiny_sae, monkeypatch
):
    from prefect.settings import PREFECT_API_URL

    from tests.orchestration.test_caching_benchmark import write_questions

    write_questions(tmp_path, monkeypatch)
    monkeypatch.setattr(overheads, "TURNS", 1)
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())  # spares each command a server of its own
    row = overheads.simulation_row(str(tiny_llama), str(tiny_sae), 12)
    assert row["tasks_run"] == 0 and row["tasks_cached"] > 20
    assert row["heavy_imports"] == []
