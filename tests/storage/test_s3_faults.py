"""S3 that stumbles or refuses: tried again within bounds, and one line in the end."""

from __future__ import annotations

import os
import urllib.request

import pytest

from foretune.storage.artifacts import ArtifactStore
from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.places import Place
from foretune.storage.s3_faults import is_transient
from tests.storage.children import one_line

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef"
LARGE = 20 * 2**20  # bytes: three parts


STUMBLES = ["InternalError", "ServiceUnavailable", "SlowDown", "reset", "hang"]


@pytest.mark.parametrize("how", STUMBLES)
def test_an_artefact_is_stored_and_read_through_a_stumbling_s3(faulty_s3, s3_root, monkeypatch, tmp_path, how):
    times = 1 if how == "hang" else 2
    if how == "hang":
        monkeypatch.setattr("foretune.storage.buckets.READ_TIMEOUT", 1)
    for method, part in (("PUT", "a.txt"), ("PUT", "manifest.json"), ("HEAD", "a.txt"), ("GET", "list-type")):
        faulty_s3.inject(how, times=times, method=method, part=part)
    store = ArtifactStore(s3_root)
    with store.create("landscape", KEY, {}) as draft:
        draft.path("a.txt").write_text("text")
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "another machine"))
    for part in ("a.txt", "manifest.json"):
        faulty_s3.inject(how, times=times, method="GET", part=part)
    assert store.find("landscape", KEY)
    assert store.open(draft.ref).path("a.txt").read_text() == "text"
    assert [fault.times for fault in faulty_s3.faults] == [0] * 6


@pytest.mark.parametrize("how", ["InternalError", "SlowDown", "reset", "error in 200"])
def test_an_upload_in_parts_survives_stumbles(faulty_s3, s3_root, tmp_path, how):
    data = os.urandom(LARGE)
    (tmp_path / "large").write_bytes(data)
    faulty_s3.inject(how, method="POST", part="uploads")
    faulty_s3.inject(how, times=2, method="PUT", part="partNumber=2")
    faulty_s3.inject(how, method="POST", part="uploadId")
    file = Place(s3_root) / "large"
    file.upload_from(tmp_path / "large")
    assert file.read_bytes() == data
    assert faulty_s3.count("PUT", "partNumber=1") == 1
    assert faulty_s3.count("PUT", "partNumber=2") == 3


def test_a_completed_upload_whose_reply_is_lost_counts(faulty_s3, s3_root, tmp_path):
    (tmp_path / "large").write_bytes(b"\1" * LARGE)
    faulty_s3.inject("unheard", method="POST", part="uploadId")
    faulty_s3.inject("NoSuchUpload", method="POST", part="uploadId")
    file = Place(s3_root) / "large"
    file.upload_from(tmp_path / "large")
    assert file.read_bytes() == b"\1" * LARGE
    assert faulty_s3.count("POST", "uploadId") == 2


def test_an_upload_that_somebody_aborted_is_one_line(faulty_s3, s3_root, tmp_path, monkeypatch):
    monkeypatch.setattr("foretune.storage.buckets.COMPLETION_PATIENCE", 0)
    (tmp_path / "large").write_bytes(b"\1" * LARGE)
    faulty_s3.inject("NoSuchUpload", method="POST", part="uploadId")
    with pytest.raises(StorageFault, match="S3 lost the upload; run again"):
        (Place(s3_root) / "large").upload_from(tmp_path / "large")
    assert not (Place(s3_root) / "large").exists()


