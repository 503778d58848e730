"""From sources to packed tokens: what a training reads, without the training."""

from __future__ import annotations

from prefect import flow

from flows.chain import run_chain
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.store import open_store
from llmcore.planning.chain import build
from llmcore.planning.config import PipelineConfig, quickstart
from llmcore.planning.heads import remember_dataset


@flow(persist_result=False)
def dataset(config: PipelineConfig = quickstart()) -> dict[str, ArtifactRef]:  # noqa: B008 - the form shows it
    """Crawl, ingest, filter, tokenise and pack the configuration's sources."""
    done = run_chain(build(config), config, until="pack")
    remember_dataset(open_store(config.store), config.name, done)
    return done
