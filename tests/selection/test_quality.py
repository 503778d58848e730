"""Quality: every signal against a plain implementation, every rule at its threshold, and the classifier."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.quality import plain_signals
from llmcore.errors import LlmcoreError
from llmcore.quickstart import bundled
from llmcore.schema import DOCUMENT_SCHEMA
from llmcore.selection.classifier import ClassifierParams, passages, scores, train
from llmcore.selection.quality import QualityParams, failures, quality, rules, without_lines
from llmcore.selection.signals import SIGNALS_SCHEMA, SignalsParams, signals
from tests.local_files import LocalFiles, LocalRun
from tests.text.test_clean import documents

WHITESPACE = SignalsParams()


def prose() -> str:
    """Some two hundred words of an address, a sentence a line."""
    text = str(pl.read_parquet(bundled("sotu.parquet"))["text"][120])
    return "\n".join(text[2000:].split(". ")[1:12]).replace("\n", ".\n") + "."


def measured(*texts: str, params: SignalsParams = WHITESPACE) -> pl.DataFrame:
    table = signals(documents(*texts), params).outputs["signals"]
    assert isinstance(table, pl.DataFrame)
    return table


def failed_rules(text: str, params: QualityParams | None = None) -> list[str]:
    return [item["rule"] for item in failures(measured(text), rules(params or QualityParams()))[0]]


def test_signals_of_real_texts_equal_the_plain_implementation() -> None:
    texts = [text[:6000] for text in pl.read_parquet(bundled("sotu.parquet"))["text"].gather_every(20)]
    texts += [text.replace(". ", ".\n") for text in texts[:4]]
    texts += [texts[0][:300] * 6, "{\n}\n" * 30, "- a\n- b\n\n- a\n..."]
    for text, row in zip(texts, measured(*texts).iter_rows(named=True), strict=True):
        assert {name: row[name] for name in SIGNALS_SCHEMA if name not in ("id", "unit")} == pytest.approx(
            plain_signals(text)
        )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["the", "a", "of", "b", ".", "\n", "\n\n", "…", "# ", "漢字", "-", "javascript"]), max_size=80
    )
)
def test_signals_of_any_text_equal_the_plain_implementation(parts: list[str]) -> None:
    text = " ".join(parts)
    row = measured(text).row(0, named=True)
    assert {name: row[name] for name in SIGNALS_SCHEMA if name not in ("id", "unit")} == pytest.approx(
        plain_signals(text)
    )


def test_good_prose_fails_no_rule() -> None:
    assert failed_rules(prose()) == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("gopher_min_words", "Only a few words of prose that end. Here is one. And one more."),
        ("gopher_min_word_length", "a I o to be " * 60),
        ("gopher_max_word_length", "of the " + "internationalisation telecommunication " * 60),
        ("gopher_hashes", prose() + " #" * 100),
        ("gopher_ellipses", prose() + " and..." * 100),
        ("gopher_bullet_lines", "- " + prose().replace("\n", "\n- ")),
        ("gopher_ellipsis_lines", prose().replace("\n", " ...\n")),
        ("gopher_alpha_words", prose() + " 12,345" * 250),
        ("gopher_stop_words", "Zwölf Boxkämpfer jagen Viktor quer über große Sylter Deiche. " * 10),
        ("gopher_duplicate_lines", prose() + "\nA menu line" * 9),
        ("gopher_duplicate_paragraphs", "\n\n".join([*prose().split("\n"), *["One paragraph again"] * 9])),
        ("gopher_duplicate_line_characters", "\n".join([prose(), *prose().split("\n")[:4]])),
        ("gopher_duplicate_paragraph_characters", "\n\n".join([prose()] * 2)),
        ("gopher_top_2_gram", prose() + " free beer" * 200),
        ("gopher_top_3_gram", prose() + " free beer here" * 200),
        ("gopher_top_4_gram", prose() + " free beer here today" * 60),
        *[(f"gopher_duplicate_{n}_gram", prose() + " " + prose().replace("\n", " ")) for n in range(5, 11)],
        ("c4_sentences", "words without any stop " * 30),
        ("c4_lorem_ipsum", prose() + " Lorem ipsum dolor sit amet."),
        ("c4_longest_word", prose() + " " + "x" * 1001),
        ("c4_javascript_lines", prose().replace("\n", " javascript\n")),
        ("c4_policy_lines", prose().replace("\n", " privacy policy\n")),
        ("fineweb_terminal_lines", prose().replace("\n", " and\n").removesuffix(".") + " and"),
        ("fineweb_short_lines", "\n".join(prose().split(" ")) + " is the last line, and it ends like a sentence does."),
        ("fineweb_newlines", "\n".join(prose().split(" "))),
    ],
)
def test_each_rule_catches_what_it_is_for(rule: str, text: str) -> None:
    assert rule in failed_rules(text)
    assert rule not in failed_rules(text, QualityParams(**{rule: None}))


def test_the_longest_documents_fail_too() -> None:
    assert "gopher_max_words" in failed_rules("the word and " * 40_000)


def test_curly_brackets_are_judged_only_on_demand() -> None:
    text = prose() + " function() { return; }"
    assert failed_rules(text) == []
    assert failed_rules(text, QualityParams(c4_curly_brackets=0)) == ["c4_curly_brackets"]


def test_a_rule_holds_at_its_threshold() -> None:
    words = measured(prose())["words"][0]
    assert failed_rules(prose(), QualityParams(gopher_min_words=words)) == []
    assert failed_rules(prose(), QualityParams(gopher_min_words=words + 1)) == ["gopher_min_words"]


def test_line_shares_do_not_judge_a_document_of_one_line() -> None:
    assert failed_rules(prose().replace("\n", ". ").removesuffix(".") + " and no stop") == []


def test_tokens_are_datatroves_words() -> None:
    """Punctuation marks are no words, but count where a share of words is taken."""
    row = measured("Yes, it is. # No!", params=SignalsParams(words="tokens")).row(0, named=True)
    assert (row["words"], row["mean_word_length"]) == (4, 2.25)
    assert (row["alpha_words"], row["hashes_per_word"]) == (4 / 8, 1 / 8)
    assert measured("Yes, it is.")["words"][0] == 3


def test_tokens_agree_with_spacys() -> None:
    """datatrove takes spaCy's tokens and calls those words that are more than punctuation."""
    import spacy

    tokenizer = spacy.blank("en")
    texts = [text[:6000] for text in pl.read_parquet(bundled("sotu.parquet"))["text"].gather_every(40)]
    table = measured(*texts, params=SignalsParams(words="tokens"))
    for text, row in zip(texts, table.iter_rows(named=True), strict=True):
        tokens = [token.text for token in tokenizer(text) if not token.is_space]
        words = [token for token in tokens if any(c.isalnum() for c in token)]
        assert row["words"] == pytest.approx(len(words), rel=0.02)
        assert row["alpha_words"] == pytest.approx(
            sum(any(c.isalpha() for c in token) for token in tokens) / len(tokens), rel=0.01
        )


