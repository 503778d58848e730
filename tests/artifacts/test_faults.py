"""What must survive: kill -9 at any moment, two runs at once, flipped bytes, a full disk. Real processes throughout."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kills import storm
from llmcore.artifacts.index import resolve_ref
from llmcore.artifacts.manifest import Manifest, manifests
from llmcore.artifacts.store import Store, blob_name, open_store, suffix_of
from tests.small import small_config

pytestmark = pytest.mark.slow
LLMCORE = [sys.executable, "-m", "llmcore.cli"]


def llmcore(*words: str, env: dict[str, str], check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*LLMCORE, *words], env=env, capture_output=True, text=True, timeout=500)
    if check and done.returncode:
        raise AssertionError(f"llmcore {' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def model_of(store: Store) -> Manifest:
    (found,) = list(manifests(store, "train"))
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, prefect_server: dict[str, str]) -> Store:
    """The store of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    llmcore("run", str(small_config(folder)), env=prefect_server)
    return open_store(f"file://{folder}/store")


def test_killed_at_any_stage_everything_comes_out_the_same(tmp_path: Path, prefect_server: dict[str, str]) -> None:
    told = storm(8, 20261121, prefect_server, tmp_path)
    assert told["kills"] == 8 and told["through"] >= 1
    assert told["differing"] == []


@pytest.mark.nightly
def test_killed_two_hundred_times_over_every_stage_everything_comes_out_the_same(
    tmp_path: Path, prefect_server: dict[str, str]
) -> None:
    told = storm(200, 1, prefect_server, tmp_path)
    assert told["kills"] == 200
    assert told["differing"] == []
    assert len(told["by_stage"]) > 20


def test_two_runs_at_once_end_well_with_the_same_digests(
    tmp_path: Path, prefect_server: dict[str, str], undisturbed: Store
) -> None:
    config = small_config(tmp_path)
    both = [
        subprocess.Popen(
            [*LLMCORE, "run", str(config)],
            env=prefect_server,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    last_lines = {output.strip().splitlines()[-1] for output in outputs}
    assert len(last_lines) == 1
    assert model_of(open_store(f"file://{tmp_path}/store")).digest == model_of(undisturbed).digest


def test_verify_names_a_flipped_byte_in_any_blob(undisturbed: Store, prefect_server: dict[str, str]) -> None:
    top = resolve_ref(undisturbed, "small")
    blobs = {
        blob_name(output.blob, suffix_of(name)): (manifest.step, output)
        for manifest in manifests(undisturbed)
        for name, output in manifest.outputs.items()
        if output.bytes
    }
    for name in random.Random(7).sample(sorted(blobs), 4):
        path = undisturbed.backend.local(name)
        assert path is not None
        data = path.read_bytes()
        place = random.Random(name).randrange(len(data))
        path.chmod(0o644)
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            done = llmcore("verify", top.key, "--store", undisturbed.uri, env=prefect_server, check=False)
            assert done.returncode == 1
            assert name in done.stderr
        finally:
            path.write_bytes(data)
            path.chmod(0o444)
    llmcore("verify", "small", "--store", undisturbed.uri, env=prefect_server)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_one_clear_line_and_leaves_the_store_intact(
    tmp_path: Path, prefect_server: dict[str, str]
) -> None:
    small_disk = tmp_path / "disk"
    small_disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small_disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        config = small_config(tmp_path, store=f"file://{small_disk}/store")
        done = llmcore("run", str(config), env=prefect_server, check=False)
        assert done.returncode == 1
        assert "no space left" in done.stderr.strip().splitlines()[-1]
        assert "Traceback" not in done.stderr.strip().splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
        llmcore("run", str(config), env=prefect_server)
        llmcore("verify", "small", "--store", f"file://{small_disk}/store", env=prefect_server)
    finally:
        subprocess.run(["umount", "-l", str(small_disk)], check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a folder read-only needs root")
def test_a_store_that_cannot_be_written_to_serves_a_run_that_is_all_cached(
    tmp_path: Path, prefect_server: dict[str, str]
) -> None:
    config, store = str(small_config(tmp_path)), str(tmp_path / "store")
    llmcore("run", config, env=prefect_server)
    if subprocess.run(["mount", "--bind", store, store], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
        done = llmcore("run", config, env=prefect_server)
        assert done.stdout.strip().splitlines()[-1].startswith("model ")
        changed = llmcore("run", config, "--force", "pack", env=prefect_server, check=False)
        assert changed.returncode != 0
        assert "cannot write" in changed.stderr.strip().splitlines()[-1]
    finally:
        subprocess.run(["umount", "-l", store], check=False)


def test_lineage_reaches_the_sources(undisturbed: Store, prefect_server: dict[str, str]) -> None:
    done = llmcore("lineage", "small", "--json", "--store", undisturbed.uri, env=prefect_server)
    nodes = json.loads(done.stdout)
    assert nodes[0]["step"] == "collect notes"
    assert nodes[-1]["step"] == "publish"
