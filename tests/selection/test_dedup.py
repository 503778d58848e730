"""Dedup on real addresses with edits, against brute-force Jaccard similarity and datasketch."""

from __future__ import annotations

import json
import math
import random
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.errors import LlmcoreError
from llmcore.quickstart import bundled
from llmcore.selection.dedup import DedupParams, KeepParams, ResolveParams, SignatureParams, dedup, resolve, signatures
from llmcore.selection.minhash import estimate, signatures_of
from llmcore.selection.words import ALONE, folding, word_hashes
from tests.local_files import LocalFiles, LocalRun


def passages(characters: int = 1500) -> list[str]:
    texts = pl.read_parquet(bundled("sotu.parquet"))["text"]
    return [text[at : at + characters] for text in texts for at in range(0, len(text) - characters, 5 * characters)]


def edited(text: str, share: float, chance: random.Random) -> str:
    words = text.split()
    return " ".join(f"x{chance.randrange(10**6)}" if chance.random() < share else word for word in words)


def shingles(text: str, n: int = 5) -> frozenset[tuple[str, ...]]:
    words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower()).split()
    return frozenset(tuple(words[at : at + n]) for at in range(max(1, len(words) - n + 1)))


def jaccard(left: str, right: str) -> float:
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b)


def frame(texts: Sequence[str], source: str = "sotu") -> pl.DataFrame:
    ids = [f"{number:032x}" for number in range(len(texts))]
    return pl.DataFrame(
        {"id": ids, "text": list(texts), "source": [source] * len(ids), "url": None},
        schema_overrides={"url": pl.String},
    )


def decide(folder: Path, shards: Sequence[pl.DataFrame], params: DedupParams | None = None) -> tuple[LocalFiles, dict]:
    params = params or DedupParams()
    for name in ("in/signatures", "documents/kept"):
        (folder / name).mkdir(parents=True)
    fields = {name: getattr(params, name) for name in SignatureParams.model_fields}
    for number, shard in enumerate(shards):
        table = signatures(shard, SignatureParams(**fields)).outputs["signatures"]
        assert isinstance(table, pl.DataFrame)
        table.write_parquet(folder / "in" / "signatures" / f"g000-00-sotu-{number:05}.parquet")
        shard.write_parquet(folder / "documents" / "kept" / f"g000-00-sotu-{number:05}.parquet")
    run = LocalRun(folder / "run")
    resolve_params = ResolveParams(**{name: getattr(params, name) for name in ResolveParams.model_fields})
    inputs = {"signatures": LocalFiles(folder / "in"), "documents": LocalFiles(folder / "documents")}
    metrics = resolve(inputs, resolve_params, run)
    assert list(run.scratch.iterdir()) == []
    return LocalFiles(run.out), metrics


@cache
def corpus() -> pl.DataFrame:
    """600 documents: real passages, and copies of some with nothing, a little, or much of them changed."""
    chance = random.Random(7)
    texts = passages()[:300]
    for share in (0.0, 0.005, 0.01, 0.02, 0.05, 0.2):
        texts += [edited(text, share, chance) for text in chance.sample(texts[:300], 50)]
    chance.shuffle(texts)
    return frame(texts)


def test_estimates_agree_with_brute_force_and_with_datasketch() -> None:
    from datasketch import MinHash

    chance = random.Random(1)
    size = 112
    ours, theirs = [], []
    for text in passages()[:60]:
        other = edited(text, chance.choice((0.01, 0.03, 0.06)), chance)
        true = jaccard(text, other)
        if true == 1:
            continue
        signature, *_ = signatures_of(pl.Series([text, other]), 5, 14, 8, seed=1)
        sketches = []
        for one in (text, other):
            sketch = MinHash(num_perm=size, seed=1)
            sketch.update_batch([" ".join(words).encode() for words in shingles(one)])
            sketches.append(sketch)
        spread = math.sqrt(true * (1 - true) / size)
        ours.append((estimate(signature[0], signature[1]) - true) / spread)
        theirs.append((sketches[0].jaccard(sketches[1]) - true) / spread)
    for deviations in (np.array(ours), np.array(theirs)):  # standard normal, if the estimate is unbiased
        assert abs(deviations.mean()) < 4 / math.sqrt(len(deviations))
        assert 0.6 < deviations.std() < 1.5


