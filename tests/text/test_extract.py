"""Extract: text out of real pages, and pages that no parser should be trusted with."""

from __future__ import annotations

import hashlib
import json
import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.artifacts.stage import ShardResult
from llmcore.quickstart import bundled
from llmcore.schema import DOCUMENT_SCHEMA, check_documents
from llmcore.sources.ingest import IngestParams, ingest
from llmcore.text.extract import STAGE, ExtractParams, extract
from llmcore.text.page_text import PageTexts


@pytest.fixture(scope="module")
def pages() -> pl.DataFrame:
    """The bundled archive's pages, as HTML."""
    result = ingest(bundled("archive.warc.gz"), IngestParams(source="archive", kind="warc"), shard="g000")
    return pl.concat(result.outputs["kept"])


def documents(*texts: str, content_type: str = "text/html") -> pl.DataFrame:
    rows = [
        (f"{number:032x}", text, "s", None, "unknown", None, None, None, json.dumps({"content_type": content_type}))
        for number, text in enumerate(texts)
    ]
    return pl.DataFrame(rows, schema=DOCUMENT_SCHEMA, orient="row")


def tables(result: ShardResult) -> tuple[pl.DataFrame, pl.DataFrame]:
    kept, dropped = result.outputs["kept"], result.outputs["dropped"]
    assert isinstance(kept, pl.DataFrame) and isinstance(dropped, pl.DataFrame)
    return check_documents(kept, "kept"), dropped


def test_real_pages_become_prose(pages: pl.DataFrame) -> None:
    kept, dropped = tables(extract(pages, ExtractParams()))
    assert kept["id"].to_list() == pages["id"].to_list() and dropped.is_empty()
    assert not kept["text"].str.contains(r'id="page-content"|class="(?:menu|section|apache)"|prettyPrint\(\)').any()
    questions = kept.filter(pl.col("url").str.ends_with("questions.html"))["text"][0]
    first = json.loads(bundled("benchmarks/gsm8k.jsonl").read_text().splitlines()[0])["prompt"]
    assert re.sub(r"\s+", " ", first) in questions
    contact = kept.filter(pl.col("url").str.ends_with("contact.html"))["text"][0]
    assert "jane.mirror@example.org" in contact and "Index" not in contact


def test_skipped_elements_take_the_language_list_along(pages: pl.DataFrame) -> None:
    plain, _ = tables(extract(pages, ExtractParams()))
    skipped, _ = tables(extract(pages, ExtractParams(skip_elements=("#path", ".toplang", ".bottomlang"))))
    assert plain["text"].str.contains("Available Languages").sum() == 28
    assert skipped["text"].str.contains("Available Languages").sum() == 0


def test_near_copies_differ_only_by_what_was_added(pages: pl.DataFrame) -> None:
    kept, _ = tables(extract(pages, ExtractParams()))
    changed = kept.filter(pl.col("url").str.contains("/2025/"))
    assert len(changed) == 14 and changed["text"].str.contains("small remarks on it last year").all()


def test_text_passes_unchanged_and_order_is_kept(pages: pl.DataFrame) -> None:
    texts = documents("just <b>text</b>", "more", content_type="text/plain")
    mixed = pl.concat([texts[:1], pages[:2].with_columns(id=pl.Series(["a" * 32, "b" * 32])), texts[1:]])
    kept, _ = tables(extract(mixed, ExtractParams()))
    assert kept["id"].to_list() == mixed["id"].to_list()
    assert kept["text"][0] == "just <b>text</b>" and kept["text"][3] == "more"
    assert tables(extract(texts, ExtractParams()))[0].equals(texts)
    again, _ = tables(extract(kept, ExtractParams()))
    assert again.equals(kept), "what is text already is not extracted twice"


def test_what_has_no_text_or_is_too_large_is_dropped_with_a_reason() -> None:
    three = documents(
        "<html><body><p>Here is some text.</p></body></html>", "<html></html>", "<p>" + "x" * 2000 + "</p>"
    )
    kept, dropped = tables(extract(three, ExtractParams(max_html_bytes=1000)))
    assert kept["text"].to_list() == ["Here is some text."]
    assert dropped["reason"].to_list() == ["empty", "too_large"]
    assert json.loads(dropped["detail"][1]) == {"value": 2007, "threshold": 1000}
    assert dropped["stage"].unique().to_list() == ["extract"]


def test_a_page_that_takes_too_long_costs_one_page() -> None:
    slow = "<table><tr><td>" * 60_000
    kept, dropped = tables(extract(documents("<p>before</p>", slow, "<p>after</p>"), ExtractParams(timeout=0.02)))
    assert kept["text"].to_list() == ["before", "after"]
    assert dropped["reason"].to_list() == ["extract_timeout"]


def test_a_worker_that_dies_is_replaced() -> None:
    with PageTexts(10, True, ()) as texts:
        assert texts.text("<p>one</p>") == "one"
        assert texts.worker is not None
        texts.worker.kill()
        texts.worker.wait()
        with pytest.raises(ValueError, match="crashed"):
            texts.text("<p>two</p>")
        assert texts.text("<p>three</p>") == "three"


@pytest.fixture(scope="module")
def texts() -> PageTexts:
    return PageTexts(10, True, ())


@settings(max_examples=200)
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(["<p>", "</div>", "<div", ">", "<!--", "]]>", "é", "&#0;", "<svg>", "x"])).map(
            "".join
        ),
    )
)
def test_no_page_breaks_it(texts: PageTexts, page: str) -> None:
    assert isinstance(texts.text(page), str)


def test_what_version_1_makes_of_a_fixed_input_is_known(pages: pl.DataFrame) -> None:
    kept, dropped = tables(extract(pages, ExtractParams()))
    digests = {STAGE.version: hashlib.sha256((kept.write_ndjson() + dropped.write_ndjson()).encode()).hexdigest()[:16]}
    assert digests == {1: "98e5b37ccb8fc010"}, "extract gives other output: raise its version"
