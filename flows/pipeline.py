"""The whole chain: sources in, published model out."""

from __future__ import annotations

from prefect import flow

from flows.chain import run_chain
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.store import open_store
from llmcore.planning.chain import build
from llmcore.planning.config import PipelineConfig, quickstart
from llmcore.planning.heads import remember_dataset, remember_model


@flow(persist_result=False)
def pipeline(config: PipelineConfig = quickstart(), until: str | None = None,  # noqa: B008 - the form shows it
             force: tuple[str, ...] = ()) -> dict[str, ArtifactRef]:
    """Build a model from the configuration's sources and publish it under its name.

    Args:
        config: what to build; the default is the embedded quickstart.
        until: stop after this stage.
        force: stages to run again although their artifacts exist.
    """
    done = run_chain(build(config), config, until, force)
    store = open_store(config.store)
    remember_dataset(store, config.name, done)
    remember_model(store, config.name, done)
    return done
