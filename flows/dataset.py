"""From sources to packed tokens: what a training reads, without the training."""

from __future__ import annotations

from prefect import flow

from flows.chain import run_chain, step_with
from flows.start import say_dataset, start
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.store import open_store
from llmcore.planning.chain import build
from llmcore.planning.config import PipelineConfig, quickstart
from llmcore.planning.heads import remember_dataset


@flow(persist_result=False)
def dataset(
    config: PipelineConfig = quickstart(),  # noqa: B008 - the form shows it
    reset_head: bool = False,
) -> dict[str, ArtifactRef]:
    """Crawl, ingest, filter, tokenise and pack the configuration's sources.

    Args:
        config: what to build; the default is the embedded quickstart.
        reset_head: begin the dataset anew although refreshes went on from it.
    """
    chain = build(config)
    done = run_chain(chain, config, until=step_with(chain, "plan"))
    remember_dataset(open_store(config.store), config.name, done)
    return done


def run(config: PipelineConfig, reset_head: bool) -> None:
    """What `llmcore dataset` calls."""
    say_dataset(start(dataset, lambda store: build(config), config, reset_head=reset_head))
