"""The page on how a stage is added, followed to the letter in a copy of the tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from llmcore.quickstart import bundled
from tests.small import small_config

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def test_the_page_adds_a_stage_that_runs(tmp_path: Path, prefect_server: dict[str, str]) -> None:
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for room in ("llmcore", "flows", "tasks", "tests"):
        shutil.copytree(ROOT / room, tree / room, ignore=ignored)
    page = (ROOT / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"```python\n# (\S+)\n(.*?)```", page, re.S)
    (tree / code[0]).write_text(code[1])
    for path, lines in re.findall(r"```diff\n# (\S+)\n(.*?)```", page, re.S):
        edit(tree / path, lines.splitlines())

    env = prefect_server | {"PYTHONPATH": str(tree)}
    config = small_config(tmp_path, length={"characters": 2500})
    (tmp_path / "texts" / "short.txt").write_text(pl.read_parquet(bundled("sotu.parquet"))["text"][7][5000:6600])

    def llmcore(*words: str) -> str:
        command = [sys.executable, "-m", "llmcore.cli", *words]
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    llmcore("run", str(config), "--until", "split")
    store = f"file://{tmp_path}/store"
    rows = json.loads(llmcore("trace", "--url", "short.txt", "--store", store, "--json"))
    assert {row["step"]: row["outcome"] for row in rows}["length"] == "dropped: too_short"
    assert "`characters`" in llmcore("schema", "--markdown")

    (command,) = re.findall(r"LLMCORE_NEW_GOLDEN=1 \S+ (-m pytest \S+)", page)
    golden = tree / "tests/planning/golden.json"
    before = json.loads(golden.read_text())
    again = {**os.environ, "PYTHONPATH": str(tree), "LLMCORE_NEW_GOLDEN": "1"}
    subprocess.run([sys.executable, *command.split()], cwd=tree, env=again, check=True)
    after = json.loads(golden.read_text())
    assert after.keys() - before.keys() == {"length"}
    assert after["split"] == before["split"], "it drops nothing of this input"


def edit(path: Path, lines: list[str]) -> None:
    """Apply a diff whose lines of context and removal stand in the file exactly once."""
    marked = [(line[0], line[1:]) for line in lines]
    old = "\n".join(line for mark, line in marked if mark in " -")
    new = "\n".join(line for mark, line in marked if mark in " +")
    text = path.read_text()
    assert text.count(f"\n{old}\n") == 1, f"CONTRIBUTING.md: {path.name} does not hold {old!r} once"
    path.write_text(text.replace(f"\n{old}\n", f"\n{new}\n"))
