"""What a user names: outputs, inputs, patterns, roots. One line, nothing lost, nothing half-written."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from foretune.flows.commands.cleaned_rows import write_rows
from foretune.flows.commands.options import with_root
from foretune.flows.gate import load_gate
from foretune.flows.request import apply_override, load_request
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.datasets import read_rows
from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.places import Place, localise
from foretune.storage.versions import newest_version
from tests.storage.children import child, one_line
from tests.storage.stored import make

ROWS = [{"text": "kept"}]
ODD = [
    "a #1",
    "a: b",
    "{x}",
    "a*",
    "[b]",
    "a?",
    "-x",
    "a b",
    "é",
    "'q'",
    '"',
    "&a",
    "1e5",
    "null",
    "x" * 255,
    "2026-11-22",
]


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_taken_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_rows(ROWS, name)
    assert os.listdir(tmp_path) == [name]
    assert json.loads((tmp_path / name).read_text()) == ROWS[0]
    content: dict = {}
    apply_override(content, with_root([], name)[0])
    assert content == {"runtime": {"root": name}}


@pytest.mark.parametrize(
    "value", ["a #1.jsonl", "2026-11-22", "data/a #2/x.jsonl", "s3://bucket/a #1", "2026-11-22 10:00:00"]
)
def test_an_override_s_text_is_not_cut_where_yaml_sees_a_comment_or_a_date(value):
    content: dict = {}
    apply_override(content, f"dataset.path={value}")
    assert content == {"dataset": {"path": value}}


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("[a, b]", ["a", "b"]), ("null", None), ('"1e5"', "1e5"), ("true", True)]
)
def test_an_override_is_yaml_otherwise(text, value):
    content: dict = {}
    apply_override(content, f"a.b={text}")
    assert content == {"a": {"b": value}}


@pytest.mark.parametrize("root", ["", "  "])
def test_an_empty_root_is_a_variable_that_is_not_set(root):
    with pytest.raises(BadInput, match="--root is empty"):
        with_root([], root)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train.jsonl"
    file.write_text('{"text": "the only copy"}\n')
    (tmp_path / "link.jsonl").symlink_to(file)
    (tmp_path / "hard.jsonl").hardlink_to(file)
    (tmp_path / "folder").symlink_to(tmp_path / "data")
    return file


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "output",
    ["data/train.jsonl", "./data/../data//train.jsonl", "link.jsonl", "hard.jsonl", "folder/train.jsonl", "file://{}"],
)
def test_the_source_is_never_written_over(source, tmp_path, monkeypatch, output, force):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="is the file that is read") as caught:
        write_rows(ROWS, output.format(source), str(source), force)
    one_line(caught)
    assert "the only copy" in source.read_text()
    assert (tmp_path / "link.jsonl").is_symlink()


def test_an_existing_file_is_replaced_with_force_alone_and_keeps_its_permissions(tmp_path, source):
    target, link = tmp_path / "clean.jsonl", tmp_path / "to_clean.jsonl"
    target.write_text("years of work")
    target.chmod(0o640)
    link.symlink_to(target)
    with pytest.raises(BadInput, match="exists; give another name, or --force"):
        write_rows(ROWS, str(link), str(source))
    assert target.read_text() == "years of work"
    write_rows(ROWS, str(link), str(source), force=True)
    assert json.loads(target.read_text()) == ROWS[0]
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert link.is_symlink()


def test_the_same_in_a_bucket(s3_root):
    write_rows(ROWS, f"{s3_root}/clean.jsonl")
    with pytest.raises(BadInput, match="exists"):
        write_rows(ROWS, f"{s3_root}/clean.jsonl")
    with pytest.raises(BadInput, match="is the file that is read"):
        write_rows(ROWS, f"{s3_root}//clean.jsonl", f"{s3_root}/clean.jsonl", force=True)
    for uri in (s3_root, f"{s3_root}/", s3_root.rpartition("/")[0]):
        with pytest.raises(BadInput, match="is a folder"):
            write_rows(ROWS, uri, force=True)
    write_rows(ROWS, f"{s3_root}/clean.jsonl", force=True)


def make_device(path: Path) -> None:
    """A null device of our own, lest a fault replaces the machine's; a pipe where that needs root."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        os.mkfifo(path)