@pytest.mark.parametrize("how", ["truncate", "reset", "SlowDown"])
def test_a_download_in_parts_survives_stumbles(faulty_s3, s3_root, tmp_path, how):
    data = os.urandom(LARGE)
    file = Place(s3_root) / "large"
    file.write_bytes(data)
    faulty_s3.inject(how, times=2, method="GET", part="large")
    file.download_to(tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == data
    assert faulty_s3.count("GET", "large") == 3 + 2


def test_an_object_that_changes_under_a_download_is_not_mixed(faulty_s3, s3_root, tmp_path):
    file = Place(s3_root) / "large"
    file.write_bytes(b"\1" * LARGE)
    faulty_s3.inject(lambda: file.write_bytes(b"\2" * LARGE), method="GET", part="large")
    with pytest.raises(StorageFault, match="changed while it was read; run again"):
        file.download_to(tmp_path / "large")
    assert list(tmp_path.glob("*large*")) == []


@pytest.mark.parametrize("how", [*STUMBLES, "error in 200"])
@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda place: place.write_bytes(b"1"), id="write"),
        pytest.param(Place.list, id="list"),
    ],
)
def test_an_s3_that_never_recovers_ends_in_one_line_after_bounded_tries(faulty_s3, s3_root, monkeypatch, how, use):
    monkeypatch.setattr("foretune.storage.buckets.READ_TIMEOUT", 0.5 if how == "hang" else 20)
    faulty_s3.inject(how, times=10**6)
    with pytest.raises(StorageFault, match=r"failed 4 times in \d+ s .*run again") as caught:
        use(Place(s3_root) / "a")
    assert faulty_s3.endpoint in one_line(caught)
    assert f"{s3_root}/a" in str(caught.value)
    # The HTTP library sends an idempotent request once more of its own when a kept-alive connection breaks.
    assert len(faulty_s3.requests) <= (8 if how == "reset" else 4)


def test_a_commit_that_never_succeeds_leaves_nothing_that_is_accepted(faulty_s3, s3_root):
    faulty_s3.inject("ServiceUnavailable", times=10**6, method="PUT", part="manifest.json")
    store = ArtifactStore(s3_root)
    with (
        pytest.raises(StorageFault, match=r"manifest\.json: S3 .* failed 4 times"),
        store.create("landscape", KEY, {}) as draft,
    ):
        draft.path("a.txt").write_text("text")
    assert store.find("landscape", KEY) is None
    assert not draft.folder.exists()


def test_a_failed_upload_is_abandoned_on_the_server(faulty_s3, s3_root, s3_client, tmp_path):
    (tmp_path / "large").write_bytes(b"\1" * LARGE)
    faulty_s3.inject("ServiceUnavailable", times=10**6, method="PUT", part="partNumber=2")
    with pytest.raises(StorageFault):
        (Place(s3_root) / "large").upload_from(tmp_path / "large")
    assert not s3_client.list_multipart_uploads(Bucket=s3_root.split("/")[2]).get("Uploads")


def test_an_unreachable_endpoint_is_named(faulty_s3, s3_root, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageFault, match=r"S3 at http://127\.0\.0\.1:9 failed 4 times") as caught:
        (Place(s3_root) / "a").read_bytes()
    one_line(caught)


def test_a_missing_object_is_not_asked_for_again(faulty_s3, s3_root):
    with pytest.raises(FileNotFoundError):
        (Place(s3_root) / "a").read_bytes()
    assert len(faulty_s3.requests) == 1


def test_what_cannot_mend_itself_is_not_transient():
    assert not is_transient(PermissionError())
    assert not is_transient(FileNotFoundError())
    assert is_transient(ConnectionResetError())
    assert is_transient(TimeoutError())


@pytest.fixture
def guarded(s3_server: str):
    """The S3 server, asking for real credentials."""

    def after(requests: str) -> None:
        url = f"{s3_server}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, requests.encode(), headers, method="POST"))

    after("0")
    yield
    after("inf")


@pytest.mark.parametrize(
    "use",
    [
        lambda place: place.write_bytes(b"1"),
        Place.read_bytes,
        Place.exists,
        Place.list,
        Place.open,
    ],
)
def test_a_wrong_credential_is_one_line_at_once(faulty_s3, s3_root, guarded, use):
    with pytest.raises(StorageFault, match=r"S3 denies access \(.+\); check AWS_ACCESS_KEY_ID") as caught:
        use(Place(s3_root) / "a")
    assert "testing" not in one_line(caught)
    assert len(faulty_s3.requests) == 1


def test_a_forbidden_bucket_is_one_line(faulty_s3, s3_root):
    faulty_s3.inject("AccessDenied", times=10**6)
    with pytest.raises(StorageFault, match=r"denies access \(AccessDenied\)") as caught:
        (Place(s3_root) / "a").write_bytes(b"1")
    assert f"{s3_root}/a" in one_line(caught)


def test_no_credentials_is_one_line(s3_root, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(BadInput, match="no S3 credentials; set AWS_ACCESS_KEY_ID") as caught:
        (Place(s3_root) / "a").write_bytes(b"1")
    one_line(caught)
