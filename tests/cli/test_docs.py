"""Every command in README and docs is one that a test runs; a command nobody covers fails here."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmcore.planning.config import Execution, PipelineConfig, load
from llmcore.planning.reference import configuration_tables
from tests.small import small_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# where each command is run for real, beside the check of its words below
COVERED = {
    "make quickstart": "test_quickstart, with a smaller model",
    "make test": "this very run",
    "make check": "a part of make test",
    "make fast": "a part of make test",
    "make hooks": "test_habits",
    "LLMCORE_NEW_GOLDEN=1 .venv/bin/python -m pytest": "test_contributing",
    "llmcore run": "test_cli",
    "llmcore dataset": "test_making",
    "llmcore refresh": "test_making",
    "llmcore pretrain": "test_making",
    "llmcore release": "test_making",
    "llmcore deploy": "test_prefect",
    "llmcore plan": "test_cli",
    "llmcore config": "test_cli",
    "llmcore init": "test_init",
    "llmcore lineage": "test_cli",
    "llmcore verify": "test_cli",
    "llmcore trace": "test_cli",
    "llmcore schema": "test_cli",
    "llmcore funnel": "test_cli",
    "llmcore dropped": "test_cli",
    "llmcore generate": "test_cli",
    "llmcore ls": "test_cli",
    "llmcore show": "test_cli",
    "llmcore export": "test_cli",
    "llmcore gc": "test_cli",
    "llmcore doctor": "test_cli",
    "llmcore --version": "test_options",
    "llmcore --show-completion": "test_options",
    "prefect server start": "prefect_server.py",
    "prefect work-pool create": "test_prefect",
    "prefect --no-prompt deploy": "test_prefect",
    "prefect worker start": "test_prefect",
    "prefect deployment run": "test_prefect",
    "export PREFECT_API_URL": "prefect_server.py",
}


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
            lines = (line.split("#")[0].strip() for line in block.splitlines())
            found += [line.removeprefix(".venv/bin/") for line in lines if line]
    return found


def test_there_are_commands() -> None:
    assert len(commands()) > 12


@pytest.mark.parametrize("command", commands())
def test_every_command_is_covered(command: str) -> None:
    assert any(command.startswith(known) for known in COVERED), f"no test covers `{command}`"
    words = shlex.split(command.split(">")[0])
    if words[0] == "llmcore":
        asked = [sys.executable, "-m", "llmcore.cli", words[1], "--help"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, env={"COLUMNS": "200", "PATH": ""})
        assert done.returncode == 0, done.stderr
        for word in words[2:]:
            assert not word.startswith("--") or word in done.stdout, f"llmcore {words[1]} has no {word}"
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)


def test_two_changed_lines_make_a_users_own_configuration(tmp_path: Path) -> None:
    small_config(tmp_path)
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (block,) = [b for b in blocks if "kind: text" in b]
    quickstart = (ROOT / "llmcore/quickstart/config.yaml").read_text()
    own = re.sub(r"^name: .*$", "", quickstart, flags=re.M)
    own = re.sub(r"^sources:\n(?:[ #].*\n)+", "", own, flags=re.M)
    (tmp_path / "mine.yaml").write_text(block.replace("~/notes", "texts") + own)
    config = load(tmp_path / "mine.yaml")
    assert config.name == "mine"
    assert config.sources[0].name == "notes"


def test_every_way_to_execute_is_one_that_there_is() -> None:
    examples = re.findall(r"^execution: .*$", (ROOT / "docs/prefect.md").read_text(), re.M)
    found = {Execution.model_validate(yaml.safe_load(line)["execution"]).runner for line in examples}
    assert found == {"local", "dask", "ray"}


def test_the_configuration_page_is_what_the_models_say() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    tables = configuration_tables()
    assert page.endswith(tables), "put the output of `llmcore schema --markdown` behind the page's last own section"
    assert all(f"`{section}`" in tables for section in PipelineConfig.model_fields if section != "tokenise")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