def test_every_dropped_document_carries_all_failed_rules(tmp_path: Path) -> None:
    shard = documents(prose(), "few words", prose() + " #" * 100, "")
    result = quality(shard, QualityParams(), measured(*shard["text"]), LocalFiles(tmp_path))
    kept, dropped = result.outputs["kept"], result.outputs["dropped"]
    assert kept["id"].to_list() == [shard["id"][0]] and kept.schema == DOCUMENT_SCHEMA
    assert dropped["id"].to_list() == shard["id"].to_list()[1:]
    detail = json.loads(dropped["detail"][0])
    assert dropped["reason"][0] == detail["rule"] == "gopher_min_words"
    assert (detail["value"], detail["threshold"]) == (2, 50)
    assert [item["rule"] for item in detail["failed"]][:2] == ["gopher_min_words", "gopher_stop_words"]
    assert result.metrics["dropped gopher_hashes"] == 1
    assert result.outputs["scores"]["id"].equals(shard["id"])


def test_signals_of_other_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LlmcoreError, match="signals belong to other documents"):
        quality(documents("a", "b"), QualityParams(), measured("b", "a"), LocalFiles(tmp_path))


def test_policy_lines_are_taken_out_of_kept_documents() -> None:
    text = "First line.\nSee our privacy policy here.\nLast line."
    assert without_lines(pl.Series([text, "use of cookies"]), ("policy",)).to_list() == [
        "First line.\nLast line.",
        "use of cookies",
    ]


