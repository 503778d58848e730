"""Lines that most pages of a site repeat: what is learned, what is taken out, and what stays."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcore.schema import DOCUMENT_SCHEMA, document_id
from llmcore.text import site_lines
from llmcore.text.site_lines import LearnParams, learn
from llmcore.text.trim import TrimParams, trim
from tests.local_files import LocalFiles, LocalRun

TAGLINE = "Small. Fast. Reliable."
PAGE = json.dumps({"content_type": "text/plain", "extracted_from": "text/html"})
TEXT = json.dumps({"content_type": "text/plain"})


def pages(
    *texts: str, host: str = "https://docs.example.org/", source: str = "manual", metadata: str = PAGE
) -> pl.DataFrame:
    """Documents of a site; an address for each where there is a host."""
    rows = [
        (document_id(source, text, f"{host}{n}"), text, source, f"{host}{n}", "unknown", None, None, None, metadata)
        for n, text in enumerate(texts)
    ]
    return pl.DataFrame(rows, schema=DOCUMENT_SCHEMA, orient="row")


def own(number: int, lines: int = 3) -> str:
    return "\n".join(f"Sentence {line} of page number {number} stands on no other page of it." for line in range(lines))


def site(count: int = 20, **facts: str) -> pl.DataFrame:
    """Pages with a tagline, a menu, text of their own with a heading and code, and a footer."""
    shape = "{tag}\n• Home\n• About\n\n{own}\nSynopsis\n{code}\n}}\n{own2}\n\nReport a problem with this page"
    texts = [shape.format(tag=TAGLINE, own=own(n), own2=own(n + 1000), code=f"if (x{n}) {{") for n in range(count)]
    return pages(*texts, **facts)


def learned(
    folder: Path, *shards: pl.DataFrame, **params: object
) -> tuple[pl.DataFrame, LocalFiles, dict[str, object]]:
    (folder / "documents/kept").mkdir(parents=True)
    for number, shard in enumerate(shards):
        shard.write_parquet(folder / f"documents/kept/g000-manual-{number:05d}.parquet")
    run = LocalRun(folder / "run")
    metrics = learn({"documents": LocalFiles(folder / "documents")}, LearnParams(**params), run)
    return pl.read_parquet(run.out / "lines.parquet"), LocalFiles(run.out), dict(metrics)


def trimmed(
    shard: pl.DataFrame, lines: LocalFiles, **params: object
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    result = trim(shard, TrimParams(**params), site_lines=lines)
    kept, dropped, told = (result.outputs[folder] for folder in ("kept", "dropped", "removed"))
    assert isinstance(kept, pl.DataFrame) and isinstance(dropped, pl.DataFrame) and isinstance(told, pl.DataFrame)
    assert len(kept) + len(dropped) == len(shard) and kept.schema == DOCUMENT_SCHEMA
    assert result.metrics["changed"] == len(told)
    return kept, dropped, told


def test_the_tagline_the_menu_and_the_footer_go_and_the_page_stays(tmp_path: Path) -> None:
    table, lines, metrics = learned(tmp_path, site())
    assert set(table["line"]) == {TAGLINE, "Home", "About", "Synopsis", "Report a problem with this page"}
    assert table["share"].unique().to_list() == [1.0] and metrics["sites"] == 1 and metrics["pages"] == 20
    kept, dropped, told = trimmed(site(), lines)
    assert kept["text"][0] == f"{own(0)}\nSynopsis\nif (x0) {{\n}}\n{own(1000)}", "a heading and a brace inside stay"
    assert dropped.is_empty()
    before = site()["text"].str.len_chars()
    assert told["characters"].to_list() == (before - kept["text"].str.len_chars()).to_list()
    assert told["lines"].unique().to_list() == [4] and told["id"].to_list() == kept["id"].to_list()


def test_a_line_of_few_pages_stays(tmp_path: Path) -> None:
    few = pages(
        *[f"{own(n)}\n{'See the overview of all commands.' if n % 3 == 0 else own(n + 500, 1)}" for n in range(30)]
    )
    table, lines, _ = learned(tmp_path, few)
    assert table.is_empty()
    kept, _, told = trimmed(few, lines)
    assert kept.equals(few) and told.is_empty()


def test_a_small_site_text_files_and_other_sites_stay_as_they_are(tmp_path: Path) -> None:
    small = site(5, host="https://small.example.org/")
    texts = site(20, host="notes/", source="notes", metadata=TEXT)
    table, lines, metrics = learned(tmp_path, pl.concat([site(), small, texts]))
    assert table["site"].unique().to_list() == ["docs.example.org"] and metrics["sites"] == 1
    for other in (small, texts, site(3, host="https://elsewhere.example.org/")):
        kept, _, told = trimmed(other, lines)
        assert kept.equals(other) and told.is_empty()


def test_pages_without_a_host_are_a_site_by_source_and_a_port_makes_no_other(tmp_path: Path) -> None:
    table, lines, _ = learned(tmp_path, site(host="text/"), site(host="http://127.0.0.1:1/"))
    assert table["site"].unique().sort().to_list() == ["127.0.0.1", "manual"]
    for host in ("other/", "http://127.0.0.1:2/", "HTTPS://127.0.0.1/"):
        assert not trimmed(site(host=host), lines)[0]["text"].str.contains(TAGLINE, literal=True).any()


def test_a_page_of_nothing_else_is_dropped_and_an_unchanged_short_one_is_not(tmp_path: Path) -> None:
    _, lines, _ = learned(tmp_path, site())
    shard = pages(f"{TAGLINE}\n• Home\n• About\nMissing.", "Short, and nobody else's.")
    kept, dropped, told = trimmed(shard, lines)
    assert kept["text"].to_list() == ["Short, and nobody else's."]
    assert dropped.select("stage", "reason", "detail").row(0) == (
        "trim",
        "only_site_lines",
        '{"rule":"min_characters","value":8,"threshold":100}',
    )
    assert told["id"].to_list() == dropped["id"].to_list()


def test_one_page_under_many_addresses_teaches_nothing(tmp_path: Path) -> None:
    trap = pages(*[own(7)] * 60, *[own(n) for n in range(100, 112)])
    assert learned(tmp_path, trap)[0].is_empty()


def test_other_shards_and_orders_teach_the_same(tmp_path: Path) -> None:
    whole = pl.concat([site(40), site(30, host="https://b.example.org/")])
    one, _, _ = learned(tmp_path / "one", whole)
    many, _, _ = learned(tmp_path / "many", whole[50:], whole[:7].reverse(), whole[7:50])
    assert one.equals(many) and one["site"].n_unique() == 2


def test_no_more_pages_are_looked_at_than_asked_for(tmp_path: Path) -> None:
    table, _, metrics = learned(tmp_path, site(600), sample_pages=100)
    assert 60 < int(str(metrics["pages"])) < 140
    assert TAGLINE in set(table["line"])


def test_sites_that_do_not_fit_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_lines, "LINES_HELD", 600)
    table, _, metrics = learned(tmp_path, site(40), site(30, host="https://b.example.org/"))
    assert metrics["sites_left_out"] == 1 and table["site"].unique().to_list() == ["docs.example.org"]


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    table, lines, metrics = learned(tmp_path, site(), share=None)
    assert table.is_empty() and metrics["lines"] == 0
    assert trimmed(site(), lines)[0].equals(site())


def test_an_empty_shard_and_no_site_at_all(tmp_path: Path) -> None:
    table, lines, _ = learned(tmp_path, site()[:0])
    assert table.is_empty()
    assert trimmed(site()[:0], lines)[0].is_empty()


LINES = st.sampled_from(
    [TAGLINE, "• Home", "Home", "Synopsis", "", "  ", "}", "a line of its own", "  indented", "\tx"]
)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> LocalFiles:
    return learned(tmp_path_factory.mktemp("learned"), site())[1]


@given(st.lists(st.lists(LINES, max_size=12), min_size=1, max_size=4))
def test_only_lines_go_and_a_document_does_not_depend_on_its_neighbours(
    lines: LocalFiles, texts: list[list[str]]
) -> None:
    shard = pages(*["\n".join(text) for text in texts])
    kept, _, told = trimmed(shard, lines, min_characters=1)
    alone = pl.concat([trimmed(shard[row : row + 1], lines, min_characters=1)[0] for row in range(len(shard))])
    assert kept.equals(alone)
    before = dict(zip(shard["id"], texts, strict=True))
    changed = set(told["id"])
    for id, text in kept.select("id", "text").iter_rows():
        left = [line for line in text.split("\n") if line.strip()]
        was = iter(line.rstrip() for line in before[id])
        assert all(line.rstrip() in was for line in left), "what is left stands in its order"
        assert id in changed or text == "\n".join(before[id])
        assert TAGLINE not in text
