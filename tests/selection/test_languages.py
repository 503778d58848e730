"""Good text of any language passes the rules that good English passes, and wreckage does not."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from llmcore.quickstart import bundled
from llmcore.schema import document_id
from llmcore.selection.classifier import ClassifierParams, passages, scores, train
from llmcore.selection.quality import QualityParams, quality, without_lines
from llmcore.selection.signals import SignalsParams, signals
from llmcore.text.language import LanguageParams, language
from llmcore.text.languages import languages, stop_words, terminal_marks
from tests.local_files import LocalFiles, LocalRun
from tests.selection.declaration import declaration, declarations
from tests.text.test_clean import documents

LANGUAGES = sorted(declarations())
UNSPACED = ("ja", "km", "lo", "my", "th", "zh")


def measured(texts: list[str], code: str) -> pl.DataFrame:
    table = signals(documents(*texts).with_columns(lang=pl.lit(code)), SignalsParams()).outputs["signals"]
    assert isinstance(table, pl.DataFrame)
    return table


def through(texts: list[str], code: str, folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Kept and dropped by the rules, of what the language stage keeps when asked for this language."""
    shard = language(documents(*texts), LanguageParams(languages=(code,))).outputs["kept"]
    assert isinstance(shard, pl.DataFrame) and len(shard) == len(texts)
    table = signals(shard, SignalsParams()).outputs["signals"]
    assert isinstance(table, pl.DataFrame)
    outputs = quality(shard, QualityParams(), table, LocalFiles(folder)).outputs
    kept, dropped = outputs["kept"], outputs["dropped"]
    assert isinstance(kept, pl.DataFrame) and isinstance(dropped, pl.DataFrame)
    return kept, dropped


@pytest.mark.parametrize("code", LANGUAGES)
def test_good_documents_survive(code: str, tmp_path: Path) -> None:
    paragraphs = declarations()[code]
    thirds = [paragraphs[at : at + 31] for at in range(0, 90, 30)]
    texts = [declaration(code), *("\n".join(third) for third in thirds), " ".join(paragraphs[14:30])]
    kept, dropped = through(texts, code, tmp_path)
    assert dropped["reason"].to_list() == [] and kept["text"].to_list() == texts


@pytest.mark.parametrize("code", LANGUAGES)
def test_wreckage_does_not(code: str, tmp_path: Path) -> None:
    paragraphs = [paragraph for paragraph in declarations()[code] if len(paragraph) > 20]
    repeated = "\n".join(paragraphs[:3] * 12)
    menu = "\n".join(paragraph[:6] for paragraph in paragraphs)
    symbols = declaration(code) + " #" * 2000
    _, dropped = through([repeated, symbols], code, tmp_path)
    assert len(dropped) == 2
    assert measured([menu], code)["short_lines"][0] == 1


@pytest.mark.parametrize("code", UNSPACED)
def test_a_text_without_spaces_has_as_many_words_as_its_translation(code: str) -> None:
    english, own = measured([declaration("en")], "en"), measured([declaration(code)], code)
    assert own["unit"][0] == "letters" and own["mean_word_length"][0] is None
    assert own["words"][0] == pytest.approx(english["words"][0], rel=0.05)
    assert own["newlines_per_word"][0] == pytest.approx(english["newlines_per_word"][0], rel=0.05)
    assert own["alpha_words"][0] > 0.95 and own["longest_word"][0] < 10


@pytest.mark.parametrize("code", LANGUAGES)
def test_sentences_are_counted_in_every_script(code: str) -> None:
    in_one_line = " ".join(paragraph for paragraph in declarations()[code] if len(paragraph) > 20)
    assert measured([in_one_line], code)["sentences"][0] > 30


def test_a_line_counts_as_a_sentence() -> None:
    assert measured(["One. Two! A third", "a\nb\n\nc", "A heading\n\nIt ends. (So.)", ""], "en")[
        "sentences"
    ].to_list() == [
        3,
        3,
        3,
        0,
    ]


def test_every_mark_that_unicode_knows_ends_a_sentence() -> None:
    every = pl.Series([chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000])
    assert set(every.filter(every.str.contains(r"^\p{Sentence_Terminal}$"))) <= set(terminal_marks())
    assert set("।॥؟۔።։။។。！？") <= set(terminal_marks())


@pytest.mark.parametrize("code", [code for code in LANGUAGES if stop_words(code)])
def test_any_fifty_words_hold_stop_words(code: str) -> None:
    words = " ".join(paragraph for paragraph in declarations()[code] if len(paragraph) > 20).split()
    size = 10 if code in UNSPACED else 50  # what a space ends is no word there
    held = measured([" ".join(words[at : at + size]) for at in range(0, len(words) - size, size)], code)["stop_words"]
    assert (held >= 2).mean() > 0.95


