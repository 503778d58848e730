"""What a contributor types first works: the list of targets, and the hooks, without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_make_alone_says_what_there_is() -> None:
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not `make test`'s own
    said = subprocess.run(["make"], cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout
    targets = {line.split()[1] for line in said.splitlines()}
    assert targets == {"help", "quickstart", "test", "check", "fast", "nightly", "hooks", "clean"}


def test_the_version_moves_with_the_changelog() -> None:
    from llmcore import __version__

    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_hooks_stop_a_commit_that_is_not_formatted(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for tool in ("ruff", "lint-imports", "pre-commit"):
        (tmp_path / ".venv/bin" / tool).symlink_to(Path(sys.executable).parent / tool)
    for name in (".pre-commit-config.yaml", "pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    for room in ("llmcore", "flows", "tasks"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PRE_COMMIT_HOME": str(tmp_path / "cache")}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)

    call("git", "init")
    call(".venv/bin/pre-commit", "install")
    call("git", "add", "llmcore/errors.py", ".pre-commit-config.yaml")
    good = call(*git, "commit", "-m", "good")
    assert good.returncode == 0, good.stdout + good.stderr
    with (tmp_path / "llmcore/errors.py").open("a") as file:
        file.write("x   = 1\n")
    call("git", "add", "llmcore/errors.py")
    assert call(*git, "commit", "-m", "bad").returncode == 1
    assert "x = 1" in (tmp_path / "llmcore/errors.py").read_text(), "the hook has formatted it"