OUTPUTS = {
    "{tmp}/null": "is a device or a pipe",
    "{tmp}/pipe": "is a device or a pipe",
    "{tmp}": "is a folder",
    "{tmp}/new/": "is a folder",
    "{tmp}/file/below": "cannot write",
    "{tmp}/" + "x" * 300: "cannot write",
    "{tmp}/" + "y/" * 2500 + "z": "cannot write",
    "": "not a path",
    "~nobody-of-that-name/x": "no user of that name",
    "s3:/bucket/x": "one slash too few; write s3://bucket/x",
    "s3:bucket/x": "two slashes too few; write s3://bucket/x",
    "file:/tmp/x": "one slash too few; write file:///tmp/x",
    "gs://bucket/x": "not supported",
    "s3://": "no bucket named",
}


@pytest.mark.parametrize("uri", OUTPUTS, ids=[uri[:30] for uri in OUTPUTS])
def test_what_cannot_be_an_output_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, uri):
    os.mkfifo(tmp_path / "pipe")
    make_device(tmp_path / "null")
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=OUTPUTS[uri]) as caught:
        write_rows(ROWS, uri.format(tmp=tmp_path), force=True)
    one_line(caught)
    assert sorted(os.listdir(tmp_path)) == ["file", "null", "pipe"]
    assert not stat.S_ISREG((tmp_path / "null").stat().st_mode)


def test_storage_itself_replaces_no_device_and_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    make_device(tmp_path / "null")
    for name in ("null", "pipe"):
        with pytest.raises(StorageFault, match="it is not a file"):
            Place(tmp_path / name).write_bytes(b"x")
        assert not stat.S_ISREG((tmp_path / name).stat().st_mode)


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from foretune.storage.errors import BadInput
try:
    {call}
except BadInput as error:
    print(error)
"""


def test_a_disk_that_ends_within_an_output_keeps_what_was_there(tmp_path):
    (tmp_path / "out.jsonl").write_text("years of work")
    call = f"""from foretune.flows.commands.cleaned_rows import write_rows
    write_rows([{{"text": "x" * 5000}}], {str(tmp_path / "out.jsonl")!r}, force=True)"""
    done = child(LIMITED.format(call=call))
    assert "cannot write" in done.stdout and "--root" not in done.stdout, done.stderr
    assert (tmp_path / "out.jsonl").read_text() == "years of work"
    assert os.listdir(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_ends_within_an_export_leaves_it_as_it_was(tmp_path, there):
    make(ArtifactStore(tmp_path / "root"), "x" * 5000)
    if there:
        (tmp_path / "out").mkdir()
    call = f"""from foretune.storage.artifacts import ArtifactStore
    store = ArtifactStore({str(tmp_path / "root")!r})
    store.open(store.find("landscape", "0123456789abcdef")).copy_to({str(tmp_path / "out")!r})"""
    done = child(LIMITED.format(call=call))
    assert "cannot write" in done.stdout, done.stderr
    assert not (tmp_path / "out").exists() or (there and os.listdir(tmp_path / "out") == [])


EXPORTS = ["s3://bucket/out", "s3:/bucket/out", "s3:bucket/out", "/dev/null", "{tmp}/file", "{tmp}/full", ""]


@pytest.mark.parametrize("folder", [*EXPORTS, "{tmp}/file/below", "{tmp}/" + "x" * 5000], ids=lambda uri: uri[:20])
def test_what_cannot_be_exported_to_is_one_line_and_makes_no_folder(tmp_path, monkeypatch, folder):
    store = ArtifactStore(tmp_path / "root")
    ref = make(store)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.md").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        store.open(ref).copy_to(folder.format(tmp=tmp_path))
    one_line(caught)
    assert sorted(os.listdir(tmp_path)) == ["file", "full", "root"]
    assert os.listdir(tmp_path / "full") == ["notes.md"]


def test_an_export_that_was_killed_is_done_again(tmp_path):
    ref = make(ArtifactStore(tmp_path / "root"))
    killed = child(f"""
