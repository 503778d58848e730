"""A disk that is full: one line, the checkpoint before stays, and nothing truncated is taken for whole."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from llmcore.errors import LlmcoreError, NoSpaceError
from llmcore.model import tensors
from llmcore.training import checkpoint, stage
from tests.local_files import LocalRun
from tests.training.corpus import TINY, WatchedRun, inputs_of, model_digest, train

MB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Take what is free of a disk, but for so many bytes."""
    ballast, disk = folder / "ballast", os.statvfs(folder)
    with ballast.open("ab") as file, suppress(OSError):
        file.write(bytes(max(0, disk.f_bavail * disk.f_frsize - leave)))
    return ballast


@dataclass
class FillingRun(WatchedRun):
    """Fills its disk again and again, once there is a checkpoint."""

    def progress(self, done: float, total: float, text: str = "") -> None:
        if done < total and any((self.scratch / "checkpoints").glob("step-*.json")):
            fill(self.root, 96_000)


@pytest.mark.slow
def test_a_full_disk_costs_no_checkpoint_and_no_bits(
    corpus: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "REPORT_SECONDS", 0.1)
    params = replace(TINY, steps=200, width=64, heads=4, checkpoint_every=20, validation_every=0)
    run = FillingRun(small_disk)
    with pytest.raises(LlmcoreError, match=r"^train: no space left (in|for) .*; free some"):
        train(inputs_of(corpus), params, run)
    said = (run.scratch / "trainer.log").read_text()
    assert "no checkpoint after step" in said and "the one before stays: no space left in" in said
    assert sorted((run.scratch / "checkpoints").glob("step-*.json"))
    (small_disk / "ballast").unlink()
    train(inputs_of(corpus), params, LocalRun(small_disk))
    assert "from step 0" not in (run.scratch / "trainer.log").read_text()
    alone = LocalRun(tmp_path / "alone")
    train(inputs_of(corpus), params, alone)
    assert model_digest(run) == model_digest(alone)


def test_what_does_not_fit_is_one_line_though_nobody_asked_before(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"a": torch.zeros(MB), "b": torch.ones(3)}
    fill(small_disk, MB)
    with pytest.raises(NoSpaceError, match=r"no space left in .*: 4\.2 MB are needed, 1\.\d MB are free; free some"):
        tensors.save_tensors(weights, small_disk / "w.safetensors")
    monkeypatch.setattr(tensors, "ask_for_room", lambda folder, needed: None)  # another takes the space in between
    with pytest.raises(NoSpaceError, match=r"no space left in .*: w.safetensors cannot be written"):
        tensors.save_tensors(weights, small_disk / "w.safetensors")
    (small_disk / "w.safetensors").unlink(missing_ok=True)
    fill(small_disk, 0)
    row = {"step": 1, "tokens": 1, "loss": 0.5, "learning_rate": 0.1, "grad_norm": 1.0, "validation_loss": None}
    with pytest.raises(NoSpaceError, match=r"no space left in .*: history.parquet cannot be written"):
        checkpoint.write_history([row] * 1000, small_disk / "history.parquet")


def test_a_broken_off_checkpoint_leaves_the_one_before(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = [{"step": 1, "tokens": 1, "loss": 0.5, "learning_rate": 0.1, "grad_norm": 1.0, "validation_loss": None}]
    small = checkpoint.Checkpoint(1, {"a": torch.ones(MB // 8)}, {}, history)
    checkpoint.save(small_disk, small, {"seed": 1})
    monkeypatch.setattr(tensors, "ask_for_room", lambda folder, needed: None)
    monkeypatch.setattr(checkpoint, "ask_for_room", lambda folder, needed: None)
    large = checkpoint.Checkpoint(2, {"a": torch.ones(MB)}, {"b": torch.ones(2 * MB)}, history)
    with pytest.raises(NoSpaceError):
        checkpoint.save(small_disk, large, {"seed": 1})
    assert sorted(path.name for path in small_disk.iterdir()) == ["step-00000001", "step-00000001.json"]
    found = checkpoint.latest(small_disk, {"seed": 1})
    assert found is not None and found.step == 1
