"""A trainer that stands still is reported, ended with all it started, and started again from its checkpoint."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from llmcore.errors import LlmcoreError
from llmcore.training import stage
from llmcore.training.heartbeat import STARTING_SECONDS, Pulse
from tests.local_files import LocalRun
from tests.training.corpus import TINY, WatchedRun, inputs_of, model_digest, train, trainer_pid

HANGING = replace(TINY, steps=400, hang_seconds=6.0)


@dataclass
class StoppingRun(WatchedRun):
    """Stops the trainer's last process (the only one, or a worker of torchrun) at a step, so many times."""

    at: int = 20
    times: int = 1
    texts: list[str] = field(default_factory=list)
    stopped: list[psutil.Process] = field(default_factory=list)

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.texts.append(text)
        if self.at <= done < total and len(self.stopped) < self.times:
            trainer = psutil.Process(trainer_pid(self))
            victim = [trainer, *trainer.children()][-1]
            if victim not in self.stopped:
                self.stopped.append(victim)
                os.kill(victim.pid, signal.SIGSTOP)


@pytest.fixture
def alone(corpus: Path, tmp_path: Path) -> LocalRun:
    run = LocalRun(tmp_path / "alone")
    train(inputs_of(corpus), replace(HANGING, hang_seconds=0.0), run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_trainer_that_stands_still_is_ended_and_goes_on_to_the_same_bits(
    corpus: Path, alone: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, processes: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(stage, "REPORT_SECONDS", 0.1)
    monkeypatch.setattr(stage, "STILL_SECONDS", 1.0)
    run = StoppingRun(tmp_path / "hanging")
    train(inputs_of(corpus), replace(HANGING, processes=processes), run)
    (victim,) = run.stopped
    assert not victim.is_running()
    assert any("no step for" in text for text in run.texts)
    assert "gave no sign of life for" in caplog.text and "from step 0" not in (run.scratch / "trainer.log").read_text()
    assert model_digest(run) == model_digest(alone)


@pytest.mark.slow
def test_one_that_hangs_again_and_again_is_given_up(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "RESTARTS", 1)
    monkeypatch.setattr(stage, "REPORT_SECONDS", 0.1)
    run = StoppingRun(tmp_path, times=9)
    with pytest.raises(LlmcoreError, match=r"no sign of life for \d+ s \(train.hang_seconds\), 2 starts in all"):
        train(inputs_of(corpus), replace(HANGING, hang_seconds=3.0), run)
    assert not any(process.is_running() for process in run.stopped)


def test_what_is_slow_by_its_nature_does_not_hang(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path, 10.0)
    assert pulse.limit == STARTING_SECONDS  # before the first step a model may compile
    for step, seconds in enumerate((0, 1, 30, 2)):  # of validation, say
        (tmp_path / "heartbeat.json").write_text(json.dumps({"step": step}))
        pulse.still = float(seconds)
        pulse.look()
        assert pulse.still == 0.0
    assert 30 < pulse.longest < 31 and pulse.limit == 4 * pulse.longest and not pulse.hangs
    pulse.still = 125.0
    assert pulse.hangs and not Pulse(tmp_path, 0.0).hangs
