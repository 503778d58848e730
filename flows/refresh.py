"""Bring a dataset up to date: recrawl conditionally, append what is new or changed, recompute only that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from prefect import flow
from prefect.runtime import flow_run

from flows.chain import run_chain, step_with
from flows.closing import say_dataset
from flows.form import run_name, with_form
from flows.start import start
from llmcore.artifacts import roots
from llmcore.artifacts.lease import Lease, take
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LlmcoreError
from llmcore.planning.config import PipelineConfig
from llmcore.planning.heads import chain_behind_head, remember_dataset
from llmcore.planning.targets import decide
from tasks.present import show_refresh


@flow(persist_result=False, flow_run_name=run_name)
@with_form
def refresh(config: PipelineConfig) -> dict[str, ArtifactRef]:
    """Append what changed outside since the dataset's last snapshot; the `pretrain` flow then trains on it.

    Earlier shards and the decisions about them stay byte for byte. The tokenizer and the quality classifier are those
    of the first snapshot.
    """
    store = open_store(config.store)
    config = decide(store, config)
    when = flow_run.scheduled_start_time or datetime.now(UTC)
    with _only_one(store, config.name) as lock, roots.run(store) as root:
        chain, head = chain_behind_head(store, config, when.isoformat(timespec="microseconds"))
        done = run_chain(chain, config, root, until=step_with(chain, "plan"))
        lock.check()
        remember_dataset(store, config.name, done, head)
    show_refresh(store, config.name, done, chain.pinned)
    return done


def run(config: PipelineConfig) -> None:
    """What `llmcore refresh` calls."""
    say_dataset(start(refresh, lambda store: chain_behind_head(store, config)[0], config))


@contextmanager
def _only_one(store: Store, name: str) -> Iterator[Lease]:
    """Hold the dataset's lock. LlmcoreError, naming the holder, if another refresh holds it.

    It lies in the store, so it is one for all deployments, commands and machines. A holder that was killed holds it no
    longer: at once on its own machine, elsewhere after a minute.
    """

    def refuse(holder: str) -> None:
        raise LlmcoreError(f"dataset {name!r} is being refreshed by {holder}; run again when that has ended")

    lock = take(store, f"dataset-{name}", lambda: True, refuse)
    assert lock is not None, "it is wanted for as long as it takes"
    try:
        yield lock
    finally:
        lock.give_back()
