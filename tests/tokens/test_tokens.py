"""Tokenizer, tokenising, packing: nothing lost, nothing twice, nothing moved by what comes later."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from llmcore.errors import LlmcoreError
from llmcore.quickstart import bundled
from llmcore.tokens.pack import PackParams, pack, plan_windows
from llmcore.tokens.tokenise import SPLITS, TokeniseParams, tokenise
from llmcore.tokens.tokenizer import SPECIAL_TOKENS, TokenizerParams, load_tokenizer, train_tokenizer
from tests.local_files import LocalFiles, LocalRun


def documents(count: int = 20, split: str = "train") -> pl.DataFrame:
    texts = pl.read_parquet(bundled("sotu.parquet"))["text"].head(count).str.slice(0, 4000)
    return pl.DataFrame({"id": [f"{n:032x}" for n in range(count)], "source": "sotu", "split": split, "text": texts})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> LocalFiles:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "in/kept").mkdir(parents=True)
    documents().write_parquet(folder / "in/kept/g000-sotu-00000.parquet")
    run = LocalRun(folder / "run")
    train_tokenizer({"documents": LocalFiles(folder / "in")}, TokenizerParams(vocab_size=1000), run)
    return LocalFiles(run.out)


def test_special_tokens_come_first_and_transformers_agrees(trained: LocalFiles) -> None:
    from transformers import AutoTokenizer

    ours = Tokenizer.from_file(str(trained.path("tokenizer.json")))
    theirs = AutoTokenizer.from_pretrained(trained.root)
    assert [ours.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert ours.get_vocab_size() == 1000
    for text in ("Fellow-Citizens of the Senate", "  two  spaces\n\n\ttab", "Ünïcode 中文 🙂", ""):
        assert theirs(text).input_ids == ours.encode(text).ids
        assert theirs(text).input_ids[0] == 0, "prompts start where documents start"
    assert theirs.chat_template is None, "a base model continues text"


def test_training_twice_gives_the_same_bytes(trained: LocalFiles, tmp_path: Path) -> None:
    (tmp_path / "in/kept").mkdir(parents=True)
    documents().reverse().write_parquet(tmp_path / "in/kept/g000-sotu-00000.parquet")
    run = LocalRun(tmp_path / "run")
    train_tokenizer({"documents": LocalFiles(tmp_path / "in")}, TokenizerParams(vocab_size=1000), run)
    assert (run.out / "tokenizer.json").read_bytes() == trained.path("tokenizer.json").read_bytes()


def test_of_a_large_corpus_a_sample_is_learned_from(tmp_path: Path) -> None:
    (tmp_path / "in/kept").mkdir(parents=True)
    whole = documents(40)
    whole.reverse().write_parquet(tmp_path / "in/kept/g000-sotu-00000.parquet")
    params = TokenizerParams(vocab_size=600, sample_bytes=1 << 16)
    learned = train_tokenizer({"documents": LocalFiles(tmp_path / "in")}, params, LocalRun(tmp_path / "run"))
    sizes = whole["text"].str.len_bytes().cum_sum()
    assert learned["documents"] == int((sizes < 1 << 16).sum()) + 1
    assert learned["bytes"] == sizes[learned["documents"] - 1]


def test_no_training_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in/kept").mkdir(parents=True)
    documents(split="test").write_parquet(tmp_path / "in/kept/g000-sotu-00000.parquet")
    with pytest.raises(LlmcoreError, match="train split"):
        train_tokenizer({"documents": LocalFiles(tmp_path / "in")}, TokenizerParams(), LocalRun(tmp_path / "run"))


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text() | st.just("a<|endoftext|>b<|user|>"), min_size=1, max_size=5))
def test_any_text_comes_back_and_never_becomes_a_special_token(trained: LocalFiles, texts: list[str]) -> None:
    frame = pl.DataFrame(
        {"id": [str(n) for n in range(len(texts))], "source": "s", "split": "train", "text": texts},
        schema_overrides={"text": pl.String},
    )
    result = tokenise(frame, TokeniseParams(), trained)
    table = result.outputs["train"]
    assert isinstance(table, pl.DataFrame)
    encoder = load_tokenizer(trained)
    for text, tokens in zip(texts, table["tokens"].to_list(), strict=True):
        assert tokens[-1] == 0
        assert all(token >= len(SPECIAL_TOKENS) for token in tokens[:-1])
        assert encoder.decode(tokens[:-1], skip_special_tokens=False) == text


def test_token_shards_hold_every_document_once_in_its_split(trained: LocalFiles) -> None:
    frame = pl.concat([documents(6, split) for split in SPLITS])
    result = tokenise(frame, TokeniseParams(), trained)
    for split in SPLITS:
        table = result.outputs[split]
        assert isinstance(table, pl.DataFrame)
        assert table.columns == ["id", "source", "tokens", "n_tokens", "n_bytes"]
        assert table.schema["tokens"] == pl.List(pl.UInt16)
        assert table["id"].to_list() == documents(6)["id"].to_list()
        assert (table["n_tokens"] == table["tokens"].list.len()).all()
        assert (table["n_bytes"] == documents(6)["text"].str.len_bytes()).all()


lengths = st.lists(st.integers(1, 300), min_size=1, max_size=120)


def shard(sizes: list[int], name: str = "g000-a-00000.parquet") -> pl.DataFrame:
    count = len(sizes)
    return pl.DataFrame(
        {"id": [f"{name}{n}" for n in range(count)], "shard": name, "row": range(count), "n_tokens": sizes},
        schema={"id": pl.String, "shard": pl.String, "row": pl.Int64, "n_tokens": pl.Int64},
    )


@settings(max_examples=200, deadline=None)
@given(sizes=lengths, window=st.integers(16, 128))
def test_every_token_of_every_document_is_planned_exactly_once(sizes: list[int], window: int) -> None:
    plan = plan_windows(shard(sizes), window)
    for row, size in enumerate(sizes):
        pieces = plan.filter(pl.col("row") == row).sort("start")
        ends = (pieces["start"] + pieces["length"]).to_list()
        assert pieces["start"].to_list() == [0, *ends[:-1]]
        assert ends[-1] == size
    fill = plan.group_by("window").agg(pl.col("length").sum(), pl.col("slot").sort())
    assert fill["length"].max() <= window  # type: ignore[operator]
    assert all(slots == list(range(len(slots))) for slots in fill["slot"].to_list())
    assert sorted(fill["window"]) == list(range(fill.height)), "no window is empty"
    assert plan.equals(plan.sort("window", "slot"))


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 300), min_size=60, max_size=200), window=st.integers(16, 64))
def test_windows_are_full(sizes: list[int], window: int) -> None:
    plan = plan_windows(shard(sizes), window)
    windows = plan["window"].max() + 1  # type: ignore[operator]
    # at most the last window may be part empty, whatever the lengths
    assert sum(sizes) >= 0.99 * windows * window or windows - sum(sizes) / window < 1


@settings(max_examples=60, deadline=None)
@given(sizes=lengths)
def test_short_documents_stay_whole_where_the_windows_still_fill(sizes: list[int]) -> None:
    plan = plan_windows(shard(sizes), 512, min_fill=0.0)
    assert plan.height == len(sizes)


def written(folder: Path, generations: list[list[int]]) -> LocalFiles:
    for number, sizes in enumerate(generations):
        name = f"g{number:03d}-a-00000.parquet"
        for split in SPLITS:
            (folder / split).mkdir(parents=True, exist_ok=True)
            table = shard(sizes, name).drop("shard", "row")
            (table if split == "train" else table.head(0)).write_parquet(folder / split / name)
    return LocalFiles(folder)


@settings(max_examples=20, deadline=None)
@given(first=lengths, second=lengths)
def test_an_appended_generation_moves_nothing(
    tmp_path_factory: pytest.TempPathFactory, first: list[int], second: list[int]
) -> None:
    plans = []
    for generations in ([first], [first, second]):
        folder = tmp_path_factory.mktemp("pack")
        run = LocalRun(folder / "run")
        pack({"tokens": written(folder / "in", generations)}, PackParams(window=64), run)
        plans.append(pl.read_parquet(run.out / "plan/train.parquet"))
    assert plans[1].head(plans[0].height).equals(plans[0])
    assert plans[1]["length"].sum() == sum(first) + sum(second)


def leaving(folder: Path, ids: Iterable[str]) -> LocalFiles:
    """What the stage versions writes of documents that leave."""
    (folder / "dropped").mkdir(parents=True)
    rows = pl.DataFrame({"id": list(ids)}, schema={"id": pl.String})
    rows.with_columns(stage=pl.lit("versions"), reason=pl.lit("gone"), detail=pl.lit("{}")).write_parquet(
        folder / "dropped/g000.parquet"
    )
    return LocalFiles(folder)


@settings(max_examples=40, deadline=None)
@given(first=lengths, second=lengths, chance=st.randoms(use_true_random=False))
def test_a_document_that_leaves_takes_its_pieces_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, first: list[int], second: list[int], chance: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    tokens = written(folder / "in", [first, second])
    whole, less = LocalRun(folder / "whole"), LocalRun(folder / "less")
    pack({"tokens": tokens}, PackParams(window=64), whole)
    before = pl.read_parquet(whole.out / "plan/train.parquet")
    ids = before["id"].unique().sort().to_list()
    gone = chance.sample(ids, chance.randrange(len(ids)))
    metrics = pack({"tokens": tokens, "versions": leaving(folder / "gone", gone)}, PackParams(window=64), less)
    after = pl.read_parquet(less.out / "plan/train.parquet")
    stays = before.filter(~pl.col("id").is_in(gone))
    pieces = ["slot", "id", "shard", "row", "start", "length"]
    assert after.select(pieces).sort(pieces).equals(stays.select(pieces).sort(pieces))
    windows = after["window"].unique().sort().to_list()
    assert windows == list(range(metrics["train_windows"])), "no window is empty"
    both = stays.join(after, on=pieces, suffix="_now").select("window", "window_now").unique()
    assert both["window"].is_unique().all() and both["window_now"].is_unique().all(), "windows stay together"
    moved = both.filter(pl.col("window") != pl.col("window_now"))
    assert all(number >= len(windows) for number in moved["window"]), "only the last ones take other numbers"
    assert after.equals(after.sort("window", "slot"))
    assert metrics["dropped"] == len(gone) and metrics["train_documents"] == len(ids) - len(gone)


def test_a_document_that_is_to_leave_but_is_not_there_is_an_error(tmp_path: Path) -> None:
    inputs = {"tokens": written(tmp_path / "in", [[10, 20]]), "versions": leaving(tmp_path / "gone", ["unknown"])}
    with pytest.raises(LlmcoreError, match="1 documents are to leave, 0 are in the tokens"):
        pack(inputs, PackParams(), LocalRun(tmp_path / "run"))


def test_when_every_document_leaves_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    tokens = written(tmp_path / "in", [[10, 20]])
    ids = tokens.table("train/")["id"]
    with pytest.raises(LlmcoreError, match="train split"):
        pack({"tokens": tokens, "versions": leaving(tmp_path / "gone", ids)}, PackParams(), LocalRun(tmp_path / "run"))


def test_the_thousandth_generation_is_packed_behind_the_one_before(tmp_path: Path) -> None:
    for name in ("g1000-a-00000.parquet", "g999-a-00000.parquet"):
        for split in SPLITS:
            (tmp_path / "in" / split).mkdir(parents=True, exist_ok=True)
            shard([60], name).drop("shard", "row").write_parquet(tmp_path / "in" / split / name)
    run = LocalRun(tmp_path / "run")
    pack({"tokens": LocalFiles(tmp_path / "in")}, PackParams(window=64), run)
    plan = pl.read_parquet(run.out / "plan/train.parquet")
    assert plan["shard"].to_list() == ["g999-a-00000.parquet", "g1000-a-00000.parquet"]


def test_the_plan_of_a_fixed_input_never_changes_unnoticed(tmp_path: Path) -> None:
    run = LocalRun(tmp_path / "run")
    sizes = [(7 * n * n + 13) % 400 + 1 for n in range(200)]
    metrics = pack({"tokens": written(tmp_path / "in", [sizes])}, PackParams(window=128), run)
    rows = pl.read_parquet(run.out / "plan/train.parquet").write_csv().encode()
    assert hashlib.sha256(rows).hexdigest()[:16] == GOLDEN_PLAN, "raise STAGE.version, then set the new digest"
    assert metrics["train_fill"] >= 0.99
    assert json.loads((run.out / "plan.json").read_text())["splits"]["train"]["tokens"] == sum(sizes)


def test_a_corpus_without_a_train_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LlmcoreError, match="train split"):
        pack({"tokens": written(tmp_path / "in", [[]])}, PackParams(), LocalRun(tmp_path / "run"))


GOLDEN_PLAN = "3e84f9ec9128d635"
