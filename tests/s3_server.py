"""Real S3 servers for the store's tests: moto's (always), and Ceph's gateway where its Debian packages can be had.

Each runs in processes of its own on loopback; clients find it through the usual AWS_* variables.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.prefect_server import answers, free_port, running, wait_for

CEPH_PACKAGES = ("radosgw", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-common")
CEPH = Path(__file__).with_name("ceph_s3.sh")


def settings(port: int, key: str = "testkey", secret: str = "testsecret12") -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def moto(folder: Path) -> Iterator[dict[str, str]]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, folder / "moto.log", os.environ):
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/moto-api/"), "start of moto's server")
        yield settings(port)


@contextmanager
def ceph(folder: Path) -> Iterator[dict[str, str]]:
    """One node of Ceph with its gateway, contents in memory. Skips, saying why, where it cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("Ceph's gateway needs root")
    with (Path(tempfile.gettempdir()) / "llmcore-test-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be at it
        _install_ceph()
    port = free_port()
    command = ["bash", str(CEPH), "up", str(folder), str(port)]
    started = subprocess.run(command, capture_output=True, text=True, timeout=300)
    try:
        assert started.returncode == 0, started.stderr
        yield settings(port)
    finally:
        subprocess.run(["bash", str(CEPH), "down", str(folder)], check=False)


def _install_ceph() -> None:
    if shutil.which("radosgw"):
        return
    wanted = " ".join(CEPH_PACKAGES)
    if os.environ.get("LLMCORE_TEST_CEPH") == "0" or not shutil.which("apt-get"):
        pytest.skip(f"Ceph is not installed; its Debian packages are {wanted}")
    for words in (["update"], ["install", "-y", "--no-install-recommends", *CEPH_PACKAGES]):
        done = subprocess.run(["apt-get", *words], capture_output=True, text=True, timeout=500)
        if done.returncode:
            pytest.skip(f"apt-get {words[0]} failed: {done.stderr.strip().splitlines()[-1:]}")


@contextmanager
def in_environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def make_bucket(name: str) -> str:
    import boto3

    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
