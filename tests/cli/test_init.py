"""`llmcore init` writes a configuration that loads, is planned and runs, and never writes over one unasked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from llmcore.artifacts.manifest import manifests
from llmcore.artifacts.store import open_store
from llmcore.errors import UsageError
from llmcore.planning.checks import must_work
from llmcore.planning.config import FileSource, load
from llmcore.planning.init import draft, forecast_of, write, written
from llmcore.quickstart import bundled

ROOT = Path(__file__).parents[2]


@pytest.fixture
def novels(tmp_path: Path) -> Path:
    """Sixty pieces of real addresses beside a licence."""
    folder = tmp_path / "Old Speeches"
    folder.mkdir()
    for number, text in enumerate(pl.read_parquet(bundled("sotu.parquet"))["text"].head(60)):
        (folder / f"{number:02d}.txt").write_text(text[:6000])
    (folder / "COPYING").write_text((ROOT / "llmcore/release/templates/CC0-1.0.txt").read_text())
    return folder


def init(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LLMCORE_STORE": f"file://{cwd}/store"}
    return subprocess.run(
        [sys.executable, "-m", "llmcore.cli", *words], capture_output=True, text=True, cwd=cwd, env=env
    )


def plain(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_what_is_written_loads_and_works_and_says_why(novels: Path, tmp_path: Path) -> None:
    made = draft([str(novels)], minutes=2, seconds=0)
    path = write(made, tmp_path / "mine.yaml", store=f"file://{tmp_path}/store")
    config = load(path)
    must_work(config, here=True)
    (source,) = config.sources
    assert isinstance(source, FileSource)
    assert (config.name, source.name, source.kind, source.licence) == (
        "old-speeches",
        "old_speeches",
        "text",
        "CC0-1.0",
    )
    assert plain(path)["sources"][0]["path"] == "Old Speeches", "relative to the file, so that both can move"
    assert config.language.languages == ("en",)
    assert config.train.precision in ("bf16", "fp32") and config.train.device in ("cpu", "cuda"), "nothing is left open"
    assert config.split.validation == 0.1 and config.train.epochs > 1
    for reason in ("by COPYING", "Muennighoff", "least expected loss", "en 100%", "would be a handful"):
        assert reason in " ".join(path.read_text().replace("#", "").split()), reason
    assert "of training" in forecast_of(made, path) and "GB of memory" in forecast_of(made, path)


def test_the_same_look_writes_the_same_file(novels: Path, tmp_path: Path) -> None:
    first, second = (written(draft([str(novels)], seconds=0), tmp_path) for _ in range(2))
    assert first == second


def test_a_file_that_is_there_stays_unless_it_is_said_otherwise(novels: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine\n")
    made = draft([str(novels)], seconds=0)
    with pytest.raises(UsageError, match=r"mine\.yaml: exists already; .*--force"):
        write(made, path)
    assert path.read_text() == "mine\n"
    write(made, path, force=True)
    assert load(path).name == "old-speeches"


def test_a_long_novel_is_not_dropped_for_its_length(tmp_path: Path) -> None:
    (tmp_path / "novels").mkdir()
    speeches = pl.read_parquet(bundled("sotu.parquet"))["text"].to_list()
    (tmp_path / "novels/one.txt").write_text("\n\n".join(speeches[:40]))
    path = write(draft([str(tmp_path / "novels")], seconds=0), tmp_path / "mine.yaml")
    words = len((tmp_path / "novels/one.txt").read_text().split())
    assert words > 100_000 and load(path).quality.gopher_max_words >= words


def test_other_languages_are_kept_and_norwegian_is_no_boolean(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    norwegian = (
        "Kommunen har behandlet søknaden og funnet at alle opplysninger foreligger. Vedtaket blir sendt i løpet av de "
        "nærmeste dagene, og du kan klage innen tre uker etter at du har mottatt det. "
    )
    for number in range(5):
        (tmp_path / f"notes/{number}.txt").write_text(norwegian * (4 + number))
    path = write(draft([str(tmp_path / "notes")], seconds=0), tmp_path / "mine.yaml")
    assert load(path).language.languages == ("no",)


def test_the_licence_of_a_source_goes_with_the_model_where_it_must(novels: Path, tmp_path: Path) -> None:
    text = "GNU GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007\n\n  Everyone is permitted to copy: this document.\n"
    (novels / "COPYING").write_text(text)
    config = load(write(draft([str(novels)], seconds=0), tmp_path / "mine.yaml"))
    assert config.sources[0].licence == "GPL-3.0-only"
    asked = config.publish_params()
    assert asked.licence == "Apache-2.0" or (asked.licence, asked.licence_text) == ("GPL-3.0-only", text)


@pytest.mark.slow
def test_a_folder_of_text_becomes_a_model(novels: Path, tmp_path: Path) -> None:
    done = init("init", novels.name, "--minutes", "0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wrote old-speeches.yaml" in done.stdout and "tokens/s, measured in five seconds" in (
        (tmp_path / "old-speeches.yaml").read_text()
    )
    again = init("init", novels.name, cwd=tmp_path)
    assert again.returncode == 2 and "exists already" in again.stderr.splitlines()[-1]
    assert init("plan", "old-speeches.yaml", cwd=tmp_path).returncode == 0
    ran = init("run", "old-speeches.yaml", cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    store = open_store(f"file://{tmp_path}/store")
    (published,) = list(manifests(store, "publish"))
    assert published.outputs["model.safetensors"].bytes > 0
    (split,) = manifests(store, "split")
    assert split.metrics["documents"] > 40
