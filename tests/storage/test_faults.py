"""What may go wrong below us, made to go wrong: nothing torn is accepted, and the user reads one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import storage
from storage.artifacts import ArtifactStore
from storage.digests import sha256_hex
from storage.errors import BadInput, StorageFault
from storage.places import Place
from storage.s3_faults import is_transient

KEY = "0123456789abcdef"
LARGE = 20 * 2**20  # bytes: three parts


def child(code: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(storage.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, **options
    )


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- a writer that is killed -------------------------------------------------------------------------------

DIE = "os.kill(os.getpid(), signal.SIGKILL)"
WRITE = """
import os, signal
from storage import {module}
from storage.artifacts import ArtifactStore

{before}
with ArtifactStore({root!r}).create("landscape", "{key}", {{}}) as draft:
    draft.path("a.txt").write_text("from the killed writer")
    draft.path("b.txt").write_text("b")
    {inside}
"""
DIE_IN = """
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
{target} = die
"""


@pytest.mark.parametrize(
    "module, before, inside",
    [
        pytest.param("drafts", "", DIE, id="while computing"),
        pytest.param("drafts", DIE_IN.format(target="drafts.Draft.write_manifest"), "", id="before the manifest"),
        pytest.param(
            "artifacts",
            DIE_IN.format(target="artifacts.commit_on_disk = artifacts.commit_to_s3"),
            "",
            id="before the commit",
        ),
        pytest.param(
            "commits",
            DIE_IN.format(target="commits.os.rename = commits.Place.write_bytes"),
            "",
            id="between files and manifest",
        ),
    ],
)
def test_a_killed_writer_leaves_nothing_that_is_accepted(root, module, before, inside):
    killed = child(WRITE.format(root=root, key=KEY, module=module, before=before, inside=inside))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = ArtifactStore(root)
    assert store.find("landscape", KEY) is None
    with store.create("landscape", KEY, {}) as draft:
        draft.path("a.txt").write_text("again")
    assert store.find("landscape", KEY, full=True) == draft.ref.model_copy(update={"cached": True})
    assert store.open(draft.ref).path("a.txt").read_text() == "again"
    store.sweep(older_than=-1)
    assert not list((Path(root) / "artifacts" / ".drafts").glob("*"))


def test_a_killed_upload_leaves_no_object(s3_root, tmp_path):
    (tmp_path / "large").write_bytes(b"\1" * LARGE)
    killed = child(f"""
import os, signal
from pathlib import Path
from storage import buckets
from storage.places import Place
ask = buckets.Bucket._ask
def die_at_the_second_part(self, method, key, **request):
    if request.get("PartNumber") == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return ask(self, method, key, **request)
buckets.Bucket._ask = die_at_the_second_part
(Place({s3_root!r}) / "large").upload_from(Path({str(tmp_path / "large")!r}))
""")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (Place(s3_root) / "large").exists()


def test_a_killed_overwrite_leaves_the_old_file(disk_root):
    file = Place(disk_root) / "result.json"
    file.write_bytes(b"old")
    killed = child(f"""
