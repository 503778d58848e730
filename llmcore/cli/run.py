"""Commands that make something, or say what would be made: run, plan, dataset, refresh, pretrain, release."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer

from llmcore.cli.options import NAMED, ConfigArgument, JsonOption, StoreInsteadOption, complete_stage, settings
from llmcore.errors import UsageError

commands = typer.Typer()

# read by the flows' libraries when they are first imported; what a user has set stays
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",  # no library tells its maker of this run
    "RAY_USAGE_STATS_ENABLED": "0",  # which asks for a name of its own
    # torch's threads: on a busy machine their default, to wait for each other for long, costs most of the time
    "GOMP_SPINCOUNT": "100000",
}

UntilOption = Annotated[str | None, typer.Option(help=f"stop after {NAMED}", autocompletion=complete_stage)]
ForceOption = Annotated[
    list[str] | None,
    typer.Option(help="run this stage again although its artifact exists", autocompletion=complete_stage),
]
ResetHeadOption = Annotated[
    bool, typer.Option("--reset-head", help="begin the dataset anew although refreshes went on from it")
]
ResumeOption = Annotated[
    str | None, typer.Option(metavar="KEY", help="train on from the checkpoint of this training, whose recipe differs")
]


@commands.command(rich_help_panel="Make")
def run(
    config: ConfigArgument = None,
    until: UntilOption = None,
    force: ForceOption = None,
    reset_head: ResetHeadOption = False,
    resume: ResumeOption = None,
    store: StoreInsteadOption = None,
) -> None:
    """Sources in, published model out; the last line names the model."""
    asked = settings(config, store)
    _flow("pipeline")(asked, until=until, force=tuple(force or ()), reset_head=reset_head, resume=resume)


@commands.command(rich_help_panel="Configure")
def plan(
    config: ConfigArgument = None,
    until: UntilOption = None,
    store: StoreInsteadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say stage by stage what is cached, what would run, why and for how long, and what the training costs."""
    from llmcore.cli.planned import show_plan

    show_plan(settings(config, store), until, as_json)


@commands.command(rich_help_panel="Make")
def dataset(
    config: ConfigArgument = None, reset_head: ResetHeadOption = False, store: StoreInsteadOption = None
) -> None:
    """Sources in, packed tokens out: what a training reads, without the training."""
    _flow("dataset")(settings(config, store), reset_head=reset_head)


@commands.command(rich_help_panel="Make")
def refresh(config: ConfigArgument = None, store: StoreInsteadOption = None) -> None:
    """Fetch what is new or changed outside since the dataset's last snapshot, and bring the dataset up to date."""
    _flow("refresh")(settings(config, store))


@commands.command(rich_help_panel="Make")
def pretrain(config: ConfigArgument = None, resume: ResumeOption = None, store: StoreInsteadOption = None) -> None:
    """Train and evaluate a model on the dataset as refreshed; nothing is fetched and nothing is published."""
    _flow("pretrain")(settings(config, store), resume=resume)


@commands.command(rich_help_panel="Make")
def release(config: ConfigArgument = None, resume: ResumeOption = None, store: StoreInsteadOption = None) -> None:
    """Train (or find the trained model), quantise and publish the dataset's model as refreshed."""
    _flow("release")(settings(config, store), resume=resume)


def _flow(name: str) -> Any:
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    found = {point.name: point for point in entry_points(group="llmcore.flows")}
    if name not in found:
        raise UsageError(f"no flow {name!r} is installed under llmcore.flows; reinstall llmcore with its flows")
    return found[name].load()
