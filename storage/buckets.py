"""S3 buckets: every request is retried within bounds, large objects move in parts, nothing is listed twice.

Credentials, endpoint and region come from the environment only (AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL,
AWS_REGION, AWS_ACCESS_KEY_ID, ...). A bucket is never created.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import fsspec.asyn
import s3fs

from foretune.storage.disk import Entry, hidden
from foretune.storage.errors import BadInput, StorageFault, disk_faults
from foretune.storage.s3_faults import attempt, endpoint, missing_bucket, whole

PART_BYTES = 8 * 2**20  # S3's least part is 5 MiB
STREAMS = 4  # a transfer holds at most STREAMS * PART_BYTES in memory
BATCH = 1000  # S3's limit for one page of a listing and for one deletion
MOST_PARTS = 10_000  # S3's limit for one object
CONNECT_TIMEOUT, READ_TIMEOUT = 5, 20  # seconds
COMPLETION_PATIENCE = 30.0  # seconds for S3 to put together an upload whose completion timed out

_ENVIRONMENT = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)

_SAID = {
    "head_object": ("ContentLength", "LastModified", "ETag"),
    "create_multipart_upload": ("UploadId",),
    "upload_part": ("ETag",),
    "Contents": ("Key", "Size", "LastModified", "ETag"),
    "CommonPrefixes": ("Prefix",),
    "Uploads": ("Key", "UploadId", "Initiated"),
}
"""What an answer of this method, or an item of this name in it, holds on every S3."""
_LISTED = {"list_objects_v2": ("Contents", "CommonPrefixes"), "list_multipart_uploads": ("Uploads",)}


def _connection() -> s3fs.S3FileSystem:
    settings = tuple(os.environ.get(name, "") for name in _ENVIRONMENT)
    return _connect(os.getpid(), settings, READ_TIMEOUT)


@functools.lru_cache(maxsize=8)
def _connect(pid: int, settings: tuple[str, ...], read_timeout: float) -> s3fs.S3FileSystem:
    """One client per process and environment; a forked child must not share its parent's sockets."""
    named = endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    client = {"endpoint_url": None if named == "AWS" else named, "region_name": region}
    filesystem = s3fs.S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        client_kwargs={name: value for name, value in client.items() if value},
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": read_timeout,
            "max_pool_connections": 32,
            "retries": {"total_max_attempts": 1},
        },
    )
    # Retries belong to `attempt` alone: three nested loops would multiply to minutes of silence.
    filesystem.retries = 1
    return filesystem


