"""The store on any S3-compatible server, over boto3. Commits are `If-None-Match: *` writes.

Fetched objects are kept in a local cache folder (`LLMCORE_CACHE`, default `~/.cache/llmcore`), named by bucket and key;
whoever uses one verifies it against its name.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, NoCredentialsError

from llmcore.artifacts.backends import Entry
from llmcore.errors import LlmcoreError, UsageError

ABSENT = ("404", "NoSuchKey", "NotFound")
LOST_RACE = ("412", "PreconditionFailed")
# AWS and some servers answer 409 while another conditional write of the same key is under way
IN_FLIGHT = ("409", "ConditionalRequestConflict")
# what one copy request may hold (S3's own limit is 5 GiB), and the parts a larger object is copied in
COPY_LIMIT = 5 << 30
COPY_PARTS = TransferConfig(multipart_threshold=COPY_LIMIT, multipart_chunksize=1 << 30)
UPLOAD = "?uploadId="


class S3Backend:
    rewritten_bytes = 1 << 20  # one request instead of two

    """A bucket, or a part of one. `requests` counts what this process asked of it, by operation."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.client: Any = boto3.client(
            "s3",
            config=Config(
                connect_timeout=5,
                read_timeout=60,
                retries={"max_attempts": 4, "mode": "standard"},
                # servers other than AWS reject the newer default checksums; blobs are verified by us
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                max_pool_connections=32,
            ),
        )
        self.requests: Counter[str] = Counter()
        self.client.meta.events.register("before-send.s3", self._count)
        cache = Path(os.environ.get("LLMCORE_CACHE", Path.home() / ".cache" / "llmcore"))
        endpoint = hashlib.sha256(str(self.client.meta.endpoint_url).encode()).hexdigest()[:12]
        self.cache = cache / endpoint / bucket

    def _count(self, event_name: str, **_: Any) -> None:
        self.requests[event_name.rsplit(".", 1)[1]] += 1

    def check(self) -> None:
        """UsageError if the bucket does not answer."""
        with self._errors("reach"):
            self.client.head_bucket(Bucket=self.bucket)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        where = f"s3://{self.bucket}/{self.prefix}"
        try:
            yield
        except (EndpointConnectionError, NoCredentialsError) as error:
            raise UsageError(f"cannot {doing} {where}: {error}; check `store` and the AWS_* settings") from error
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            text = f"cannot {doing} {where}: {error.response['Error'].get('Code')} (HTTP {status})"
            if status in (301, 400, 401, 403, 404):
                raise UsageError(f"{text}; check `store` and the AWS_* settings") from error
            raise LlmcoreError(f"{text}; run again") from error
        except BotoCoreError as error:
            raise UsageError(f"cannot {doing} {where}: {error}; check `store` and the AWS_* settings") from error

    def read(self, name: str) -> bytes | None:
        with self._errors(f"read {name} in"):
            try:
                body: bytes = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].read()
            except ClientError as error:
                if error.response["Error"]["Code"] in ABSENT:
                    return None
                raise
        return body

    def create(self, name: str, data: bytes) -> bool:
        with self._errors(f"write {name} in"):
            for attempt in range(20):
                try:
                    self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    code = error.response["Error"]["Code"]
                    if code in LOST_RACE:
                        # a retried request may have met its own first write
                        return self.read(name) == data
                    if code not in IN_FLIGHT:
                        raise
                    time.sleep(0.02 * (attempt + 1))
        raise LlmcoreError(f"cannot write {name} in s3://{self.bucket}: the server keeps answering 409; run again")

    def replace(self, name: str, data: bytes) -> None:
        with self._errors(f"write {name} in"):
            self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data)

    def upload(self, name: str, path: Path) -> None:
        with self._errors(f"upload {name} to"):
            self.client.upload_file(str(path), self.bucket, self.prefix + name)

    def local(self, name: str, fresh: bool = False) -> Path | None:
        target = self.cache / (self.prefix + name)
        if not fresh and name.startswith("blobs/") and target.is_file():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=".aside-", dir=target.parent)
        os.close(handle)
        try:
            with self._errors(f"fetch {name} from"):
                try:
                    self.client.download_file(self.bucket, self.prefix + name, aside)
                except ClientError as error:
                    if error.response["Error"]["Code"] in ABSENT:
                        return None
                    raise
            os.replace(aside, target)
        finally:
            Path(aside).unlink(missing_ok=True)
        return target

    def entry(self, name: str) -> Entry | None:
        with self._errors(f"look at {name} in"):
            try:
                head = self.client.head_object(Bucket=self.bucket, Key=self.prefix + name)
            except ClientError as error:
                if error.response["Error"]["Code"] in ABSENT:
                    return None
                raise
        return Entry(name, head["ContentLength"], head["LastModified"].astimezone(UTC))

    def entries(self, prefix: str) -> Iterator[Entry]:
        with self._errors(f"list {prefix} in"):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    yield Entry(
                        item["Key"].removeprefix(self.prefix), item["Size"], item["LastModified"].astimezone(UTC)
                    )

    def delete(self, name: str) -> None:
        with self._errors(f"delete {name} in"):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)
        (self.cache / (self.prefix + name)).unlink(missing_ok=True)

    def renew(self, name: str) -> bool:
        key = self.prefix + name
        itself = {"Bucket": self.bucket, "Key": key}
        with self._errors(f"renew {name} in"):
            try:
                head = self.client.head_object(**itself)
                if head["ContentLength"] <= COPY_LIMIT:
                    # S3 refuses to copy an object onto itself unless something about it is replaced
                    self.client.copy_object(**itself, CopySource=itself, MetadataDirective="REPLACE")
                else:
                    self.client.copy(itself, self.bucket, key, Config=COPY_PARTS)
            except ClientError as error:
                if error.response["Error"]["Code"] in ABSENT:
                    return False
                raise
        return True

    def unfinished(self) -> Iterator[Entry]:
        with self._errors("list the uploads to"):
            for page in self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self.prefix
            ):
                for item in page.get("Uploads", ()):
                    name = item["Key"].removeprefix(self.prefix) + UPLOAD + item["UploadId"]
                    yield Entry(name, 0, item["Initiated"].astimezone(UTC))

    def abandon(self, entry: Entry) -> None:
        name, _, upload = entry.name.rpartition(UPLOAD)
        with self._errors(f"abandon an upload of {name} to"):
            try:
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=self.prefix + name, UploadId=upload)
            except ClientError as error:
                if error.response["Error"]["Code"] not in (*ABSENT, "NoSuchUpload"):
                    raise

    def now(self) -> datetime:
        with self._errors("ask the time of"):
            answer = self.client.head_bucket(Bucket=self.bucket)
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).astimezone(UTC)
