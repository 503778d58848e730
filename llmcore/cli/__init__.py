"""The `llmcore` command. Exit codes: 0 done, 1 the work failed, 2 the call or the configuration is wrong."""

from __future__ import annotations

import os
import sys

import typer

from llmcore.cli import config, look, run, store
from llmcore.errors import LlmcoreError

app = typer.Typer(
    help="Build a language model from scratch and account for every byte of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (run, look, store, config):
    app.add_typer(group.commands)


def main() -> None:
    """Run the command; every foreseen failure ends in one line on stderr and its exit code."""
    try:
        app(standalone_mode=True)
    except LlmcoreError as error:
        if os.environ.get("LLMCORE_DEBUG"):
            raise
        print(f"llmcore: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("llmcore: interrupted; run again to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
