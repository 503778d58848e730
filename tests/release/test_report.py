"""report.html opens anywhere, shows the whole story, and nothing in a document can act on its reader."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.account.funnel import funnel_rows
from llmcore.release.charts import histogram, lineage_graph, loss_curve, short, standalone
from llmcore.release.texts import removed_by_rule
from llmcore.schema import DOCUMENT_SCHEMA, document_id, dropped
from tests.release_inputs import HOSTILE, Chain, release

VOID = {"meta", "br"}  # tags that HTML never closes


class Page(HTMLParser):
    """Tags, attributes and text of a page; notices what is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(release().read("report.html"))


def test_it_is_well_formed_and_holds_its_charts_and_one_graph(page: Page) -> None:
    assert page.open == []
    assert page.tags.count("svg") == 3
    assert ("aria-label", "Documents by length") in page.attributes
    assert ("aria-label", "Training and validation loss") in page.attributes
    assert ("aria-label", "Lineage of the model") in page.attributes


def test_it_needs_no_network_and_runs_no_script(page: Page) -> None:
    assert {"script", "link", "img", "iframe", "object", "base", "form"}.isdisjoint(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href", "action") or name.startswith("on")]
    assert not re.findall(r"@import|url\(", release().read("report.html"))
    assert "default-src 'none'" in release().read("report.html")


def test_text_of_documents_is_shown_as_text(page: Page) -> None:
    assert HOSTILE in page.text  # as a source, as a reason and in a sample
    assert page.text.count('<script>alert("x")</script>') >= 3


def test_it_tells_the_whole_story(page: Page) -> None:
    told = " ".join(page.text.split())
    assert "1.550 (1.520–1.590)" in told
    for words in (
        "byte 5-gram, interpolated",
        "xz -9",
        "crawl web asked for 43 addresses: 40 fetched, 3 forbidden",
        "Forbidden by robots.txt (3)",
        "near duplicate 5",
        "q4_0",
        "published model",
        "Better than a byte 7-gram",
        "learning_rate0.005",
        "EMAIL_ADDRESS4",
        "Nobody said under which licence",
    ):
        assert words in told
    for manifest in release().chain.manifests:
        assert manifest["step"] in told
        assert manifest["digest"][:8] in told


def test_examples_of_removed_text_are_masked_where_they_stood_before_the_masking(tmp_path: Path) -> None:
    chain, shard = Chain(tmp_path), "g000-notes-00000.parquet"
    texts = [f"Call Ada at ada{number}@example.com about line {number}." for number in range(6)]
    rows = {"id": [document_id("notes", text) for text in texts], "text": texts, "source": "notes", "url": None}
    kept = pl.DataFrame(rows).with_columns(
        pl.lit(None).cast(kind).alias(name) for name, kind in DOCUMENT_SCHEMA.items() if name not in rows
    )
    chain.write("ingest notes", {f"kept/{shard}": kept})
    chain.add("ingest notes", "ingest", {})
    for step in ("clean", "pii", "quality"):
        gone, kept = kept.head(2), kept.slice(2)
        chain.write(step, {f"kept/{shard}": kept, f"dropped/{shard}": dropped(gone, step, "short", {"value": 3})})
        chain.add(step, step, {"documents": chain.manifests[-1]["step"]})
    rows = funnel_rows(chain.manifests, chain.files())
    found = {row.step: row for row in removed_by_rule(chain.manifests, chain.files(), rows)}
    assert [found[step].documents for step in ("clean", "pii", "quality")] == [2, 2, 2]
    assert all("<EMAIL_ADDRESS>" in example["text"] for example in found["clean"].examples)
    assert all("@example.com" in example["text"] for example in found["quality"].examples)  # as the stage saw it
    assert found["clean"].examples[0]["value"] == "value 3"


def test_a_picture_that_stands_alone_has_its_namespace_and_style() -> None:
    nodes = [{"id": "a", "step": "clean", "stage": "s", "version": 1, "key": "k", "digest": "d" * 64, "outputs": {}}]
    history = pl.DataFrame({"tokens": [1, 2], "loss": [2.0, 1.0], "validation_loss": [None, 1.5]})
    for svg in (loss_curve(history), lineage_graph(nodes, [{"from": "a", "to": "published"}])):
        root = ElementTree.fromstring(standalone(svg))  # which is strict XML, as an image's parser is
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        style = root.find("{http://www.w3.org/2000/svg}style")
        assert style is not None
        classes = {name for node in root.iter() for name in node.get("class", "").split()}
        assert classes <= set(re.findall(r"\.([a-z]+)", str(style.text)))


def test_the_loss_curve_stays_inside_its_frame() -> None:
    tokens = [1000 * (step + 1) for step in range(5_000)]
    history = pl.DataFrame({"tokens": tokens, "loss": [9.0 / (1 + step / 50) for step in range(5_000)]}).with_columns(
        validation_loss=pl.when(pl.int_range(pl.len()) % 500 == 0).then(pl.col("loss") + 0.2)
    )
    svg = loss_curve(history)
    points = [
        tuple(map(float, pair.split(","))) for line in re.findall(r'points="([^"]+)"', svg) for pair in line.split()
    ]
    assert len(points) < 1_000
    assert all(0 <= x <= 720 and 0 <= y <= 320 for x, y in points)
    assert svg.count("<circle") == 10


def test_a_history_without_losses_draws_nothing() -> None:
    schema = {"tokens": pl.Int64, "loss": pl.Float64, "validation_loss": pl.Float64}
    assert loss_curve(pl.DataFrame(schema=schema)) == ""


@given(
    st.integers(2, 14).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.tuples(st.integers(0, n), st.integers(0, n))))
    )
)
@settings(max_examples=60, deadline=None)
def test_any_graph_is_drawn_with_every_box_apart_from_the_others(graph: tuple[int, set[tuple[int, int]]]) -> None:
    count, pairs = graph
    names = [f"n{number}" for number in range(count)] + ["published"]
    nodes = [
        {"id": name, "step": name, "stage": "s", "version": 1, "key": "k", "digest": "d" * 64, "outputs": {}}
        for name in names[:-1]
    ]
    edges = [{"from": names[a], "to": names[b], "role": "r"} for a, b in pairs if a < b]
    svg = lineage_graph(nodes, edges)
    assert Page(svg).open == []
    boxes = [tuple(map(float, found)) for found in re.findall(r'<rect x="([\d.-]+)" y="([\d.-]+)"', svg)]
    assert len(boxes) == len(names)
    for number, (x, y) in enumerate(boxes):
        assert all(abs(x - other_x) >= 150 or abs(y - other_y) >= 46 for other_x, other_y in boxes[:number])


def test_a_histogram_has_a_bar_for_every_power_of_two() -> None:
    svg = histogram([(8, 3), (16, 0), (32, 12)], "tokens", "documents")
    assert [float(height) for height in re.findall(r'class="bar"[^>]* height="([\d.]+)"', svg)][1] == 0
    assert svg.count('class="bar"') == 3
    assert "32 to 64 tokens: 12 documents" in svg
    assert histogram([], "tokens", "documents") == ""


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0, 999, 1_234, 1_234_567, 2.5e9)] == ["0", "999", "1.23k", "1.23M", "2.5G"]