def test_odd_texts_and_empty_shards(tmp_path: Path) -> None:
    table = measured("", "\x00\x00", "漢字かな交じり文" * 100, "x" * 10_000_000, "\n" * 50)
    assert table.schema == SIGNALS_SCHEMA and table.null_count().sum_horizontal()[0] == 0
    assert table["words"].to_list() == [0, 1, 1, 1, 0]
    assert table["longest_word"][3] == 10_000_000
    empty = quality(documents(), QualityParams(), measured(), LocalFiles(tmp_path))
    assert len(empty.outputs["kept"]) == len(empty.outputs["dropped"]) == 0
    assert empty.outputs["dropped"].columns == ["id", "stage", "reason", "detail"]


def test_order_and_neighbours_do_not_matter() -> None:
    texts = [prose(), "few", prose() + " #" * 100, "", "a\n\na\n\na"]
    together = measured(*texts).drop("id")
    assert together.reverse().equals(measured(*texts[::-1]).drop("id"))
    assert all(measured(text).drop("id").equals(together[i]) for i, text in enumerate(texts))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalRun, LocalRun, dict[str, object]]:
    folder = tmp_path_factory.mktemp("classifier")
    texts = pl.read_parquet(bundled("sotu.parquet"))["text"].head(12).to_list()
    shard = documents(*texts)
    for name, table in (("documents/kept", shard), ("signals/signals", measured(*texts))):
        (folder / name).mkdir(parents=True)
        table.write_parquet(folder / name / "g000-00-sotu-00000.parquet")
    inputs = {role: LocalFiles(folder / role) for role in ("documents", "signals")}
    runs = [LocalRun(folder / name) for name in ("one", "two")]
    metrics = [dict(train(inputs, ClassifierParams(max_passages=300), run)) for run in runs]
    assert metrics[0] == metrics[1]
    return runs[0], runs[1], metrics[0]


def test_training_twice_gives_the_same_bytes(trained: tuple[LocalRun, LocalRun, dict[str, object]]) -> None:
    one, two, metrics = trained
    assert (one.out / "en.bin").read_bytes() == (two.out / "en.bin").read_bytes()
    assert metrics["trained"] == 1 and metrics["positives"] == metrics["negatives"]
    assert [path.name for path in one.out.iterdir()] == ["en.bin"]


def test_prose_scores_above_wreckage(trained: tuple[LocalRun, LocalRun, dict[str, object]]) -> None:
    model = trained[0].out / "en.bin"
    unseen = pl.read_parquet(bundled("sotu.parquet"))["text"][20]
    menu = "Home | About | Contact | Products | Services | Login | Register | Search | Help | " * 8
    texts = pl.Series([unseen, menu, "buy it now " * 100, ""])
    good, wreck, repeated, blank = scores(texts, pl.repeat("en", 4, eager=True), {"en": model})
    assert good > 0.5 > wreck and good > repeated and blank == 0


def test_the_threshold_decides_by_the_score(trained: tuple[LocalRun, LocalRun, dict[str, object]]) -> None:
    shard = documents(prose())
    files = LocalFiles(trained[0].out)
    strict = quality(shard, QualityParams(classifier_min_score=1.0), measured(*shard["text"]), files)
    assert strict.outputs["dropped"]["reason"].to_list() == ["classifier_min_score"]
    assert 0 < json.loads(strict.outputs["dropped"]["detail"][0])["value"] < 1
    off = quality(shard, QualityParams(classifier_min_score=None), measured(*shard["text"]), files)
    assert len(off.outputs["kept"]) == 1


