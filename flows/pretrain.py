"""Train on a dataset as it stands after its last refresh."""

from __future__ import annotations

from prefect import flow

from flows.chain import run_chain
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.store import open_store
from llmcore.planning.chain import build
from llmcore.planning.config import PipelineConfig, quickstart
from llmcore.planning.heads import head_of


@flow(persist_result=False)
def pretrain(config: PipelineConfig = quickstart()) -> dict[str, ArtifactRef]:  # noqa: B008 - the form shows it
    """Train and evaluate a model on `datasets/NAME`; nothing is fetched and nothing is published."""
    head = head_of(open_store(config.store), config.name)
    return run_chain(build(config, snapshot=head), config, until="evaluate")
