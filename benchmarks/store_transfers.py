"""Blobs to and from S3 one after the other and TRANSFERS at a time, with a server 50 ms away; prints one JSON line.

    python -m benchmarks.store_transfers [BLOBS] [BYTES]

The server is moto's, on this machine, behind a proxy that delays each request.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from llmcore.artifacts.s3 import S3Backend
from llmcore.artifacts.store import TRANSFERS, open_store
from tests import s3_server
from tests.delaying_proxy import delaying_proxy

DELAY_SECONDS = 0.05


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return round(time.perf_counter() - begun, 2)


def main(blobs: int = 200, size: int = 20_000) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"{number}.bin" for number in range(2 * blobs)]
        for file in files:
            file.write_bytes(os.urandom(size))
        with s3_server.moto(folder) as server, s3_server.in_environment(server):
            bucket = s3_server.make_bucket("transfers")
            port = int(server["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
            with delaying_proxy(port, DELAY_SECONDS) as far:
                away = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{far}", "LLMCORE_CACHE": str(folder / "cache")}
                with s3_server.in_environment(away):
                    print(json.dumps(measure(bucket, files, blobs, size)))


def measure(bucket: str, files: list[Path], blobs: int, size: int) -> dict[str, float]:
    store = open_store(bucket)
    assert isinstance(store.backend, S3Backend)
    store.commit("begin.json", {})  # the first write proves the server
    store.backend.requests.clear()
    digests: list[str] = []
    put_serial = seconds(lambda: digests.extend(store.put_blob(file) for file in files[:blobs]))
    put_parallel = seconds(lambda: digests.extend(store.put_blobs((file, "") for file in files[blobs:])))
    fetch_serial = seconds(lambda: [store.fetch_blob(digest) for digest in digests[:blobs]])
    fetch_parallel = seconds(lambda: store.fetch_blobs((digest, "", "") for digest in digests[blobs:]))
    return {
        "blobs": blobs,
        "bytes": size,
        "delay_seconds": DELAY_SECONDS,
        "transfers": TRANSFERS,
        "put_serial_seconds": put_serial,
        "put_parallel_seconds": put_parallel,
        "fetch_serial_seconds": fetch_serial,
        "fetch_parallel_seconds": fetch_parallel,
        "requests_per_put": (store.backend.requests["HeadObject"] + store.backend.requests["PutObject"]) / (2 * blobs),
        "requests_per_fetch": store.backend.requests["GetObject"] / (2 * blobs),
    }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
