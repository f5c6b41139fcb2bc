"""Storage roots of a test's own: a folder, and a bucket of a real S3 server that speaks HTTP."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads what another one, or the user, has cached."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FORETUNE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint URL of an in-memory S3 that speaks HTTP on a free port."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a user of that server; its endpoint."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    return s3_server


@pytest.fixture
def s3_client(s3_environment: str):
    """boto3's client: the channel by which tests look at the bucket and spoil it."""
    import boto3

    return boto3.client("s3", endpoint_url=s3_environment)


@pytest.fixture
def s3_root(s3_client) -> str:
    """`s3://bucket/root` in a bucket of the test's own."""
    bucket = f"bucket-{uuid.uuid4().hex}"  # the server keeps its buckets for the whole process
    s3_client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/root"


@pytest.fixture
def disk_root(tmp_path: Path) -> str:
    return str(tmp_path / "root")
