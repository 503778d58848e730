"""The command itself: version, help, completion, wrong calls. Nothing is run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llmcore import __version__
from llmcore.cli.options import STAGES
from llmcore.planning.chain import build, fetching
from llmcore.planning.config import load
from tests.small import small_config

HEAVY = ("torch", "polars", "prefect", "transformers", "pydantic")


def call(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "COLUMNS": "200", "TERM": "dumb", **env}
    settings.pop("LLMCORE_STORE", None)
    return subprocess.run([sys.executable, "-m", "llmcore.cli", *words], env=settings, capture_output=True, text=True)


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("llmcore: ")
    for word in words:
        assert word in line


def imported(*words: str) -> list[str]:
    """Which of the heavy libraries a call imports."""
    program = (
        "import json, sys\n"
        "from llmcore.cli import main\n"
        f"sys.argv = {['llmcore', *words]!r}\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_the_version() -> None:
    done = call("--version")
    assert (done.returncode, done.stdout) == (0, f"llmcore {__version__}\n")


def test_what_only_looks_starts_without_the_heavy_libraries(tmp_path: Path) -> None:
    assert imported("--version") == []
    assert imported("--help") == []
    (tmp_path / "store/roots/runs/x").mkdir(parents=True)
    (tmp_path / "store/roots/runs/x/00000000").write_text("{}")
    assert "torch" not in imported("ls", "--store", f"file://{tmp_path}/store")


def test_the_stages_of_help_and_completion_are_those_of_the_chain(tmp_path: Path) -> None:
    chain = build(load(None))
    files = fetching(load(small_config(tmp_path)))
    stages = {step.stage.name: None for step in (*chain.steps.values(), *files.values())}
    assert set(STAGES) == set(stages)
    order = list(dict.fromkeys(step.stage.name for step in chain.steps.values()))
    assert [stage for stage in STAGES if stage in order] == sorted(order, key=STAGES.index)
    assert STAGES.index("collect") < STAGES.index("ingest") < STAGES.index("publish")
    for words in (("run", "--help"), ("--help",), ("ls", "--help")):
        told = " ".join(call(*words).stdout.replace("│", " ").split())
        assert all(stage in told for stage in STAGES), words


def test_the_shell_completes_commands_stages_and_refs() -> None:
    show = f"{shlex.quote(sys.executable)} -m llmcore.cli --show-completion\nexit $?"  # it looks who its parent is
    assert "_LLMCORE_COMPLETE" in subprocess.run(["bash", "-c", show], capture_output=True, text=True).stdout

    def completed(line: str) -> set[str]:
        settings = {"_LLMCORE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        return set(call(**settings).stdout.split())

    assert completed("llmcore ge") == {"generate"}
    assert completed("llmcore run --until tok") == {"tokenizer", "tokenise"}
    assert completed("llmcore show --store file:///nowhere/at/all x") == set()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("rnu",), "rnu"),
        (("run", "--untli", "pack"), "--until"),
        (("show",), "ref"),
        (("dropped", "x", "--n", "0"), "--n"),
        (("export", "x"), "folder"),
    ],
)
def test_a_wrong_call_is_one_line_that_names_the_help(words: tuple[str, ...], told: str) -> None:
    one_line(call(*words), told, "--help`")


@pytest.mark.parametrize(
    "words",
    [
        ("ls",),
        ("show", "x"),
        ("lineage", "x"),
        ("verify", "x"),
        ("trace", "--doc", "x"),
        ("funnel", "x"),
        ("dropped", "x"),
        ("generate", "x", "We"),
        ("export", "x", "y"),
        ("gc",),
    ],
)
def test_a_store_that_is_not_there_is_an_error(words: tuple[str, ...], tmp_path: Path) -> None:
    one_line(call(*words, "--store", f"file://{tmp_path}/nowhere"), f"no store at file://{tmp_path}/nowhere", "--store")
    assert not (tmp_path / "nowhere").exists()
