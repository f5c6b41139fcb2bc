"""Two writers of one artefact, and readers between them: never a mixture."""

from __future__ import annotations

import threading
from hashlib import sha256

import pytest

from foretune.storage.artifacts import ArtifactStore
from tests.storage.stored import KEY, another_process, make


def test_the_first_of_two_writers_stands(store):
    with store.create("landscape", KEY, {}) as ours:
        ours.path("a.txt").write_text("ours")
        theirs = make(store, "theirs")
    assert ours.ref == theirs
    assert store.open(ours.ref).path("a.txt").read_text() == "theirs"
    assert store.find("landscape", KEY, full=True)


@pytest.mark.slow
def test_racing_writers_never_mix_their_files(store, monkeypatch, tmp_path):
    writers, errors = 6, []
    start = threading.Barrier(writers)

    def write(text: str) -> None:
        try:
            with store.create("landscape", KEY, {}) as draft:
                for name in ("a.txt", "b.txt", "c.txt"):
                    draft.path(name).write_text(text)
                start.wait()
            opened = ArtifactStore(store.root.uri).open(draft.ref)
            assert len({opened.path(name).read_text() for name in opened.names()}) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    elsewhere = another_process(store, monkeypatch, tmp_path)
    opened = elsewhere.open(elsewhere.find("landscape", KEY, full=True))
    assert len({opened.path(name).read_text() for name in opened.names()}) == 1
    assert [stored.key for stored in store.iterate()] == [KEY]


def test_a_file_sent_between_ours_and_our_manifest_is_sent_again(faulty_s3, s3_root, s3_client, monkeypatch, tmp_path):
    monkeypatch.setattr("foretune.storage.commits.RACE_SECONDS", 0.2)
    bucket = s3_root.split("/")[2]

    def interfere() -> None:
        s3_client.put_object(
            Bucket=bucket,
            Key=f"root/artifacts/landscape/{KEY}/a.txt",
            Body=b"THEY",
            Metadata={"sha256": sha256(b"THEY").hexdigest()},
        )

    faulty_s3.inject(interfere, method="PUT", part="manifest.json")
    store = ArtifactStore(s3_root)
    ref = make(store)
    elsewhere = another_process(store, monkeypatch, tmp_path)
    assert elsewhere.open(ref).path("a.txt").read_text() == "text"
    assert elsewhere.find("landscape", KEY, full=True)


def test_a_reader_follows_a_writer_that_replaces_what_it_opened(s3_root, monkeypatch, tmp_path):
    store = ArtifactStore(s3_root)
    ref = make(store, "first")
    opened = another_process(store, monkeypatch, tmp_path).open(ref)
    store.delete("landscape", KEY)
    make(store, "second")
    assert opened.path("a.txt").read_text() == "second"
