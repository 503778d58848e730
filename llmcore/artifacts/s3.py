"""The store on any S3-compatible server, over boto3. Commits are `If-None-Match: *` writes.

Fetched blobs are kept in the local cache folder, named by bucket and key;
whoever uses one verifies it against its name. What the network breaks is tried again (`outage.py`).
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

from llmcore.artifacts.backends import Entry
from llmcore.artifacts.cache import BlobCache
from llmcore.artifacts.disk import ask_for_room, disk_errors
from llmcore.artifacts.memory import cache_folder
from llmcore.artifacts.outage import answer_to, code_of
from llmcore.errors import LlmcoreError, UsageError

ABSENT = ("404", "NoSuchKey", "NotFound")
LOST_RACE = ("412", "PreconditionFailed")
# AWS and some servers answer 409 while another conditional write of the same key is under way
IN_FLIGHT = ("409", "ConditionalRequestConflict")
# what one copy request may hold (S3's own limit is 5 GiB), and the parts a larger object is copied in
COPY_LIMIT = 5 << 30
COPY_PARTS = TransferConfig(multipart_threshold=COPY_LIMIT, multipart_chunksize=1 << 30)
UPLOAD_PART = 8 << 20
UPLOAD_PARTS = TransferConfig(multipart_threshold=UPLOAD_PART, multipart_chunksize=UPLOAD_PART)
# up to here one request fetches an object; beyond, several fetch its parts at once
ONE_REQUEST = 32 << 20
CHUNK = 1 << 20
UPLOAD = "?uploadId="

Answer = TypeVar("Answer")


class S3Backend:
    """A bucket, or a part of one. `requests` counts what this process asked of it, by operation."""

    rewritten_bytes = 1 << 20  # one request instead of three

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.client: Any = boto3.client(
            "s3",
            config=Config(
                connect_timeout=5,
                read_timeout=60,
                retries={"max_attempts": 2, "mode": "standard"},
                # servers other than AWS reject the newer default checksums; blobs are verified by us
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                max_pool_connections=32,
            ),
        )
        self.requests: Counter[str] = Counter()
        self.client.meta.events.register("before-send.s3", self._count)
        self._probing = threading.Lock()
        self._probed = False
        endpoint = hashlib.sha256(str(self.client.meta.endpoint_url).encode()).hexdigest()[:12]
        self.cache = BlobCache(cache_folder() / "blobs", f"{endpoint}/{bucket}")

    def _count(self, event_name: str, **_: Any) -> None:
        self.requests[event_name.rsplit(".", 1)[1]] += 1

    def _ask(self, doing: str, request: Callable[[], Answer], opening: bool = False) -> Answer:
        return answer_to(request, doing, f"s3://{self.bucket}/{self.prefix}", opening)

    def _ask_for(self, doing: str, request: Callable[[], Answer]) -> Answer | None:
        """None if there is no such object."""

        def unless_absent() -> Answer | None:
            try:
                return request()
            except ClientError as error:
                if code_of(error) in ABSENT:
                    return None
                raise

        return self._ask(doing, unless_absent)

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + name}

    def check(self) -> None:
        """UsageError if the bucket does not answer."""
        self._ask("reach", lambda: self.client.head_bucket(Bucket=self.bucket), opening=True)

    def read(self, name: str) -> bytes | None:
        def request() -> bytes:
            body: bytes = self.client.get_object(**self._at(name))["Body"].read()
            return body

        return self._ask_for(f"read {name} in", request)

    def create(self, name: str, data: bytes) -> bool:
        self._probe_once()
        return self._create(name, data)

    def _create(self, name: str, data: bytes) -> bool:
        for attempt in range(20):
            code = self._ask(f"write {name} in", lambda: self._put_unless_there(name, data))
            if code is None:
                return True
            if code in LOST_RACE:
                # a request that was tried again may have met its own first write
                return self.read(name) == data
            time.sleep(0.02 * (attempt + 1))
        raise LlmcoreError(f"cannot write {name} in s3://{self.bucket}: the server keeps answering 409; run again")

    def _put_unless_there(self, name: str, data: bytes) -> str | None:
        try:
            self.client.put_object(**self._at(name), Body=data, IfNoneMatch="*")
        except ClientError as error:
            if code_of(error) in (*LOST_RACE, *IN_FLIGHT):
                return code_of(error)
            raise
        return None

    def probe(self) -> None:
        """Create one object twice: a server that allows it would let two runs commit one artifact."""
        name = f"runs/probe/{uuid.uuid4().hex}"
        if not self._create(name, b"1"):
            raise LlmcoreError(f"cannot write {name} in s3://{self.bucket}: it is there already; run again")
        twice = self._create(name, b"2")
        self.delete(name)
        if twice:
            raise UsageError(
                f"the server of s3://{self.bucket} ignores `If-None-Match`, so two runs could commit one artifact: "
                "use a server that honours it (AWS, Ceph, MinIO) or a folder as `store`"
            )

    def _probe_once(self) -> None:
        with self._probing:
            if not self._probed:
                self.probe()
                self._probed = True

    def replace(self, name: str, data: bytes) -> None:
        self._probe_once()
        self._ask(f"write {name} in", lambda: self.client.put_object(**self._at(name), Body=data))

    def upload(self, name: str, path: Path) -> None:
        self._probe_once()
        with disk_errors("read", str(path), "make it readable"):
            self._ask(
                f"upload {name} to",
                lambda: self.client.upload_file(str(path), self.bucket, self.prefix + name, Config=UPLOAD_PARTS),
            )

    def local(self, name: str, fresh: bool = False) -> Path | None:
        key = self.prefix + name
        kept = self.cache.find(key) if name.startswith("blobs/") and not fresh else None
        if kept is not None:
            return kept

        def request() -> Path:
            answer = self.client.get_object(**self._at(name))
            with self.cache.filling(key, answer["ContentLength"]) as aside:
                self._write(name, answer, aside)
            return self.cache.path(key)

        return self._ask_for(f"fetch {name} from", request)

    def download(self, name: str, path: Path) -> bool:
        def request() -> bool:
            answer = self.client.get_object(**self._at(name))
            ask_for_room(path.parent, answer["ContentLength"], str(path.parent))
            self._write(name, answer, path)
            return True

        with disk_errors("write", str(path), "choose another folder"):
            return bool(self._ask_for(f"fetch {name} from", request))

    def _write(self, name: str, answer: Any, path: Path) -> None:
        with closing(answer["Body"]) as body:
            if answer["ContentLength"] <= ONE_REQUEST:
                with path.open("wb") as file:
                    for chunk in body.iter_chunks(CHUNK):
                        file.write(chunk)
                return
        self.client.download_file(self.bucket, self.prefix + name, str(path))

    def entry(self, name: str) -> Entry | None:
        head = self._head(name, "look at")
        return None if head is None else Entry(name, head["ContentLength"], _whole(head["LastModified"]))

    def _head(self, name: str, doing: str) -> Any:
        return self._ask_for(f"{doing} {name} in", lambda: self.client.head_object(**self._at(name)))

    def entries(self, prefix: str) -> Iterator[Entry]:
        after: dict[str, str] = {}
        while True:
            page = self._page(self.client.list_objects_v2, prefix, after)
            for item in page.get("Contents", ()):
                yield Entry(item["Key"].removeprefix(self.prefix), item["Size"], _whole(item["LastModified"]))
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def unfinished(self) -> Iterator[Entry]:
        after: dict[str, str] = {}
        while True:
            page = self._page(self.client.list_multipart_uploads, "", after)
            for item in page.get("Uploads", ()):
                name = item["Key"].removeprefix(self.prefix) + UPLOAD + item["UploadId"]
                yield Entry(name, 0, _whole(item["Initiated"]))
            if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
                return
            after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}

    def _page(self, operation: Callable[..., Any], prefix: str, after: dict[str, str]) -> Any:
        return self._ask(
            f"list {prefix} in", lambda: operation(Bucket=self.bucket, Prefix=self.prefix + prefix, **after)
        )

    def holds(self, name: str, path: Path) -> bool:
        """By size and ETag, which is the MD5 of the bytes or of the parts they were uploaded in.

        Where the server says something else (it encrypts with a key of its own, say) the answer is no.
        """
        head = self._head(name, "look at")
        with disk_errors("read", str(path), "make it readable"):
            stat = path.stat()
            return (
                head is not None
                and head["ContentLength"] == stat.st_size
                and head["ETag"].strip('"') in _etags(path, stat.st_size, stat.st_mtime_ns)
            )

    def renew(self, name: str) -> bool:
        self._probe_once()
        itself = self._at(name)

        def request() -> bool:
            # S3 refuses to copy an object onto itself unless something about it is replaced
            if self.client.head_object(**itself)["ContentLength"] <= COPY_LIMIT:
                self.client.copy_object(**itself, CopySource=itself, MetadataDirective="REPLACE")
            else:
                self.client.copy(itself, itself["Bucket"], itself["Key"], Config=COPY_PARTS)
            return True

        return bool(self._ask_for(f"renew {name} in", request))

    def abandon(self, entry: Entry) -> None:
        name, _, upload = entry.name.rpartition(UPLOAD)

        def request() -> None:
            try:
                self.client.abort_multipart_upload(**self._at(name), UploadId=upload)
            except ClientError as error:
                if code_of(error) not in (*ABSENT, "NoSuchUpload"):
                    raise

        self._ask(f"abandon an upload of {name} to", request)

    def delete(self, name: str) -> None:
        self._ask(f"delete {name} in", lambda: self.client.delete_object(**self._at(name)))
        self.cache.forget(self.prefix + name)

    def now(self) -> datetime:
        answer = self._ask("ask the time of", lambda: self.client.head_bucket(Bucket=self.bucket))
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).astimezone(UTC)


@lru_cache(maxsize=1024)
def _etags(path: Path, size: int, mtime_ns: int) -> frozenset[str]:
    """What S3 may call these bytes: uploaded at once, or in our parts. The file's size and time are the cache's key."""
    whole, parts = hashlib.md5(usedforsecurity=False), []
    with path.open("rb") as file:
        while part := file.read(UPLOAD_PART):
            whole.update(part)
            parts.append(hashlib.md5(part, usedforsecurity=False).digest())
    in_parts = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return frozenset({whole.hexdigest(), f"{in_parts}-{len(parts)}"})


def _whole(moment: datetime) -> datetime:
    """In whole seconds, as the server's clock is told in its answers: some stamp objects more finely than that."""
    return moment.astimezone(UTC).replace(microsecond=0)
