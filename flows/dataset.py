"""From sources to packed tokens: what a training reads, without the training."""

from __future__ import annotations

from prefect import flow

from flows.chain import run_chain, step_with
from flows.closing import say_dataset
from flows.form import run_name, with_form
from flows.start import start
from llmcore.artifacts import roots
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.store import open_store
from llmcore.planning.config import PipelineConfig
from llmcore.planning.heads import chain_on_head, remember_dataset
from llmcore.planning.targets import decide


@flow(persist_result=False, flow_run_name=run_name)
@with_form
def dataset(
    config: PipelineConfig,
    reset_head: bool = False,
) -> dict[str, ArtifactRef]:
    """Crawl, ingest, filter, tokenise and pack the configuration's sources.

    Args:
        reset_head: begin the dataset anew although refreshes went on from it.
    """
    store = open_store(config.store)
    config = decide(store, config)
    with roots.run(store) as root:
        chain, head = chain_on_head(store, config, reset_head)
        done = run_chain(chain, config, root, until=step_with(chain, "plan"))
        remember_dataset(store, config.name, done, head, reset_head)
    return done


def run(config: PipelineConfig, reset_head: bool) -> None:
    """What `llmcore dataset` calls."""
    say_dataset(
        start(dataset, lambda store: chain_on_head(store, config, reset_head)[0], config, reset_head=reset_head)
    )
