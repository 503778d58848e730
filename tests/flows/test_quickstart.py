"""The embedded default with a smaller model: nothing started beforehand, every stage, the README's questions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.prefect_server import environment

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SMALL_MODEL = {"layers": 1, "width": 64, "heads": 2, "kv_heads": 1, "ffn_width": 128, "threads": 1}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A home folder of its own and the quickstart's configuration in it."""
    home = tmp_path_factory.mktemp("home")
    env = environment(home)
    env.pop("LLMCORE_STORE", None)
    settings = yaml.safe_load(llmcore("config", env=env))
    settings["train"] |= SMALL_MODEL | {"epochs": 0.15}
    (home / "smaller.yaml").write_text(yaml.safe_dump(settings))
    return home, env


def llmcore(*words: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llmcore.cli", *words], env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"llmcore {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def test_the_embedded_default_becomes_a_published_model(installed: tuple[Path, dict[str, str]]) -> None:
    home, env = installed
    printed = llmcore("run", str(home / "smaller.yaml"), env=env)
    assert len(set(re.findall(r"^sample \d   (.{12})", printed, re.M))) == 3, "no two from the head of the site's pages"
    name, folder, *_ = printed.strip().splitlines()[-1].split()
    assert name == "model"
    made = {path.name for path in Path(folder).iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "model-f16.gguf",
        "model-q8_0.gguf",
        "model-q4_0.gguf",
        "README.md",
        "report.html",
        "lineage.json",
    } <= made
    assert folder.startswith(str(home)), "it belongs into the user's home folder"
    bits = {name: float(test) for name, test in re.findall(r"^  (\S.*?) {2,}([\d.]+) +[\d.]+$", printed, re.M)}
    assert bits["this model"] < bits["byte unigram"]
    assert 2.0 < bits["xz -9"] < 2.5
    assert 1.6 < bits["byte 5-gram, interpolated"] < 1.9
    assert re.search(r"^verdict    \S", printed, re.M)


def test_the_readmes_questions_have_the_answers_it_promises(installed: tuple[Path, dict[str, str]]) -> None:
    _, env = installed
    asked = re.findall(r"llmcore trace --url (\S+) +# (.*)", (ROOT / "README.md").read_text())
    answers = {}
    for url, promise in asked:
        rows = json.loads(llmcore("trace", "--url", url, "--json", env=env))
        answers[promise] = {row["step"]: f"{row['outcome']} {row['detail']}" for row in rows}
    trained, copy, forbidden = answers.values()
    assert trained["train"].startswith("trained on at steps ")
    assert copy["dedup"].startswith("dropped: near_duplicate")
    assert "duplicate_of_url" in copy["dedup"]
    assert forbidden == {"crawl httpd": forbidden["crawl httpd"]}
    assert "robots.txt disallows it" in forbidden["crawl httpd"]
    assert "verified" in llmcore("verify", "quickstart", env=env)
    assert "crawl httpd" in llmcore("lineage", "quickstart", env=env)


def test_a_second_run_recomputes_nothing_and_plan_says_so(installed: tuple[Path, dict[str, str]]) -> None:
    home, env = installed
    planned = json.loads(llmcore("plan", str(home / "smaller.yaml"), "--json", env=env))
    assert {row["state"] for row in planned["steps"]} == {"cached"}
    before = stored(home)
    llmcore("run", str(home / "smaller.yaml"), env=env)
    assert stored(home) == before


def stored(home: Path) -> list[Path]:
    """What lies in the store, but for the roots of runs that ended: each leaves one until the next collection."""
    store = home / ".llmcore/store"
    found = (path.relative_to(store) for path in store.rglob("*") if path.is_file())
    return sorted(path for path in found if path.parts[:2] != ("roots", "runs"))