def test_too_small_a_corpus_trains_nothing_and_drops_nothing(tmp_path: Path) -> None:
    shard = documents(prose())
    for name, table in (("documents/kept", shard), ("signals/signals", measured(*shard["text"]))):
        (tmp_path / name).mkdir(parents=True)
        table.write_parquet(tmp_path / name / "g000-00-x-00000.parquet")
    run = LocalRun(tmp_path / "run")
    metrics = train({role: LocalFiles(tmp_path / role) for role in ("documents", "signals")}, ClassifierParams(), run)
    assert metrics["trained"] == 0
    result = quality(shard, QualityParams(), measured(*shard["text"]), LocalFiles(run.out))
    assert len(result.outputs["kept"]) == 1 and result.outputs["scores"]["classifier_score"].to_list() == [None]


def test_passages_leave_out_only_a_short_rest() -> None:
    assert [len(piece.split()) for piece in passages("word " * 230, 100)] == [100, 100]
    assert [len(piece.split()) for piece in passages("word " * 260, 100)] == [100, 100, 60]


def decided(text: str, lang: str, params: QualityParams, folder: Path) -> pl.DataFrame:
    """What quality keeps of one document, without a classifier."""
    table = documents(text).with_columns(lang=pl.lit(lang))
    measures = signals(table, WHITESPACE).outputs["signals"]
    assert isinstance(measures, pl.DataFrame)
    kept = quality(table, params, measures, LocalFiles(folder)).outputs["kept"]
    assert isinstance(kept, pl.DataFrame)
    return kept


def test_a_line_of_one_endless_word_costs_itself_and_not_its_chapter(tmp_path: Path) -> None:
    blob = "QUJD" * 400
    chapter = prose().replace("\n", f"\n{blob}\n", 1)
    assert decided(chapter, "en", QualityParams(), tmp_path)["text"].to_list() == [prose()]
    kept = decided(chapter, "en", QualityParams(drop_lines=()), tmp_path)
    assert kept.is_empty()
    assert decided(f"A heading\n{blob}\nAn end.", "en", QualityParams(), tmp_path).is_empty()


def test_what_lines_were_is_judged_and_what_is_left_too(tmp_path: Path) -> None:
    mostly_policy = prose().replace("\n", "\nprivacy policy\n")
    assert decided(mostly_policy, "en", QualityParams(), tmp_path).height == 1
    assert decided(mostly_policy, "en", QualityParams(c4_policy_lines=0.4), tmp_path).is_empty()
    assert decided("Terms of use and much more.\n" * 60, "en", QualityParams(), tmp_path).is_empty()


def test_shares_of_lines_judge_documents_of_so_many_lines() -> None:
    text = "- " + prose().replace("\n", "\n- ")
    lines = measured(text)["lines"][0]
    assert "gopher_bullet_lines" in failed_rules(text, QualityParams(min_lines=lines))
    assert "gopher_bullet_lines" not in failed_rules(text, QualityParams(min_lines=lines + 1))


def test_a_language_may_have_thresholds_of_its_own(tmp_path: Path) -> None:
    def kept(lang: str, **own: float | None) -> bool:
        return not decided(prose(), lang, QualityParams(by_language={"en": own}), tmp_path).is_empty()

    assert kept("en") and not kept("en", gopher_min_words=10_000) and kept("nl", gopher_min_words=10_000)
    off = QualityParams(gopher_min_words=10_000, by_language={"en": {"gopher_min_words": None}})
    assert decided(prose(), "en", off, tmp_path).height == 1
    with pytest.raises(ValueError, match=r"de\.gopher_words is no rule; there are c4_curly_brackets"):
        QualityParams(by_language={"de": {"gopher_words": 5}})


def test_a_rule_that_is_off_can_be_on_for_a_language(tmp_path: Path) -> None:
    text = prose() + " function() { return; }"
    params = QualityParams(by_language={"en": {"c4_curly_brackets": 0}})
    assert decided(text, "en", params, tmp_path).is_empty()
    assert decided(text, "sco", params, tmp_path).height == 1
