"""The `llmcore` command. Exit codes: 0 done, 1 the work failed, 2 the call or the configuration is wrong."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from llmcore import __version__
from llmcore.cli import config, deploy, look, read, run, store
from llmcore.cli.options import STAGES
from llmcore.errors import LlmcoreError

INTERRUPTED = 130  # as shells say it of Ctrl-C

app = typer.Typer(
    help="Build a language model from scratch and account for every byte of it.",
    epilog=f"The stages of a run, in order: {', '.join(STAGES)}. Exit codes: 0 done, 1 the work failed, 2 the call or "
    "the configuration is wrong.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for group in (run, deploy, look, read, store, config):
    app.add_typer(group.commands)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"llmcore {__version__}")
        raise typer.Exit


@app.callback()
def _of_the_command_itself(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Build a language model from scratch and account for every byte of it."""


def main() -> None:
    """Run the command; every foreseen failure ends in one line on stderr and its exit code."""
    try:
        code = app(prog_name="llmcore", standalone_mode=False)
    except LlmcoreError as error:
        if os.environ.get("LLMCORE_DEBUG"):
            raise
        print(f"llmcore: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        _say_wrong_call(error)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        sys.exit(0)
    if code == INTERRUPTED:
        print("llmcore: interrupted; run again to go on", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _say_wrong_call(error: typer.TyperException) -> None:
    """One line, with the command whose help says more."""
    if type(error).__name__ == "NoArgsIsHelpError":  # its help has been printed
        return
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "llmcore"
    print(f"llmcore: {message[:1].lower()}{message[1:].rstrip('.')}; see `{path} --help`", file=sys.stderr)
