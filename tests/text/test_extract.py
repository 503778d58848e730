"""Extract: text out of real pages, and pages that no parser should be trusted with."""

from __future__ import annotations

import hashlib
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.extraction import SITES, bodies, content_words, shares
from llmcore.artifacts.stage import ShardResult
from llmcore.quickstart import bundled
from llmcore.schema import DOCUMENT_SCHEMA, check_documents
from llmcore.sources.encodings import decode
from llmcore.sources.ingest import IngestParams, ingest
from llmcore.text.clean import CleanParams, cleaned
from llmcore.text.extract import STAGE, ExtractParams, extract
from llmcore.text.page_text import PageTexts, main_text


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


def test_the_language_list_leaves_and_skipped_elements_take_the_path_along(pages: pl.DataFrame) -> None:
    everything, _ = tables(extract(pages, ExtractParams(main_content=False)))
    plain, _ = tables(extract(pages, ExtractParams()))
    skipped, _ = tables(extract(pages, ExtractParams(skip_elements=("#path",))))
    languages, path = "Available Languages", "Apache > HTTP Server"
    found = [
        part["text"].str.contains(words).sum() for words in (languages, path) for part in (everything, plain, skipped)
    ]
    assert found == [28, 0, 0, 28, 28, 0]


def test_the_words_of_the_content_are_kept_and_no_others_on_pages_with_a_label() -> None:
    site = SITES[-1]
    found, _ = bodies(site, Path())
    texts, truths = [], []
    for body in found[:30]:
        if words := content_words(decode(body, html=True), site):
            truths.append(words)
            texts.append(main_text(decode(body, html=True), **ExtractParams().of_a_page()).text)
    told = shares(texts, truths)
    assert len(truths) > 20 and told["kept"] >= 0.95 and told["elsewhere"] <= 0.03, told


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
    with PageTexts(10) as texts:
        assert texts.text("<p>one</p>").text == "one"
        assert texts.worker is not None
        texts.worker.kill()
        texts.worker.wait()
        with pytest.raises(ValueError, match="crashed"):
            texts.text("<p>two</p>")
        assert texts.text("<p>three</p>").text == "three"


def page(body: str) -> str:
    return f"<html><head><title>t</title></head><body>{body}</body></html>"


def text_of(body: str, **params: Any) -> str:
    kept, _ = tables(extract(documents(page(body)), ExtractParams(**params)))
    return str(kept["text"][0]) if len(kept) else ""


PROSE = "<p>The article has several sentences that say something. They are long enough to be read as prose.</p>"


def test_lists_boxes_and_asides_of_the_text_stay() -> None:
    box = "<div class=sidebar><p>A box that explains a word of the text.</p></div>"
    text = text_of(
        f"{PROSE}<ul><li>first of a list</li><li>second of a list</li></ul>{box}<main><aside>A note.</aside></main>"
    )
    for words in ("first of a list", "second of a list", "A box that explains", "A note."):
        assert words in text


@pytest.mark.parametrize(
    "site",
    [
        "<nav><a href=a>Start</a></nav>",
        "<header>Start</header>",
        "<footer>Start</footer>",
        "<div role=navigation>Start</div>",
        "<div class=NAVHEADER><table><tr><td><a href=a>Start</a></td></tr></table></div>",
        "<ul class='docnav top'><li><a href=a>Start</a></li></ul>",
        "<div id=page-footer>Start</div>",
        "<div class=language-switcher><a href=a>Start</a></div>",
        "<div class='breadcrumb'><a href=a>Start</a></div>",
        "<div class='menu mainmenu'><ul><li><a href=a>Start</a></li></ul></div>",
        "<p style='display: none'>Start</p>",
        "<form><select><option>Start</option></select><button>Start</button></form>",
    ],
)
def test_navigation_leaves(site: str) -> None:
    assert text_of(f"{site}<div>{PROSE * 3}</div>") == text_of(f"<div>{PROSE * 3}</div>") != ""


def test_the_title_in_a_header_stays() -> None:
    header = "<header><nav><a href=a>Start</a></nav><h1>The title</h1></header>"
    assert text_of(header + PROSE).startswith("The title\n") and "Start" not in text_of(header + PROSE)


def test_what_is_called_navigation_and_is_prose_stays() -> None:
    assert text_of(f"<div class=navigation>{PROSE * 8}</div><p>More of it.</p>").count("The article has") == 8
    short = "<p>Few words.</p>"
    assert "Few words." in text_of(f"<header>A line</header><div class=menu>{short}</div>{short}", min_share=0.9)
    assert text_of(f"<div class=menu>One word</div>{short}", min_share=0.0) == "Few words."


def test_where_the_main_part_is_too_small_all_but_navigation_stays_and_is_told() -> None:
    menus = "".join(f"<ul class=menu><li>Entry {n} of a list that is called a menu</li></ul>" for n in range(9))
    html = documents(page(f"<nav>Start</nav>{menus}<p>Hello.</p>"))
    result = extract(html, ExtractParams())
    kept, _ = tables(result)
    assert "Entry 8" in kept["text"][0] and "Start" not in kept["text"][0]
    assert result.metrics["main_part_too_small"] == 1
    removed = result.outputs["removed"]
    assert isinstance(removed, pl.DataFrame) and removed["whole"].to_list() == [True]
    assert removed["characters"][0] == result.metrics["characters_removed"] >= len("Start")
    without = extract(html, ExtractParams(min_share=0)).outputs["kept"]
    assert isinstance(without, pl.DataFrame) and without["text"].to_list() == ["Hello."]


