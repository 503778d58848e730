"""Where stores can lie. The tests that ask for `home` or `store` run once on each."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import settings as hypothesis

from llmcore.artifacts import jobs
from llmcore.artifacts.store import Store, open_store
from tests import s3_server
from tests.prefect_server import prefect_server

__all__ = ["prefect_server"]  # a fixture for every test

hypothesis.register_profile("ours", deadline=None)  # a busy machine is no defect
hypothesis.load_profile("ours")


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server.moto(tmp_path_factory.mktemp("moto")) as settings:
        yield settings


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server.ceph(tmp_path_factory.mktemp("ceph")) as settings:
        yield settings


@pytest.fixture(scope="module", params=["file", "moto", "ceph"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where stores can lie: a folder, moto's S3 server, Ceph's S3 gateway. The same tests hold on each."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "file":
        yield f"file://{folder}"
        return
    settings: dict[str, str] = request.getfixturevalue(f"{request.param}_server")
    with s3_server.in_environment({**settings, "LLMCORE_CACHE": str(folder / "cache")}):
        jobs.stop_workers()  # they would still know the last server
        yield s3_server.make_bucket(f"stores-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def store(home: str) -> Store:
    return open_store(f"{home}/{uuid.uuid4().hex}")
