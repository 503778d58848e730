"""Language: labels, thresholds, and the odd inputs."""

from __future__ import annotations

import hashlib
import json
from importlib import resources

import polars as pl

from llmcore.schema import DOCUMENT_SCHEMA
from llmcore.text.language import MODEL, LanguageParams, identify, language
from tests.text.test_clean import documents

ENGLISH = "The module provides authentication and authorization for the server, and it is loaded by default."
GERMAN = "Das Modul stellt Authentifizierung und Autorisierung für den Server bereit und ist voreingestellt geladen."
CHINESE = "该模块为服务器提供身份验证和授权，并且默认加载。您可以在配置文件中更改此设置。"
TURKISH = "Bu modül sunucu için kimlik doğrulama ve yetkilendirme sağlar ve öntanımlı olarak yüklenir."


def test_labels_real_sentences() -> None:
    labels, scores = identify(pl.Series([ENGLISH, GERMAN, CHINESE, TURKISH]))
    assert labels.to_list() == ["en", "de", "zh", "tr"]
    assert scores.dtype == pl.Float32 and scores.min() > 0.8


def test_keeps_configured_languages_and_says_why_not() -> None:
    shard = documents(ENGLISH, GERMAN, CHINESE)
    result = language(shard, LanguageParams(languages=("en", "zh")))
    kept, dropped = result.outputs["kept"], result.outputs["dropped"]
    assert kept["lang"].to_list() == ["en", "zh"]
    assert kept.schema == DOCUMENT_SCHEMA
    assert dropped["reason"].to_list() == ["not_kept_language"]
    detail = json.loads(dropped["detail"][0])
    assert detail["lang"] == "de" and detail["threshold"] == 0.65 and detail["value"] > 0.9
    assert len(kept) + len(dropped) == len(shard)


def test_an_unsure_label_is_a_low_score() -> None:
    result = language(documents("ok 1 2 3 http"), LanguageParams(min_score=0.999, languages=()))
    assert result.outputs["dropped"]["reason"].to_list() == ["low_score"]
    assert json.loads(result.outputs["dropped"]["detail"][0])["threshold"] == 0.999


def test_no_languages_configured_keeps_all_that_are_sure() -> None:
    result = language(documents(ENGLISH, GERMAN, TURKISH), LanguageParams(languages=()))
    assert result.outputs["kept"]["lang"].to_list() == ["en", "de", "tr"]


def test_only_the_beginning_is_looked_at() -> None:
    labels, scores = identify(pl.Series([ENGLISH * 12, ENGLISH * 12 + GERMAN * 1000]))
    assert labels.to_list() == ["en", "en"] and scores[0] == scores[1]


CODE = "\n".join(f"0x{n:04x} mov r{n % 8}, [sp+{n}]; jnz lbl_{n}; // qword ptr" for n in range(40))


def test_a_page_that_begins_with_code_is_asked_over_more_text() -> None:
    assert len(CODE) > 1000
    page, code = CODE + "\n" + f"{ENGLISH}\n" * 60, CODE * 20
    assert identify(pl.Series([page]))[1][0] < 0.65
    result = language(documents(page, code, ENGLISH), LanguageParams())
    assert result.outputs["kept"]["lang"].to_list() == ["en", "en"]
    assert result.outputs["kept"]["lang_score"].min() >= 0.65
    assert result.metrics["settled_by_more_text"] == 1
    alone = language(documents(page), LanguageParams()).outputs["kept"]
    assert alone["lang_score"][0] == result.outputs["kept"]["lang_score"][0]


def test_how_much_more_is_looked_at_is_configured() -> None:
    page = CODE + "\n" + f"{ENGLISH}\n" * 60
    assert language(documents(page), LanguageParams(unsure_characters=1000)).outputs["kept"].is_empty()


def test_blank_texts_and_line_feeds_are_no_trouble() -> None:
    texts = ["", " \n ", "The first line\nand the second line of the text\n", "\x00 is a NUL"]
    labels, scores = identify(pl.Series(texts))
    assert labels.to_list()[:3] == [None, None, "en"] and scores.to_list()[:2] == [0, 0]
    dropped = language(documents(" \n "), LanguageParams()).outputs["dropped"]
    assert dropped["reason"].to_list() == ["not_kept_language"]


def test_an_empty_shard() -> None:
    result = language(documents(), LanguageParams())
    assert len(result.outputs["kept"]) == len(result.outputs["dropped"]) == 0
    assert result.outputs["kept"].schema == DOCUMENT_SCHEMA


def test_order_does_not_matter() -> None:
    shard = documents(ENGLISH, GERMAN, CHINESE, TURKISH, "mixed und gemischt")
    forwards = language(shard, LanguageParams()).outputs
    backwards = language(shard.reverse(), LanguageParams()).outputs
    assert forwards["kept"].equals(backwards["kept"].reverse())
    assert forwards["dropped"].equals(backwards["dropped"].reverse())


def test_the_model_is_the_one_its_notice_names() -> None:
    notice = (resources.files("llmcore") / "text" / "lid.176.NOTICE").read_text()
    assert hashlib.sha256(MODEL.read_bytes()).hexdigest() in notice and "CC-BY-SA-3.0" in notice