class Bucket:
    """One bucket, addressed by keys. A missing object is FileNotFoundError, a missing bucket BadInput."""

    def __init__(self, name: str):
        self.name = name
        self._seen = False

    def _ask(self, method: str, key: str, **request: Any) -> dict[str, Any]:
        def call() -> dict[str, Any]:
            # fsspec makes call_s3 of a coroutine, and types it as giving nothing.
            answer: Any = _connection().call_s3(method, Bucket=self.name, **request)
            whole(answer, *_SAID.get(method, ()))
            for name in _LISTED.get(method, ()):
                for item in answer.get(name, ()):
                    whole(item, *_SAID[name])
            return answer

        return attempt(call, self._uri(key))

    def _fetch(self, key: str, **request: Any) -> bytes:
        async def body(connection: s3fs.S3FileSystem) -> bytes:
            # The coroutine behind call_s3 has no public name.
            reply = await connection._call_s3(  # pyright: ignore[reportPrivateUsage]
                "get_object", Bucket=self.name, Key=key, **request
            )
            async with reply["Body"] as stream:
                return await stream.read()

        def call() -> bytes:
            connection = _connection()
            data: Any = fsspec.asyn.sync(connection.loop, body, connection)  # typed as giving nothing
            return data

        return attempt(call, self._uri(key))

    def _uri(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def entry(self, key: str) -> Entry | None:
        if not key:
            return None
        try:
            head = self._ask("head_object", key, Key=key)
        except FileNotFoundError:
            # A HEAD has no body: its 404 may mean the object or the bucket.
            self.require()
            return None
        self._seen = True
        return Entry(
            name=key.rsplit("/", 1)[-1],
            size=head["ContentLength"],
            modified=head["LastModified"].timestamp(),
            etag=head["ETag"].strip('"'),
            sha256=head.get("Metadata", {}).get("sha256"),
        )

    def require(self) -> None:
        """Raise BadInput unless the bucket exists; asked once per process."""
        if self._seen:
            return
        try:
            self._ask("head_bucket", "")
        except FileNotFoundError as error:
            raise missing_bucket(self._uri("")) from error
        self._seen = True

    def is_folder(self, key: str) -> bool:
        prefix = f"{key}/" if key else ""
        return bool(self._ask("list_objects_v2", key, Prefix=prefix, MaxKeys=1).get("Contents"))

    def read(self, key: str) -> bytes:
        return self._fetch(key)

    def open(self, key: str) -> BinaryIO:
        """A seekable stream of ranged reads; holds one part in memory."""
        return io.BufferedReader(_RangedObject(self, key), PART_BYTES)

    def read_range(self, key: str, start: int, stop: int, etag: str) -> bytes:
        """Bytes [start, stop); StorageFault when the object is no longer the one with this etag."""
        return self._fetch(key, Range=f"bytes={start}-{stop - 1}", IfMatch=f'"{etag}"')

    def write(self, key: str, data: bytes) -> None:
        self._ask("put_object", key, Key=key, Body=data)

    def upload(self, local: Path, key: str, sha256: str | None = None) -> None:
        """Send a file, in parts when it is large; `sha256` is recorded beside the object."""
        size = local.stat().st_size
        metadata = {"sha256": sha256} if sha256 else {}
        if size <= PART_BYTES:
            self._ask("put_object", key, Key=key, Body=local.read_bytes(), Metadata=metadata)
        else:
            self._upload_parts(local, key, size, metadata)

    def _upload_parts(self, local: Path, key: str, size: int, metadata: dict[str, str]) -> None:
        upload = self._ask("create_multipart_upload", key, Key=key, Metadata=metadata)["UploadId"]
        step = max(PART_BYTES, -(-size // MOST_PARTS))

        def send(start: int) -> dict[str, Any]:
            number = start // step + 1
            body = _read_at(local, start, min(step, size - start))
            sent = self._ask("upload_part", key, Key=key, UploadId=upload, PartNumber=number, Body=body)
            return {"PartNumber": number, "ETag": sent["ETag"]}

        try:
            parts = _in_parallel(send, range(0, size, step))
            self._complete(key, upload, parts, size)
        except BaseException:
            # The reason to stop is worth more than a failure to tidy up after it.
            with contextlib.suppress(StorageFault, BadInput, FileNotFoundError):
                self._ask("abort_multipart_upload", key, Key=key, UploadId=upload)
            raise

    def _complete(self, key: str, upload: str, parts: list[dict[str, Any]], size: int) -> None:
        try:
            self._ask("complete_multipart_upload", key, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
        except FileNotFoundError as error:
            # No such upload: an earlier attempt, reply lost, completed it or still does; or it is aborted.
            deadline = time.monotonic() + COMPLETION_PATIENCE
            while (stored := self.entry(key)) is None or stored.size != size:
                if time.monotonic() > deadline:
                    raise StorageFault(f"{self._uri(key)}: S3 lost the upload; run again") from error
                time.sleep(0.5)

    def download(self, key: str, local: Path) -> None:
        """Write the object to `local`, in parts when it is large."""
        stored = self.entry(key)
        if stored is None:
            raise FileNotFoundError(self._uri(key))
        with disk_faults(local), open(local, "wb") as stream:
            stream.truncate(stored.size)

            def receive(start: int) -> None:
                stop = min(start + PART_BYTES, stored.size)
                os.pwrite(stream.fileno(), self.read_range(key, start, stop, stored.etag), start)

            _in_parallel(receive, range(0, stored.size, PART_BYTES))
            stream.flush()
            os.fsync(stream.fileno())

    def _pages(self, prefix: str, **request: Any) -> Iterator[dict[str, Any]]:
        while True:
            page = self._ask("list_objects_v2", prefix, Prefix=prefix, MaxKeys=BATCH, **request)
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def children(self, key: str) -> tuple[list[str], list[str]]:
        """Names of the objects and of the folders right below `key`; both empty where nothing is there."""
        prefix = f"{key}/" if key else ""
        files, folders = [], []
        for page in self._pages(prefix, Delimiter="/"):
            files += [item["Key"].removeprefix(prefix) for item in page.get("Contents", [])]
            folders += [item["Prefix"].removeprefix(prefix)[:-1] for item in page.get("CommonPrefixes", [])]
        return [n for n in files if n and not hidden(n)], [n for n in folders if n and not hidden(n)]

    def walk(self, key: str) -> Iterator[Entry]:
        """Every object below `key`, a page at a time; names with a dotted part left out, as on disk."""
        prefix = f"{key}/" if key else ""
        for item in self._objects(prefix):
            name = item["Key"].removeprefix(prefix)
            if name.endswith("/") or hidden(name):
                continue  # consoles mark empty folders with objects whose name ends in a slash
            yield Entry(name, item["Size"], item["LastModified"].timestamp(), item["ETag"].strip('"'))

    def _objects(self, prefix: str) -> Iterator[dict[str, Any]]:
        for page in self._pages(prefix):
            yield from page.get("Contents", [])

    def delete(self, key: str) -> None:
        """Remove the object and everything below it; nothing there is no error."""
        below = [item["Key"] for item in self._objects(f"{key}/" if key else "")]
        if key:
            self._ask("delete_object", key, Key=key)
        self._delete_all(key, below)

    def delete_files(self, key: str, names: list[str]) -> None:
        """Remove these objects below a prefix."""
        self._delete_all(key, [f"{key}/{name}" if key else name for name in names])

    def _delete_all(self, key: str, keys: list[str]) -> None:
        for start in range(0, len(keys), BATCH):
            batch = {"Objects": [{"Key": name} for name in keys[start : start + BATCH]], "Quiet": True}
            refused = self._ask("delete_objects", key, Delete=batch).get("Errors")
            if refused:
                raise StorageFault(
                    f"{self._uri(refused[0]['Key'])}: S3 will not delete it ({refused[0].get('Code')}); "
                    "check the bucket's policy"
                )

    def abandon_uploads(self, key: str, before: float, named: re.Pattern[str]) -> int:
        """Abort uploads of these names below `key` begun before `before` (epoch seconds): parts of killed writers."""
        uploads = self._ask("list_multipart_uploads", key, Prefix=f"{key}/").get("Uploads", [])
        old = [
            upload
            for upload in uploads
            if upload["Initiated"].timestamp() < before and named.fullmatch(upload["Key"].removeprefix(f"{key}/"))
        ]
        for upload in old:
            self._ask("abort_multipart_upload", key, Key=upload["Key"], UploadId=upload["UploadId"])
        return len(old)


def _read_at(local: Path, start: int, count: int) -> bytes:
    with open(local, "rb") as stream:
        stream.seek(start)
        return stream.read(count)


def _in_parallel(work: Callable[[int], Any], starts: range) -> list[Any]:
    with ThreadPoolExecutor(STREAMS) as pool:
        futures = [pool.submit(work, start) for start in starts]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


class _RangedObject(io.RawIOBase):
    """An object as a raw stream; every read is one ranged, retried request."""

    def __init__(self, bucket: Bucket, key: str):
        stored = bucket.entry(key)
        if stored is None:
            raise FileNotFoundError(f"s3://{bucket.name}/{key}")
        self._bucket, self._key, self._stored, self._at = bucket, key, stored, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._stored.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readall(self) -> bytes:
        # The inherited one asks for 8 KiB at a time: a request each.
        parts = []
        while part := self.read(PART_BYTES):
            parts.append(part)
        return b"".join(parts)

    def readinto(self, buffer: Any) -> int:  # a writable buffer
        stop = min(self._at + len(buffer), self._stored.size)
        if stop <= self._at:
            return 0
        data = self._bucket.read_range(self._key, self._at, stop, self._stored.etag)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
