"""Large files stream: memory does not grow with their size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage.children import child

pytestmark = pytest.mark.slow

MEASURE = """
import os, re
from pathlib import Path
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.digests import file_digest

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
