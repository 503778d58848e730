"""Words before a finding that make it surer, by language.

Presidio's rule: where one of a recogniser's context words stands in one of the five words before a finding (stop
words not counted), its score rises by 0.35, to 0.4 at least. `LemmaContextAwareEnhancer` needs a spaCy pipeline over
the whole text for that; `words_before` reads the characters before the finding alone. Presidio's words are English for
what is found everywhere (its recognisers for one country bring that country's words); `WORDS` has those of other
languages.
"""

from __future__ import annotations

import re
from functools import lru_cache

SIMILARITY = 0.35  # Presidio's context_similarity_factor
LEAST = 0.4  # its min_score_with_context_similarity
PREFIX_WORDS = 5  # its context_prefix_count
REACH = 300  # characters; five words lie within, with the stop words between them
NEAR = 60  # characters in which a word of `WORDS` counts

WORD = re.compile(r"[^\W_]+|[$+<=>^`|~]|\n+")  # spaCy's tokens without its punctuation
UNSPACED_LANGUAGES = frozenset(("ja", "km", "ko", "lo", "my", "th", "wuu", "yue", "zh"))

# Entity -> language ("" = all) -> words, lower case; "*" at an end: also longer words that begin, or end, so.
WORDS: dict[str, dict[str, str]] = {
    "PHONE_NUMBER": {
        "": "cell dial dialing fax gsm hotline mob mobile mobil *phone* sms tel telefax* *telefon*",
        "ar": "اتصل* الهاتف* الجوال* الفاكس* تلفون* جوال* فاكس* موبايل* هاتف*",
        "bg": "мобилен* тел *телефон* факс*",
        "bn": "টেলিফোন* ফোন* মোবাইল*",
        "ca": "mòbil* telèfon* truca* truqueu*",
        "cs": "mobil* volejte*",
        "da": "mobil* ring tlf",
        "de": "anruf* anrufen durchwahl fon handy* mobil* ruf *rufnummer*",
        "el": "κιν κινητό* τηλ τηλέφων* φαξ καλέστε*",
        "es": "celular* llame llámame llámanos llámenos móvil* teléfono* tfno tlf",
        "fa": "تلفن* تماس* فکس* موبایل*",
        "fi": "faksi* matkapuhelin* puh puhelin* puhelimitse soita*",
        "fr": "appeler appelez portable tél téléphon*",
        "he": "טל טלפון* נייד* פקס* התקשר*",
        "hi": "कॉल* टेलीफ़ोन* टेलीफोन* दूरभाष* फ़ोन* फैक्स* फोन* मोबाइल*",
        "hr": "faks* mobitel* nazovite*",
        "hu": "hívjon* mobil*",
        "id": "faks* hp hubungi* ponsel* telepon* telp",
        "it": "cellulare* chiamare chiamate chiami chiamaci",
        "ja": "でんわ ファクス ファックス 携帯 連絡先 電話",
        "ko": "연락처 전화 팩스 핸드폰 휴대전화 휴대폰",
        "ms": "faks* hubungi*",
        "nl": "bel bellen mobiel* telefoon*",
        "no": "mobil* ring tlf",
        "pl": "faks* kom komórk* komórkow* zadzwoń*",
        "pt": "celular* ligue* telefone* telemóvel* telemóveis",
        "ro": "mobil* sunați*",
        "ru": "звоните* моб мобильн* позвоните* сотов* тел *телефон* факс*",
        "sk": "mobil* telefón* volajte*",
        "sl": "faks* mobilni* pokličite*",
        "sr": "mobilni* mobitel* tel мобилни* тел *телефон* факс*",
        "sv": "mobil* ring tfn",
        "th": "มือถือ แฟกซ์ โทร โทรศัพท์",
        "tr": "arayın* cep faks*",
        "uk": "дзвоніть* зателефонуйте* моб мобільн* тел *телефон* факс*",
        "ur": "فون* موبائل* ٹیلیفون* ٹیلی",
        "vi": "gọi thoại đt",
        "zh": "传真 傳真 手机 手機 热线 熱線 电话 電話 致电 致電",
    },
    "CREDIT_CARD": {
        "cs": "kart* kreditní*",
        "da": "kort* kreditkort*",
        "de": "karte* kartennummer* kreditkarte*",
        "es": "tarjeta* crédito*",
        "fi": "kortti* luottokort*",
        "fr": "carte* bancaire* crédit*",
        "it": "carta credito*",
        "ja": "カード クレジット",
        "ko": "신용카드 카드",
        "nl": "creditcard* kaart*",
        "pl": "kart* kredytow*",
        "pt": "cartão* crédito*",
        "ru": "карт* кредитн*",
        "sv": "kort* kreditkort*",
        "tr": "kart* kredi*",
        "uk": "картк* кредитн*",
        "zh": "信用卡 卡号 卡號",
    },
    "IBAN_CODE": {
        "": "iban",
        "de": "bank* konto* überweis*",
        "es": "banco* cuenta* transferencia*",
        "fr": "banque* compte* virement*",
        "it": "banca* bonifico* conto",
        "nl": "bank* rekening*",
        "pl": "bank* konto* przelew* rachun*",
        "pt": "banco* conta transferência*",
    },
    "US_SSN": {"es": "seguro social"},
    "IP_ADDRESS": {"de": "adresse*", "es": "dirección*", "fr": "adresse*", "it": "indirizzo*", "pt": "endereço*"},
}