def test_candidates_follow_the_s_curve() -> None:
    chance = random.Random(3)
    texts = passages(800)[:1500]
    others = [edited(text, chance.uniform(0.005, 0.08), chance) for text in texts]
    _, keys, _, _ = signatures_of(pl.Series(texts + others), 5, 14, 8, seed=1)
    candidates = (keys[: len(texts)] == keys[len(texts) :]).any(axis=1)
    similarity = np.array([jaccard(a, b) for a, b in zip(texts, others, strict=True)])
    expected = 1 - (1 - similarity**8) ** 14  # the S-curve: at least one band of eight rows alike
    for low in np.arange(0.4, 1.0, 0.1):
        chosen = (similarity >= low) & (similarity < low + 0.1)
        count = chosen.sum()
        assert count > 30, f"too few pairs near {low:.1f} to say anything"
        spread = math.sqrt((expected[chosen] * (1 - expected[chosen])).sum()) / count
        assert abs(candidates[chosen].mean() - expected[chosen].mean()) < 4 * spread + 1e-9


def test_every_duplicate_resembles_its_kept_document_and_close_copies_are_found(tmp_path: Path) -> None:
    documents = corpus()
    files, metrics = decide(tmp_path, [documents])
    texts = dict(documents.select("id", "text").iter_rows())
    order = {name: place for place, name in enumerate(documents["id"])}
    decisions = files.table("decisions/")
    assert decisions["id"].equals(documents["id"])
    lost = decisions.filter(~pl.col("keep"))
    assert lost.height == metrics["exact_duplicates"] + metrics["near_duplicates"] > 100
    kept = set(decisions.filter("keep")["id"])
    for row in lost.iter_rows(named=True):
        true = jaccard(texts[row["id"]], texts[row["duplicate_of"]])
        assert row["duplicate_of"] == row["cluster"] in kept
        assert order[row["duplicate_of"]] < order[row["id"]]
        assert abs(row["jaccard"] - true) < 5 * math.sqrt(0.7 * 0.3 / 112)
        assert (row["kind"] == "exact") == (shingles(texts[row["id"]]) == shingles(texts[row["duplicate_of"]]))
    # Brute force: of all pairs of survivors hardly any may be as alike as the S-curve finds with 99.9 %.
    survivors = [shingles(texts[name]) for name in decisions.filter("keep")["id"]]
    alike = sum(len(a & b) / len(a | b) > 0.9 for place, a in enumerate(survivors) for b in survivors[:place] if a & b)
    assert alike == 0