import os, signal
from storage.places import Place
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
(Place({disk_root!r}) / "result.json").write_bytes(b"new, but not yet in its place")
""")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert file.read_bytes() == b"old"
    assert Place(disk_root).list() == ["result.json"]


# --- S3 that stumbles --------------------------------------------------------------------------------------

STUMBLES = ["InternalError", "ServiceUnavailable", "SlowDown", "reset", "hang"]


@pytest.mark.parametrize("how", STUMBLES)
def test_an_artefact_is_stored_and_read_through_a_stumbling_s3(faulty_s3, s3_root, monkeypatch, tmp_path, how):
    times = 1 if how == "hang" else 2
    if how == "hang":
        monkeypatch.setattr("storage.buckets.READ_TIMEOUT", 1)
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
    monkeypatch.setattr("storage.buckets.COMPLETION_PATIENCE", 0)
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
    monkeypatch.setattr("storage.buckets.READ_TIMEOUT", 0.5 if how == "hang" else 20)
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


# --- credentials -------------------------------------------------------------------------------------------


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


# --- a sick disk -------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_named_and_leaves_nothing(small_disk):
    store = ArtifactStore(small_disk / "root")
    said = "the disk is full; free some space or choose another --root"
    with pytest.raises(StorageFault, match=said) as caught, store.create("landscape", KEY, {}) as draft:
        draft.path("a.bin").write_bytes(b"\1" * 2**20)
    assert str(small_disk) in one_line(caught)
    assert list(store.iterate()) == []
    assert not list((small_disk / "root" / "artifacts" / ".drafts").iterdir())
    with pytest.raises(StorageFault, match="the disk is full"):
        (store.root / "report.html").write_bytes(b"\1" * 2**20)
    assert store.root.list() == ["artifacts"]


def test_a_full_disk_is_recognised_through_the_libraries(small_disk):
    import torch

    store = ArtifactStore(small_disk / "root")
    with pytest.raises(StorageFault, match="the disk is full"), store.create("landscape", KEY, {}) as draft:
        draft.write_tensors("a.safetensors", {"w": torch.zeros(2**18)})
    rows = [{"text": sha256_hex(str(number).encode())} for number in range(2**14)]
    with pytest.raises(StorageFault, match="the disk is full"), store.create("landscape", KEY, {}) as draft:
        draft.write_table("a.parquet", rows)
    assert list(store.iterate()) == []


def test_a_full_cache_disk_says_so(small_disk, s3_root, monkeypatch):
    monkeypatch.setenv("FORETUNE_CACHE", str(small_disk))
    store, said = ArtifactStore(s3_root), r"the disk is full; .* or set FORETUNE_CACHE to another folder"
    with pytest.raises(StorageFault, match=said), store.create("landscape", KEY, {}) as draft:
        draft.path("a.bin").write_bytes(b"\1" * 2**20)


def test_an_error_from_another_place_passes_unchanged(store_on_disk):
    with pytest.raises(FileNotFoundError), store_on_disk.create("landscape", KEY, {}):
        Path("/nonexistent/dataset").read_bytes()
    with pytest.raises(PermissionError), store_on_disk.create("landscape", KEY, {}):
        raise PermissionError(13, "Permission denied", "/elsewhere/dataset")


@pytest.fixture
def store_on_disk(disk_root: str) -> ArtifactStore:
    return ArtifactStore(disk_root)


@pytest.fixture
def frozen(disk_root: str, store_on_disk: ArtifactStore):
    """`store_on_disk` with one artefact, and then read-only."""
    with store_on_disk.create("landscape", KEY, {}) as draft:
        draft.path("a.txt").write_text("text")
    if os.geteuid() != 0:
        subprocess.run(["chmod", "-R", "a-w", disk_root], check=True)
        yield store_on_disk
        subprocess.run(["chmod", "-R", "u+w", disk_root], check=True)
    elif subprocess.run(["mount", "--bind", disk_root, disk_root], capture_output=True).returncode:
        pytest.skip("root can write everywhere and may not mount read-only here")
    else:
        subprocess.run(["mount", "-o", "remount,bind,ro", disk_root], check=True)
        yield store_on_disk
        subprocess.run(["umount", disk_root], check=True)


def test_a_read_only_root_is_read_and_not_written(frozen, disk_root):
    assert frozen.open(frozen.find("landscape", KEY, full=True)).path("a.txt").read_text() == "text"
    refused = r"cannot write: (the file system is read-only|permission denied); .* or choose another --root"
    with pytest.raises(StorageFault, match=refused) as caught, frozen.create("landscape", "other", {}):
        pytest.fail("the block must not be entered: its work would be lost")
    assert disk_root in one_line(caught)
    with pytest.raises(StorageFault, match=refused):
        (frozen.root / "runs" / "x").write_bytes(b"1")


def test_damage_on_a_read_only_root_is_to_be_deleted_by_hand(frozen, monkeypatch):
    ref = frozen.find("landscape", KEY)
    monkeypatch.setattr("storage.contents._verified", set())
    monkeypatch.setattr("storage.contents.hash_file", lambda path: "0" * 64)
    with pytest.raises(StorageFault, match=r"a\.txt is damaged: .*delete .* by hand") as caught:
        frozen.open(ref).path("a.txt")
    one_line(caught)


# --- memory ------------------------------------------------------------------------------------------------

MEASURE = """
import os, re
from pathlib import Path
from storage.artifacts import ArtifactStore
from storage.digests import file_digest

def peak():
    # In MiB. Not ru_maxrss, which begins at the peak of the process that started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

store, folder = ArtifactStore({root!r}), Path({folder!r})

def travel(key, mebibytes):
    with store.create("landscape", key, {{}}) as draft:
        with open(draft.path("a.bin"), "wb") as stream:
            for number in range(mebibytes):
                stream.write(bytes([number % 251]) * 2**20)
    os.environ["FORETUNE_CACHE"] = str(folder / key)
    path = store.open(draft.ref).path("a.bin")
    assert path.stat().st_size == mebibytes * 2**20
    assert file_digest(path) == store.manifest("landscape", key).files["a.bin"].sha256
    with (store.place("landscape", key) / "a.bin").open() as stream:
        while stream.read(2**20):
            pass

travel("small", 33)
before = peak()
travel("large", 89)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_size_of_a_file(root, tmp_path):
    done = child(MEASURE.format(root=root, folder=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 24  # MiB, for 56 MiB more


def test_input_that_is_bad_is_told_from_a_place_that_is_sick():
    assert issubclass(BadInput, ValueError) and issubclass(StorageFault, RuntimeError)
    assert str(BadInput("one\n  two")) == "one two"
    assert str(StorageFault("one\ntwo")) == "one two"