# Presidio's words for phone numbers include "number", which stands before any number, and "call" and "cell", which it
# finds in "recall" and "cancelled". They raise the score as in Presidio, but a doubtful number needs one of these.
_CALLED = (
    r"(?:call|contact|reach|ring|text)(?:ed|ing|s)?\s+(?:\w+\s+){0,3}(?:at|on|back|free|now|toll|us|me|him|her|them)\W"
    r"|(?:call|messages?\s(?:to|from)|ring)\W{1,3}$"
    r"|(?:desk|direct|home|office|reception|work)\s?[:=]\W{0,3}$"
    r"|(?:my|your|his|her|our|their|contact|home|work|office|business|daytime|emergency)\s+numbers?\b(?!\s*of)"
)
_AFTER = re.compile(r"[^\w\n]{0,3}(?:cell|desk|fax|home|mobile|office|phone|tel|work)\b", re.IGNORECASE)
_RIGHT = r"(?![^\W\d_])"
_LEFT = r"(?:(?<![^\W\d_])|(?<=\\[nrt]))"  # the bound of a word; also where the text has a line's end as "\n"


def words_before(text: str, start: int) -> list[str]:
    """The last five words before a place, in lower case, without English stop words."""
    stop = _stop_words()
    words = (word.lower() for word in WORD.findall(text, max(0, start - REACH), start))
    return [word for word in words if word not in stop][-PREFIX_WORDS:]


def raised(score: float, context: tuple[str, ...], entity: str, text: str, start: int, language: str) -> float:
    """A finding's score with what stands before it: Presidio's words for it, or ours in the document's language."""
    if score >= 1 or not (context or entity in WORDS):
        return score
    before = words_before(text, start)
    if any(word in near for word in context for near in before) or _named(entity, text, start, language):
        return min(1.0, max(score + SIMILARITY, LEAST))
    return score


def phone_is_named(text: str, start: int, end: int, language: str) -> bool:
    """Whether words before [start, end), or one right behind it, say that this is a telephone number."""
    return bool(_phone_context(language).search(text, _near(text, start), start) or _AFTER.match(text, end))


def _named(entity: str, text: str, start: int, language: str) -> bool:
    return entity in WORDS and bool(_words(entity, language).search(text, _near(text, start), start))


def _near(text: str, start: int) -> int:
    """Where what stands near a place begins, in its own paragraph."""
    first = max(0, start - NEAR)
    paragraph = text.rfind("\n\n", first, start)
    return first if paragraph < 0 else paragraph + 2


@lru_cache(maxsize=1024)
def _words(entity: str, language: str) -> re.Pattern[str]:
    known = WORDS[entity]
    return re.compile(
        _pattern(known.get("", ""), "") + "|" + _pattern(known.get(language, ""), language), re.IGNORECASE
    )


@lru_cache(maxsize=256)
def _phone_context(language: str) -> re.Pattern[str]:
    own = _pattern(WORDS["PHONE_NUMBER"].get(language, ""), language)
    return re.compile(f"{_pattern(WORDS['PHONE_NUMBER'][''], '')}|{_LEFT}(?:{_CALLED})|{own}", re.IGNORECASE)


def _pattern(words: str, language: str) -> str:
    """An expression for words written as in `WORDS`; one that never matches for none."""
    if not words:
        return r"(?!)"
    if language in UNSPACED_LANGUAGES:
        return "|".join(map(re.escape, words.split()))
    return "|".join(
        ("" if word.startswith("*") else _LEFT) + re.escape(word.strip("*")) + ("" if word.endswith("*") else _RIGHT)
        for word in words.split()
    )


@lru_cache(maxsize=1)
def _stop_words() -> frozenset[str]:
    from spacy.lang.en.stop_words import STOP_WORDS

    return frozenset(STOP_WORDS)
