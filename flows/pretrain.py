"""Train on a dataset as it stands after its last refresh."""

from __future__ import annotations

from prefect import flow

from flows.chain import run_chain, step_with
from flows.closing import say_evaluation
from flows.form import Text, run_name, with_form
from flows.start import start
from llmcore.artifacts import roots
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.store import open_store
from llmcore.planning.config import PipelineConfig
from llmcore.planning.heads import chain_of_head
from llmcore.planning.targets import decide


@flow(persist_result=False, flow_run_name=run_name)
@with_form
def pretrain(
    config: PipelineConfig,
    resume: Text = None,
) -> dict[str, ArtifactRef]:
    """Train and evaluate a model on `datasets/NAME`; nothing is fetched and nothing is published.

    Args:
        resume: key of a training of another recipe, from whose checkpoint this one goes on.
    """
    store = open_store(config.store)
    config = decide(store, config)
    with roots.run(store) as root:
        chain, _ = chain_of_head(store, config, resume)
        return run_chain(chain, config, root, until=step_with(chain, "evaluation"))


def run(config: PipelineConfig, resume: str | None) -> None:
    """What `llmcore pretrain` calls."""
    made = start(pretrain, lambda store: chain_of_head(store, config, resume)[0], config, sources=False, resume=resume)
    say_evaluation(made)
