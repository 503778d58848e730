"""The commands that make something, one after another: dataset, refresh, pretrain, release."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmcore.artifacts import roots
from llmcore.artifacts.manifest import manifests
from llmcore.artifacts.store import open_store
from llmcore.planning.heads import dataset_ref
from tests.prefect_server import running, wait_for
from tests.small import small_config

# a refresh that goes on for as long as it is let: it holds what a refresh holds
HOLD = """
import signal, sys
from llmcore.artifacts import lease
from llmcore.artifacts.store import open_store
held = lease.take(open_store(sys.argv[1]), "dataset-small", lambda: True, print)
print("held", flush=True)
signal.pause()
"""
pytestmark = pytest.mark.slow


def call(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llmcore.cli", *words], env=env, capture_output=True, text=True)


def last_line(*words: str, env: dict[str, str]) -> str:
    done = call(*words, env=env)
    assert done.returncode == 0, f"llmcore {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_each_command_ends_in_a_line_that_names_what_it_made(tmp_path: Path, prefect_server: dict[str, str]) -> None:
    config = str(small_config(tmp_path))
    store = open_store(f"file://{tmp_path}/store")
    for early in ("refresh", "pretrain", "release"):
        done = call(early, config, env=prefect_server)
        assert done.returncode == 2
        assert done.stderr.strip().splitlines()[-1].startswith("llmcore: no dataset 'small'")

    assert last_line("dataset", config, env=prefect_server).startswith("dataset    datasets/small ")
    assert not list(manifests(store, "train"))
    first = roots.ref(store, dataset_ref("small"))
    assert first is not None

    (tmp_path / "texts" / "added.txt").write_text((tmp_path / "texts" / "000.txt").read_text()[::2] * 2)
    line = last_line("refresh", config, env=prefect_server)
    refreshed = roots.ref(store, dataset_ref("small"))
    assert refreshed is not None and refreshed.record["key"] != first.record["key"]
    assert refreshed.record["key"][:12] in line

    line = last_line("pretrain", config, env=prefect_server)
    (model,) = manifests(store, "train")
    assert line.startswith("model      train/") and model.key[:12] in line
    assert not list(manifests(store, "publish"))

    name, folder, *_ = last_line("release", config, env=prefect_server).split()
    assert name == "model" and (Path(folder) / "model.safetensors").exists()
    assert len(list(manifests(store, "train"))) == 1, "release finds the model that pretrain trained"


def test_a_dataset_is_refreshed_by_one_at_a_time_and_a_killed_one_is_out_of_the_way(
    tmp_path: Path, prefect_server: dict[str, str]
) -> None:
    config = str(small_config(tmp_path))
    last_line("dataset", config, env=prefect_server)
    with running([sys.executable, "-c", HOLD, f"file://{tmp_path}/store"], tmp_path / "held.log", os.environ) as held:
        wait_for(lambda: (tmp_path / "held.log").read_text(), "the lock that another refresh holds")
        refused = call("refresh", config, env=prefect_server)
        assert refused.returncode == 1
        assert f"llmcore: dataset 'small' is being refreshed by process {held.pid} on " in refused.stderr
        assert "Traceback" not in refused.stderr
        held.kill()
        held.wait()
        assert last_line("refresh", config, env=prefect_server).startswith("dataset ")