import os, signal
from foretune.storage import contents
from foretune.storage.artifacts import ArtifactStore
contents.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
store = ArtifactStore({str(tmp_path / "root")!r})
store.open(store.find("landscape", {ref.key!r})).copy_to({str(tmp_path / "out")!r})
""")
    assert killed.returncode == -9, killed.stderr
    ArtifactStore(tmp_path / "root").open(ref).copy_to(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["a.txt", "deep"]


@pytest.mark.parametrize("name", ["train[1].jsonl", "train*.jsonl", "train?.jsonl", "v[1]/train.jsonl"])
def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path, name):
    for each in (name, "train1.jsonl", "v1/train.jsonl", "trainx.jsonl"):
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).write_text("{}\n")
    assert newest_version(str(tmp_path / name)) == str(tmp_path / name)


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(root):
    for name in ("v[1]/a-1.jsonl", "v1/a-2.jsonl", "v1/a-3.jsonl"):
        (Place(root) / name).write_bytes(b"{}\n")
    assert newest_version(f"{root}/v[1]") == f"{root}/v[1]/a-1.jsonl"
    assert newest_version(f"{root}/v[1]/a-*.jsonl") == f"{root}/v[1]/a-1.jsonl"
    assert newest_version(f"{root}/v[0-9]/a-*.jsonl") == f"{root}/v1/a-3.jsonl"


INPUTS = ["/dev/stdin", "/dev/zero", "{tmp}/pipe", "{tmp}", "{tmp}/" + "x" * 5000, "", "s3:b/x", "s3:/b/x", "~no-one/x"]


@pytest.mark.parametrize("uri", INPUTS, ids=[uri[:20] for uri in INPUTS])
@pytest.mark.parametrize("read", [localise, read_rows, load_request, load_gate, newest_version])
def test_what_cannot_be_read_is_one_line_and_never_waits(tmp_path, uri, read):
    os.mkfifo(tmp_path / "pipe")
    if (uri, read) == ("{tmp}", localise):
        pytest.skip("a folder is what some inputs are")
    with pytest.raises(BadInput) as caught:
        read(uri.format(tmp=tmp_path))
    assert len(one_line(caught)) < 6000


def test_a_root_on_the_command_line_is_taken_as_it_is(tmp_path, tiny_request):
    from foretune.flows.commands.options import root_given

    assert load_request(str(tiny_request), with_root([], "a #1")).runtime.root == "a #1"
    assert root_given("a #1") == "a #1"


def test_the_digest_of_a_large_file_follows_its_bytes_whatever_its_dates_say(tmp_path, own_cache):
    from foretune.storage import digests

    file, other = tmp_path / "model.bin", tmp_path / "other.bin"
    file.write_bytes(b"a" * 2**21)
    other.write_bytes(b"b" * 2**21)
    os.utime(file, (1, 1))
    digests._SETTLED_SECONDS, kept = -1.0, digests._SETTLED_SECONDS
    try:
        before = digests.file_digest(file)
        assert len(list((own_cache / "digests").iterdir())) == 1
        assert digests.file_digest(file) == before
        with open(file, "r+b") as stream:
            stream.write(b"b" * 2**21)
        os.utime(file, (1, 1))
        in_place = digests.file_digest(file)
        os.utime(other, (1, 1))
        subprocess.run(["cp", "-p", str(other), str(file)], check=True)
        assert digests.file_digest(file) == in_place == digests.hash_file(other) != before
    finally:
        digests._SETTLED_SECONDS = kept


def test_a_file_system_that_keeps_no_change_time_is_hashed_every_time(tmp_path, own_cache, monkeypatch):
    from foretune.storage import digests

    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 1 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {tmp_path} rw - fuse.sshfs host rw\n")
    monkeypatch.setattr(digests, "_MOUNTS", mounts)
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -1.0)
    (tmp_path / "model.bin").write_bytes(b"a" * 2**21)
    assert digests.file_digest(tmp_path / "model.bin") == digests.hash_file(tmp_path / "model.bin")
    assert not (own_cache / "digests").exists()