@pytest.mark.parametrize("keep", ["footer p.licence", "p", ".licence", "footer"])
def test_what_is_to_be_kept_is_kept(keep: str) -> None:
    footer = "<footer><a href=a>Imprint</a><div><p class=licence>Free for all uses.</p></div></footer>"
    assert "Free for all" not in text_of(PROSE + footer)
    text = text_of(PROSE + footer, keep_elements=[keep], skip_elements=[".licence"])
    assert text.endswith("Free for all uses.") and ("Imprint" in text) == (keep == "footer")


def test_a_broken_selector_is_named() -> None:
    for field in ("keep_elements", "skip_elements"):
        with pytest.raises(ValidationError, match=r"'p\[' is not a CSS selector"):
            ExtractParams(**{field: ("p[",)})


CODE = "def f(x):\n    if x:\n\treturn 1\n\n    return  2"


@pytest.mark.parametrize(
    "around", ["{}", "<ul><li>As here: {}</li></ul>", "<table><tr><td>{}</td></tr></table>", "<div>{}</div>"]
)
def test_code_keeps_its_indentation(around: str) -> None:
    for code in (f"<pre>\n{CODE}</pre>", f"<pre><code>{CODE}</code></pre>", f"<pre><span>def</span>{CODE[3:]}</pre>"):
        assert CODE in text_of(PROSE + around.format(code) + PROSE)
    indented = "    x = 1\n  y = 2"
    assert indented in text_of(around.format(f"<pre>{indented}</pre>"))


def test_a_table_has_a_line_a_row_and_tabs_between_its_cells() -> None:
    rows = (
        "<tr><th>Name</th><th>Size  of\n it</th><th>Note</th></tr>"
        "<tr><td>a</td><td></td><td><p>one</p><p>two</p></td></tr>"
        "<tr><td><a href=b>b</a></td><td><ul><li>x</li><li>y</li></ul></td></tr><tr><td></td><td>z<br>end</td></tr>"
    )
    text = text_of(f"{PROSE}<table><tbody>{rows}</tbody></table>{PROSE}")
    assert "\nName\tSize of it\tNote\na\t\tone two\nb\t• x • y\n\tz end\n" in text
    cleaned_once = cleaned(pl.Series([text]), CleanParams())[0][0]
    assert "\nName\tSize of it\tNote\na\t\tone two\n" in cleaned_once, "clean leaves the tabs alone"


def test_a_table_that_lays_out_a_page_stays_text() -> None:
    text = text_of(
        f"<table><tr><td>Left</td><td><h1>Title</h1>{PROSE}<table><tr><td>in</td><td>ner</td></tr></table></td></tr></table>"
    )
    assert "Title\n" in text and "in\tner" in text


CELLS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(CELLS, min_size=2, max_size=4), min_size=1, max_size=5))
def test_rows_and_cells_come_back(rows: list[list[str]]) -> None:
    table = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    text = main_text(page(f"<p>before</p><table>{table}</table><p>after</p>")).text
    lines = [line for line in text.split("\n") if line.strip()][1:-1]
    told = ["\t".join(" ".join(cell.split()) for cell in row).rstrip("\t") for row in rows]
    assert lines == [line for line in told if line.strip()]


CODE_LINES = st.lists(st.text("ab(){}:\t &<é", max_size=12).map(str.rstrip), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(
    CODE_LINES,
    st.sampled_from(["{}", "<ol><li>x {}</li></ol>", "<div class=code><table><tr><td>{}</td></tr></table></div>"]),
)
def test_code_comes_back(lines: list[str], around: str) -> None:
    code = "\n".join(["first", *lines, "last"])
    assert code in main_text(page(around.format(f"<pre>{escape(code)}</pre>") + "<p>after</p>")).text


TAGS = st.sampled_from(["nav", "div", "p", "ul", "footer", "header", "aside", "section", "main"])
NAMES = st.sampled_from(["", "menu", "sidebar", "kept", "footer", "x"])


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> str:
    tag, name = draw(TAGS), draw(NAMES)
    inner = "".join(draw(st.lists(trees(depth - 1), max_size=3))) if depth else ""
    return f"<{tag} class='{name}'>{'KEEP' if name == 'kept' else 'word'} {inner}</{tag}>"


@settings(max_examples=100, deadline=None)
@given(trees())
def test_what_is_kept_is_kept_wherever_it_stands(body: str) -> None:
    for options in ({}, {"skip_elements": ["div", "p"]}, {"main_content": False}):
        text = main_text(page(body), keep_elements=[".kept"], **options).text  # type: ignore[arg-type]
        assert text.count("KEEP") == main_text(page(body), main_content=False).text.count("KEEP")


@pytest.fixture(scope="module")
def texts() -> PageTexts:
    return PageTexts(10)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(["<p>", "</div>", "<div", ">", "<!--", "]]>", "é", "&#0;", "<svg>", "x"])).map(
            "".join
        ),
    )
)
def test_no_page_breaks_it(texts: PageTexts, page: str) -> None:
    assert isinstance(texts.text(page).text, str)


def test_what_version_2_makes_of_a_fixed_input_is_known(pages: pl.DataFrame) -> None:
    kept, dropped = tables(extract(pages, ExtractParams()))
    digests = {STAGE.version: hashlib.sha256((kept.write_ndjson() + dropped.write_ndjson()).encode()).hexdigest()[:16]}
    assert digests == {2: "cf8e73ca78da7bc3"}, "extract gives other output: raise its version"