def test_stop_words_are_the_languages_own() -> None:
    german = "Der Server liest die Datei beim Start, und er schreibt in das Verzeichnis. " * 3
    assert measured([german], "de")["stop_words"][0] >= 2 > measured([german], "en")["stop_words"][0]
    assert measured([german], "my")["stop_words"][0] is None and stop_words("xx") == ()
    assert stop_words("en") == ("the", "be", "to", "of", "and", "that", "have", "with")
    assert all(len(known.stop_words) >= 8 for known in languages().values() if known.stop_words)


def test_a_list_of_nouns_has_no_stop_words_in_any_language(tmp_path: Path) -> None:
    nouns = "Schraube Mutter Bolzen Nagel Zange Hammer Säge Feile Bohrer Meißel Hobel Winkel Zirkel Lineal Pinsel. " * 1
    shard = documents(nouns * 4).with_columns(lang=pl.lit("de"))
    table = signals(shard, SignalsParams()).outputs["signals"]
    dropped = quality(shard, QualityParams(), table, LocalFiles(tmp_path)).outputs["dropped"]
    assert "gopher_stop_words" in dropped["detail"][0]


def test_a_paragraph_without_spaces_is_no_long_word() -> None:
    paragraph = "".join(declaration("zh").split())
    assert len(paragraph) > 2000
    texts = pl.Series([f"{paragraph}\n{paragraph}", f"{paragraph}\n{'x' * 1001}"])
    assert without_lines(texts, ("long_word",)).to_list() == [texts[0], paragraph]


def test_order_and_neighbours_of_other_languages_do_not_matter() -> None:
    texts = [declaration(code)[:3000] for code in LANGUAGES]
    shard = documents(*texts).with_columns(lang=pl.Series(LANGUAGES))
    together = signals(shard, SignalsParams()).outputs["signals"]
    assert isinstance(together, pl.DataFrame)
    assert together["id"].equals(shard["id"])
    backwards = signals(shard.reverse(), SignalsParams()).outputs["signals"]
    assert isinstance(backwards, pl.DataFrame) and backwards.reverse().equals(together)
    for row in range(len(LANGUAGES)):
        alone = signals(shard[row], SignalsParams()).outputs["signals"]
        assert isinstance(alone, pl.DataFrame) and alone.equals(together[row])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalRun, dict[str, object]]:
    """Classifiers learnt from five addresses in English, three quarters of the Japanese declaration, some Hindi."""
    folder = tmp_path_factory.mktemp("classifier")
    addresses = pl.read_parquet(bundled("sotu.parquet"))["text"].head(5).to_list()
    japanese = ["\n".join(declarations()["ja"][at : at + 25]) for at in (0, 25, 50)]
    texts = [*addresses, *japanese, declaration("hi")[:2000]]
    codes = ["en"] * len(addresses) + ["ja"] * 3 + ["hi"]
    shard = documents(*texts).with_columns(
        lang=pl.Series(codes), id=pl.Series([document_id("test", text) for text in texts])
    )
    table = signals(shard, SignalsParams()).outputs["signals"]
    assert isinstance(table, pl.DataFrame)
    for name, written in (("documents/kept", shard), ("signals/signals", table)):
        (folder / name).mkdir(parents=True)
        written.write_parquet(folder / name / "g000-test-00000.parquet")
    run = LocalRun(folder / "run")
    inputs = {role: LocalFiles(folder / role) for role in ("documents", "signals")}
    params = ClassifierParams(passage_words=20, max_passages=1000)
    return run, dict(train(inputs, params, run))


def test_a_classifier_a_language_and_none_where_there_is_no_ground(trained: tuple[LocalRun, dict[str, object]]) -> None:
    run, metrics = trained
    assert sorted(path.name for path in run.out.iterdir()) == ["en.bin", "ja.bin"]
    languages_of = metrics["languages"]
    assert isinstance(languages_of, dict) and metrics["trained"] == 2
    assert {code: one["trained"] for code, one in languages_of.items()} == {"en": 1, "ja": 1, "hi": 0}


def test_each_language_is_scored_by_its_own(trained: tuple[LocalRun, dict[str, object]]) -> None:
    run, _ = trained
    models = {path.stem: path for path in run.out.iterdir()}
    unseen = "\n".join(declarations()["ja"][75:])
    wreck = "\n".join([unseen[40:46]] * 60)
    texts = [unseen, wreck, declaration("hi"), declaration("zh"), "We the people of these states have met today."]
    found = scores(pl.Series(texts), pl.Series(["ja", "ja", "hi", "zh", None]), models).to_list()
    assert found[0] > 0.5 > found[1] and found[2:4] == [None, None] and found[4] is not None


def test_passages_of_unspaced_text_say_as_much_as_those_of_english() -> None:
    english, chinese = (passages(declaration(code), 150, code) for code in ("en", "zh"))
    assert len(chinese) == pytest.approx(len(english), abs=1)
    whole = "".join(declaration("zh").split())
    assert whole.startswith("".join("".join(chinese).split()))
