"""A writer that is killed: nothing torn is accepted."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from foretune.storage.artifacts import ArtifactStore
from foretune.storage.places import Place
from tests.storage.children import child

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef"
LARGE = 20 * 2**20  # bytes: three parts

DIE = "os.kill(os.getpid(), signal.SIGKILL)"
WRITE = """
import os, signal
from foretune.storage import {module}
from foretune.storage.artifacts import ArtifactStore

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
from foretune.storage import buckets
from foretune.storage.places import Place
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
from foretune.storage.places import Place
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
(Place({disk_root!r}) / "result.json").write_bytes(b"new, but not yet in its place")
""")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert file.read_bytes() == b"old"
    assert Place(disk_root).list() == ["result.json"]
