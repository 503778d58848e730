"""Train (or find the trained model), quantise and publish a dataset's model as it stands after its last refresh."""

from __future__ import annotations

from prefect import flow

from flows.chain import run_chain
from flows.closing import say_model
from flows.form import Text, run_name, with_form
from flows.start import start
from llmcore.artifacts import roots
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.store import open_store
from llmcore.planning.config import PipelineConfig
from llmcore.planning.heads import chain_of_head, remember_model
from llmcore.planning.targets import decide


@flow(persist_result=False, flow_run_name=run_name)
@with_form
def release(
    config: PipelineConfig,
    resume: Text = None,
) -> dict[str, ArtifactRef]:
    """Publish the model of `datasets/NAME` under its name.

    Args:
        resume: key of a training of another recipe, from whose checkpoint this one goes on.
    """
    store = open_store(config.store)
    config = decide(store, config)
    with roots.run(store) as root:
        chain, _ = chain_of_head(store, config, resume)
        done = run_chain(chain, config, root)
        remember_model(store, config.name, done)
    return done


def run(config: PipelineConfig, resume: str | None) -> None:
    """What `llmcore release` calls."""
    made = start(release, lambda store: chain_of_head(store, config, resume)[0], config, sources=False, resume=resume)
    say_model(made)
