"""The whole chain: sources in, published model out."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.chain import run_chain
from flows.closing import say_model, say_stopped
from flows.form import Text, run_name, with_form
from flows.start import start
from llmcore.artifacts import roots
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.store import open_store
from llmcore.planning.config import PipelineConfig
from llmcore.planning.heads import chain_on_head, remember_dataset, remember_model
from llmcore.planning.targets import decide


@flow(persist_result=False, flow_run_name=run_name)
@with_form
def pipeline(
    config: PipelineConfig,
    until: Text = None,
    force: tuple[str, ...] = (),
    reset_head: bool = False,
    resume: Text = None,
) -> dict[str, ArtifactRef]:
    """Build a model from the configuration's sources and publish it under its name.

    Args:
        until: stop after this stage.
        force: stages to run again although their artifacts exist.
        reset_head: begin the dataset anew although refreshes went on from it.
        resume: key of a training of another recipe, from whose checkpoint this one goes on.
    """
    store = open_store(config.store)
    config = decide(store, config)
    with roots.run(store) as root:
        chain, head = chain_on_head(store, config, reset_head, resume)
        done = run_chain(chain, config, root, until, force)
        remember_dataset(store, config.name, done, head, reset_head)
        remember_model(store, config.name, done)
    return done


def run(
    config: PipelineConfig, until: str | None, force: tuple[str, ...], reset_head: bool, resume: str | None
) -> None:
    """What `llmcore run` calls."""
    given: dict[str, Any] = {"force": force, "reset_head": reset_head, "resume": resume}
    made = start(pipeline, lambda store: chain_on_head(store, config, reset_head, resume)[0], config, until, **given)
    if until is None:
        say_model(made)
    else:
        say_stopped(made, until)