@pytest.mark.parametrize("count", [4, 64])
def test_decisions_do_not_depend_on_the_number_of_shards(tmp_path: Path, count: int) -> None:
    documents = corpus()
    size = -(-documents.height // count)
    whole, metrics = decide(tmp_path / "one", [documents])
    parts, same_metrics = decide(tmp_path / "many", list(documents.iter_slices(size)))
    assert whole.table("decisions/").equals(parts.table("decisions/"))
    assert metrics == same_metrics


@cache
def near_the_threshold() -> pl.DataFrame:
    """500 passages and copies whose true similarity lies between 0.6 and 0.8."""
    chance = random.Random(11)
    texts = passages(3000)[:500]
    copies = [edited(text, chance.uniform(0.022, 0.055), chance) for text in texts]
    pairs = [(text, copy) for text, copy in zip(texts, copies, strict=True) if 0.6 < jaccard(text, copy) < 0.8]
    assert len(pairs) > 300
    return frame([text for text, _ in pairs] + [copy for _, copy in pairs])


def test_near_the_threshold_the_true_similarity_decides(tmp_path: Path) -> None:
    documents = near_the_threshold()
    texts = documents["text"].to_list()
    half = len(texts) // 2
    true = [jaccard(a, b) for a, b in zip(texts[:half], texts[half:], strict=True)]
    by_estimate, _ = decide(tmp_path / "estimate", [documents], DedupParams(verify_within=0))
    verified, _ = decide(tmp_path / "verified", [documents])
    found = {}
    for name, files in (("estimate", by_estimate), ("verified", verified)):
        decisions = files.table("decisions/")
        assert decisions["keep"][:half].all()
        found[name] = decisions[half:]
    wrong = {
        name: sum(a < 0.7 for a, keep in zip(true, table["keep"], strict=True) if not keep)
        for name, table in found.items()
    }
    assert wrong["estimate"] > 10 and wrong["verified"] == 0
    said = found["verified"]["jaccard"].to_list()
    assert all(a == pytest.approx(b) for a, b in zip(true, said, strict=True) if b is not None and b <= 0.8)
    kept_alike = [max(a - 0.7, 0) for a, keep in zip(true, found["verified"]["keep"], strict=True) if keep and a >= 0.7]
    assert len(kept_alike) < 0.4 * sum(a >= 0.7 for a in true)  # what no band brings together stays unseen


def test_verified_decisions_do_not_depend_on_shards_and_later_ones_change_nothing(tmp_path: Path) -> None:
    documents = near_the_threshold()
    whole, _ = decide(tmp_path / "whole", [documents])
    shards = list(documents.iter_slices(97))
    parts, _ = decide(tmp_path / "parts", shards)
    assert whole.table("decisions/").equals(parts.table("decisions/"))
    early, _ = decide(tmp_path / "early", shards[:-2])
    for name in early.names():
        assert early.path(name).read_bytes() == parts.path(name).read_bytes()


def test_signatures_of_other_documents_are_refused(tmp_path: Path) -> None:
    documents = near_the_threshold()
    table = signatures(documents, SignatureParams()).outputs["signatures"]
    assert isinstance(table, pl.DataFrame)
    for name, written in (("in/signatures", table), ("documents/kept", documents.reverse())):
        (tmp_path / name).mkdir(parents=True)
        written.write_parquet(tmp_path / name / "g000-00-sotu-00000.parquet")
    inputs = {"signatures": LocalFiles(tmp_path / "in"), "documents": LocalFiles(tmp_path / "documents")}
    with pytest.raises(LlmcoreError, match=r"kept/g000-00-sotu-00000\.parquet holds other documents"):
        resolve(inputs, ResolveParams(), LocalRun(tmp_path / "run"))


def test_later_shards_change_no_earlier_decision_file(tmp_path: Path) -> None:
    shards = list(corpus().iter_slices(100))
    early, _ = decide(tmp_path / "early", shards[:3])
    late, _ = decide(tmp_path / "late", shards)
    for name in early.names():
        assert early.path(name).read_bytes() == late.path(name).read_bytes()


def test_a_chain_of_edits_is_not_followed_beyond_the_threshold(tmp_path: Path) -> None:
    chance = random.Random(5)
    chain = [passages(4000)[0]]
    while len(chain) < 40:
        chain.append(edited(chain[-1], 0.01, chance))
    assert jaccard(chain[0], chain[-1]) < 0.3
    files, _ = decide(tmp_path, [frame(chain)])
    decisions = files.table("decisions/")
    assert 3 < decisions["keep"].sum() < 30
    texts = dict(zip(decisions["id"], chain, strict=True))
    assert all(jaccard(texts[a], texts[b]) > 0.5 for a, b in decisions.select("id", "cluster").iter_rows())


def test_thousands_of_near_copies_make_one_cluster(tmp_path: Path) -> None:
    text = passages()[0]
    copies = [text, *(f"{text} number {count}" for count in range(8000))]
    files, metrics = decide(tmp_path, [frame(copies, source="mirror")])
    decisions = files.table("decisions/")
    assert metrics["clusters"] == 1 and metrics["near_duplicates"] == 8000
    assert decisions["cluster"].n_unique() == 1
    assert metrics["alarms"] == ["mirror"]
    assert metrics["sources"]["mirror"]["lost"] == 8000


def test_kept_and_dropped_are_what_was_read_in_order_with_reasons(tmp_path: Path) -> None:
    documents = corpus()
    files, _ = decide(tmp_path, [documents])
    decisions = files.table("decisions/")
    result = dedup(documents, KeepParams(), decisions)
    kept, lost = result.outputs["kept"], result.outputs["dropped"]
    assert isinstance(kept, pl.DataFrame) and isinstance(lost, pl.DataFrame)
    assert kept.height + lost.height == documents.height
    assert kept.drop("cluster").equals(documents.filter(decisions["keep"]))
    assert kept["cluster"].equals(kept["id"].rename("cluster"))
    assert lost["id"].equals(documents.filter(~decisions["keep"])["id"])
    assert set(lost["reason"]) == {"exact_duplicate", "near_duplicate"}
    details = [json.loads(detail) for detail in lost["detail"]]
    assert all(detail["duplicate_of"] in set(kept["id"]) and 0.7 <= detail["jaccard"] <= 1 for detail in details)


def test_decisions_of_another_shard_are_refused(tmp_path: Path) -> None:
    documents = corpus()
    files, _ = decide(tmp_path, [documents])
    with pytest.raises(LlmcoreError, match="decisions are not those of this shard"):
        dedup(documents.reverse(), KeepParams(), files.table("decisions/"))


def test_odd_documents(tmp_path: Path) -> None:
    prices = "item {} costs {} euros and {} cents in the shop of the town on the river\n"
    lists = ["".join(prices.format(r, r * 7 + k, r * 13 + k) for r in range(40)) for k in (0, 1000)]
    texts = [
        "",
        "",
        "???",
        "!!!",
        "one",
        "One.",
        "nul\0byte",
        "nul byte",
        *lists,
        "今天天气很好我们去公园散步吧",
        "今天天气很好我们去公园散步吧!",
        "明日は雨が降るでしょう",
        "word " * 2_000_000,
    ]
    none = frame([]).cast({"id": pl.String, "text": pl.String, "source": pl.String})
    files, _ = decide(tmp_path, [none, frame(texts), none])
    kinds = files.table("decisions/")["kind"].to_list()
    exact = {1, 5, 7, 11}  # the second empty one, "One.", "nul byte" and the sentence with its full stop
    assert [kind == "exact" for kind in kinds] == [place in exact for place in range(len(texts))]
    assert "near" not in kinds  # lists that differ in every number are different documents


def test_nothing_to_resolve_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LlmcoreError, match="no shard"):
        decide(tmp_path, [])


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_words_are_those_of_python(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    hashes, bounds = word_hashes(pl.Series(texts, dtype=pl.String))
    table = folding()

    def words(text: str) -> list[str]:
        out = ""
        for character in text:
            point = ord(character)
            folded = int(table[point]) if point < len(table) else point | ALONE
            out += " " if not folded else f" {character} " if folded & ALONE else chr(folded)
        return out.split()

    found = [words(text) for text in texts]
    assert [len(part) for part in found] == np.diff(bounds).tolist()
    names = dict(zip([word for part in found for word in part], hashes.tolist(), strict=True))
    assert [names[word] for part in found for word in part] == hashes.tolist()
    assert len(set(names.values())) == len(names)


def test_signatures_never_change() -> None:
    """Stored signatures outlive processes, machines and library versions; a change needs a new stage version."""
    text = pl.Series(["We, the people of the United States, in 1789"])
    signature, keys, content, count = signatures_of(text, 5, 14, 8, seed=1)
    assert signature[0, :3].tolist() == [1415021245, 799425731, 235706300]
    assert int(keys[0, 0]) == 9739922868601640445 and int(content[0]) == 3359477627222030279
    assert count[0] == 5  # nine words
