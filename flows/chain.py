"""What all flows share: run the steps of a chain one after another and show in the UI what came of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

from prefect.logging import get_run_logger

from flows.lines import Lines
from flows.outages import outlast
from flows.suspension import heeding_suspension
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.roots import RunRoot
from llmcore.artifacts.store import open_store
from llmcore.errors import LlmcoreError, UsageError
from llmcore.planning.chain import Chain, fetch_step
from llmcore.planning.checks import must_work
from llmcore.planning.config import PipelineConfig
from tasks.present import present
from tasks.stages import executor
from tasks.terminal import terminal


def step_with(chain: Chain, role: str) -> str:
    """Name of the last step whose stage has this role; LlmcoreError if the chain has none."""
    for step in reversed(chain.steps.values()):
        if step.stage.role == role:
            return step.name
    raise LlmcoreError(f"the chain has no step with the role {role!r}; there are {', '.join(chain.steps)}")


def run_chain(
    chain: Chain, config: PipelineConfig, root: RunRoot, until: str | None = None, force: Iterable[str] = ()
) -> dict[str, ArtifactRef]:
    """Make or find the artifact of every step up to `until`; returns step name -> reference, the pinned ones too."""
    must_work(config, here=True, sources=any(step not in chain.pinned for step in map(fetch_step, config.sources)))
    store = open_store(config.store)
    done = dict(chain.pinned)
    for name, ref in done.items():
        root.hold(name, ref)
    forced = set(force)
    unknown = forced - {name for step in chain.steps.values() for name in (step.name, step.stage.name)}
    if unknown:
        raise UsageError(f"--force: no stage {min(unknown)!r} in the chain; there are {', '.join(chain.steps)}")
    runs = {name for step in chain.steps.values() if step.name not in done for name in (step.name, step.stage.name)}
    if forced - runs:
        raise UsageError(
            f"--force: {min(forced - runs)!r} is a snapshot that the dataset stands on; `llmcore refresh` fetches what "
            "changed, --reset-head begins anew"
        )
    log, lines, screen = get_run_logger(), Lines(store, chain), terminal()
    with heeding_suspension(), executor(store, config.execution, root) as work:
        log.info(lines.head())
        for step in chain.until(until):
            if step.name in done:
                continue
            if screen is not None:
                screen.bar(f"{step.name}  …")
            began = time.monotonic()
            again = bool(forced & {step.name, step.stage.name})
            done[step.name] = outlast(config.execution, step.name, partial(work.run, step, done, force=again))
            if screen is not None:
                screen.bar("")
            seconds = None if step.name in work.found else time.monotonic() - began
            log.info(lines.of(step, done, seconds))
            for warning in lines.warnings(step, done, seconds):
                log.warning(warning)
            present(store, config.name, step, done)
    return done
