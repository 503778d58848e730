"""Train on a dataset as it stands after its last refresh."""

from __future__ import annotations

from prefect import flow

from flows.chain import run_chain, step_with
from flows.start import say_evaluation, start
from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.store import open_store
from llmcore.planning.chain import build
from llmcore.planning.config import PipelineConfig, quickstart
from llmcore.planning.heads import head_of


@flow(persist_result=False)
def pretrain(
    config: PipelineConfig = quickstart(),  # noqa: B008 - the form shows it
    resume: str | None = None,
) -> dict[str, ArtifactRef]:
    """Train and evaluate a model on `datasets/NAME`; nothing is fetched and nothing is published.

    Args:
        config: what to build; the default is the embedded quickstart.
        resume: key of a training of another recipe, from whose checkpoint this one goes on.
    """
    chain = build(config, snapshot=head_of(open_store(config.store), config.name))
    return run_chain(chain, config, until=step_with(chain, "evaluation"))


def run(config: PipelineConfig, resume: str | None) -> None:
    """What `llmcore pretrain` calls."""
    made = start(pretrain, lambda store: build(config, snapshot=head_of(store, config.name)), config, resume=resume)
    say_evaluation(made)
