"""What ended a trainer is told in one line that says what to do."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from llmcore.errors import LlmcoreError
from llmcore.training import stage
from tests.training.corpus import TINY, WatchedRun, inputs_of, train, trainer_pid

LONG = replace(TINY, steps=2000)


@dataclass
class StruckRun(WatchedRun):
    """Does something to a trainer's process at a step."""

    strike: Callable[[int], None] = lambda pid: None
    at: int = 20
    struck: bool = False

    def progress(self, done: float, total: float, text: str = "") -> None:
        if done >= self.at and not self.struck:
            self.struck = True
            trainer = psutil.Process(trainer_pid(self))
            self.strike([trainer, *trainer.children()][-1].pid)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "REPORT_SECONDS", 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_process_is_taken_for_lack_of_memory_and_says_how_to_go_on(
    corpus: Path, tmp_path: Path, processes: int
) -> None:
    run = StruckRun(tmp_path, strike=lambda pid: os.kill(pid, signal.SIGKILL))
    mend = "lower train.micro_batch and run again with --resume 0{12}$"
    with pytest.raises(LlmcoreError, match=rf"^train: the trainer was killed \(out of memory\?\); {mend}"):
        train(inputs_of(corpus), replace(LONG, processes=processes), run)


def test_memory_that_is_refused_says_how_to_go_on(corpus: Path, tmp_path: Path) -> None:
    run = StruckRun(tmp_path, strike=lambda pid: resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, 1 << 20)))
    with pytest.raises(LlmcoreError, match=r"lower train.micro_batch and run again with --resume 0{12}$") as caught:
        train(inputs_of(corpus), LONG, run)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_crash_names_its_signal(corpus: Path, tmp_path: Path, processes: int) -> None:
    run = StruckRun(tmp_path, strike=lambda pid: os.kill(pid, signal.SIGSEGV))
    with pytest.raises(
        LlmcoreError, match=r"^train: the trainer crashed \(SIGSEGV; its last line: .* steps, from step"
    ):
        train(inputs_of(corpus), replace(LONG, processes=processes), run)


@pytest.mark.slow
def test_of_several_processes_the_failing_one_speaks(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(LlmcoreError, match=r"^train\.learning_rate: the loss is not finite at step"):
        train(inputs_of(corpus), replace(TINY, learning_rate=1e30, warm_up=0, processes=2), WatchedRun(tmp_path))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_documents(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(LlmcoreError, match=r"the batch read documents 0{30}[0-9a-f]{2}, .* and \d+ more$"):
        train(inputs_of(corpus), replace(TINY, learning_rate=1e30, warm_up=0), WatchedRun(tmp_path))


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_trainer_has_no_words_for_is_its_last_line(corpus: Path, tmp_path: Path, processes: int) -> None:
    run = WatchedRun(tmp_path)
    with pytest.raises(LlmcoreError, match=r"No module named 'no\.such\.trainer'|ModuleNotFoundError") as caught:
        stage.train(inputs_of(corpus), replace(TINY, processes=processes), run, trainer="no.such.trainer")
    assert "\n" not in str(caught.value)
