"""How the `llmcore` command starts a flow."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import httpx
from prefect import Flow

from flows.chain import step_with
from flows.quiet import forget_unsent_events, without_tracebacks
from flows.server import server_for_a_run
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LlmcoreError
from llmcore.planning.chain import Chain
from llmcore.planning.checks import must_work
from llmcore.planning.config import PipelineConfig
from tasks.terminal import on_terminal

Done = dict[str, ArtifactRef]


@dataclass(frozen=True)
class Made:
    """What a flow left in the store: step name -> artifact."""

    store: Store
    name: str
    chain: Chain
    done: Mapping[str, ArtifactRef]

    def artifact(self, role: str) -> Manifest:
        """The artifact of the last step with this role."""
        return manifest_of(self.store, self.done[step_with(self.chain, role)])


def start(
    flow: Flow[..., Done],
    plan: Callable[[Store], Chain],
    config: PipelineConfig,
    until: str | None = None,
    sources: bool = True,
    **given: Any,
) -> Made:
    """Run a flow.

    plan:  builds the chain that the flow will build; what it raises is wrong with configuration, sources or call, and
           ends the command before anything runs.
    sources: whether it reads them, so that what is wrong with them ends the command too.
    given: the flow's parameters beside `config`.
    """
    for warning in must_work(config, here=True, sources=sources):
        print(f"warning: {warning}", file=sys.stderr)
    without_tracebacks()
    with on_terminal(), server_for_a_run() as server:
        chain = plan(open_store(config.store))
        list(chain.until(until))
        if until is not None:
            given["until"] = until
        if server is not None:
            server.wait()
        done = _outcome(flow, config, given)
    return Made(open_store(config.store), config.name, chain, done)


def _outcome(flow: Flow[..., Done], config: PipelineConfig, given: Mapping[str, Any]) -> Done:
    """What the flow returns, also where the server went away and could not be told that it did."""
    outcome: dict[str, ArtifactRef] = {}

    @wraps(flow.fn)
    def remembered(*args: Any, **named: Any) -> Done:
        outcome.update(flow.fn(*args, **named))
        return outcome

    try:
        return Flow(remembered, name=flow.name, flow_run_name=flow.flow_run_name, persist_result=False)(
            config=config, **given
        )
    except httpx.HTTPError as error:
        if not outcome:
            raise LlmcoreError(f"the Prefect server does not answer: {error}; run again to go on") from error
        logging.getLogger(__name__).warning("the Prefect server was not told how the run ended: %s", error)
        return outcome
    finally:
        forget_unsent_events()
