"""In which language a text is written, word by word: by script, and by common words for English and Spanish.

Letters decide the script: Chinese and Japanese, Cyrillic, Arabic and so on are told apart by single words. The Latin
script is not so easily divided: a word is English or Spanish when it is in a list of common ones or has the spelling of
one, and says nothing otherwise (`Madrid`, `total`). Other languages in Latin letters are told by their most common
words as "other". Scripts are told and not languages: Russian and Ukrainian are both "cyrillic". Time is linear.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

_COMMAND = re.compile(r"\\[A-Za-z]+")
_SPAN = re.compile(r"```|`|\$\$|\$|\\\(|\\\)|\\\[|\\\]")
_CLOSES = {"```": "```", "`": "`", "$$": "$$", "$": "$", r"\(": r"\)", r"\[": r"\]"}
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]{0,20}>")
_LINK = re.compile(r"https?://\S+")
_NAME = re.compile(r"[A-Za-z0-9_]+\(?")
MAX_SPAN = 2000  # characters; a `$` whose partner is farther away is a dollar, not a formula

UNSPACED = frozenset({"han", "kana", "thai"})  # each character counts as a word
_SCRIPTS = {  # Unicode blocks, as in a character class
    "latin": "A-Za-zªºÀ-ÖØ-öø-ɏ\u0300-\u036f\u1e00-\u1effＡ-Ｚａ-ｚ",
    "greek": "Ͱ-Ͽ\u1f00-\u1fff",
    "cyrillic": "Ѐ-ԯ",
    "armenian": "\u0531-\u058f",
    "hebrew": "\u0590-\u05ff",
    "arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "devanagari": "\u0900-\u097f",
    "bengali": "\u0980-\u09ff",
    "tamil": "\u0b80-\u0bff",
    "thai": "\u0e00-\u0e7f",
    "georgian": "\u10a0-\u10ff",
    "hangul": "\u1100-\u11ff\uac00-\ud7af",
    "kana": "\u3040-\u30ff\u31f0-\u31ff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
}
_OF_SCRIPT = {script: re.compile(f"[{characters}]") for script, characters in _SCRIPTS.items()}
LANGUAGE_SCRIPTS = {  # the scripts that a language is written in
    "en": frozenset({"latin"}), "es": frozenset({"latin"}), "zh": frozenset({"han"}), "ja": frozenset({"han", "kana"}),
    "ko": frozenset({"hangul", "han"}), "ru": frozenset({"cyrillic"}), "uk": frozenset({"cyrillic"}),
    "bg": frozenset({"cyrillic"}), "ar": frozenset({"arabic"}), "fa": frozenset({"arabic"}),
    "ur": frozenset({"arabic"}),
    "he": frozenset({"hebrew"}), "el": frozenset({"greek"}), "hi": frozenset({"devanagari"}), "th": frozenset({"thai"}),
    "bn": frozenset({"bengali"}), "ta": frozenset({"tamil"}), "ka": frozenset({"georgian"}),
    "hy": frozenset({"armenian"}),
}  # fmt: skip
_SCRIPT_LANGUAGE = {
    "han": "zh", "kana": "ja", "hangul": "ko", "cyrillic": "ru", "arabic": "ar", "hebrew": "he", "greek": "el",
    "devanagari": "hi", "thai": "th", "bengali": "bn", "tamil": "ta", "georgian": "ka", "armenian": "hy",
}  # fmt: skip


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ENGLISH = _listed(
    """the of and to in is it that this for with as was are be on by at from or an not we you he she they i have has had
    but what which when where who how all each if then so because there their his her its our your my us them will would
    can could should may might must do does did been being were than more most some any only one two three four five six
    seven eight nine ten first second third next let lets now also into out up down over under after before about
    between both same other another many much few less every step steps therefore hence thus since given find need get
    gets got make makes take takes give gives see means need want know number numbers equal equals equation answer sum
    add adding added subtract multiply multiplied divide divided times plus minus total value values solve solution
    check correct wrong right wait think problem question how many left start begin end final result work works
    use using used
    these those here just again still very good yes let's don't it's that's we'll i'll can't isn't so-called per through
    apples each day days week hour hours minute minutes year years box boxes first costs cost price buys sold sells
    half twice double rate speed area length width side sides square circle triangle angle point line no me sea"""
)
_SPANISH = _listed(
    """el la los las de del que y en un una unos unas es son por para con se lo le les su sus al como más pero sus no sí
    si ya o este esta esto estos estas ese esa eso esos esas aquel muy ser está están fue era había hay han ha he hemos
    tiene tienen tenemos tengo tener hacer hace hacemos donde cuando cuanto cuántos cuántas cuánto cuánta qué cuál cómo
    quién porque pues entonces también así sobre entre hasta desde sin después antes ahora luego todo toda todos todas
    cada otro otra otros otras mismo misma uno dos tres cuatro cinco seis siete ocho nueve diez primero primera segundo
    segunda tercero siguiente nos me te yo él ella ellos ellas nosotros usted ustedes mi tu puede pueden podemos debe
    debemos vamos va voy sea sería estamos estaba paso pasos número números igual ecuación respuesta suma sumar sumamos
    resta restar restamos multiplicar multiplicamos dividir dividimos veces más menos valor valores resolver solución
    comprobar correcto correcta incorrecto espera pensar problema pregunta queda quedan resultado final obtenemos
    encontrar calcular calculamos necesitamos dado sabemos luego día días semana hora horas año años manzanas caja cajas
    mitad doble lado área largo ancho cuadrado círculo triángulo ángulo punto línea bien por tanto según solo sólo algo
    nada aquí ahí allí vez cual cuales cuyo qué esto es decir hola gracias"""
)
_OTHER = _listed(
    """der die das und ist nicht ein eine einen dem den mit auf für von zu sich auch wir ich sie werden wird sind haben
    le les des est et une dans pour pas que qui sur avec nous vous sont cette donc mais être ont aux ou où
    il lo gli che di è non per una con sono del della nel questo quindi anche perché
    o os as um uma não é do da dos das em para com por mais são isso então também você
    het een van niet dat zijn wij voor maar ook"""
)
_ENGLISH_SPELLING = re.compile(
    r".*(?:ing|ght|tion|sh|th|ck|wh|ough|ness|ly|oo|ee|ay|ow|ew|'s|n't|'re|'ve|'ll)(?![^\W_])|wh|th|kn|wr"
)
_SPANISH_SPELLING = re.compile(
    r".*[ñáíóú]|.*(?:ción|ciones|amos|emos|imos|mente|dad|ando|iendo|ados|adas|illo|illa|ico|ica)(?![^\W_])"
)
_WEIGHT_OF_LISTS = 2  # a common word says more than a spelling does


def count_words(text: str) -> Counter[tuple[str, str]]:
    r"""How often each (word, script) stands in the prose of a text, in small letters.

    Code, formulas, numbers, tags, links and names such as `f_1` or `f(` are left out. In scripts without spaces each
    character is a word, as nothing else divides them.

    >>> dict(count_words(r"Sea $x$ el valor \alpha, 好的 `code` 12 x_1"))
    {('sea', 'latin'): 1, ('el', 'latin'): 1, ('valor', 'latin'): 1, ('好', 'han'): 1, ('的', 'han'): 1}
    """
    counts: Counter[tuple[str, str]] = Counter()
    for word, count in Counter(_WORD.findall(_prose(text))).items():
        counts[word.lower().replace("’", "'"), script_of(word[0])] += count
    return counts


def word_language(word: str, script: str) -> str:
    """ "en", "es" or "other" for a Latin word, the script's language for another; "" where the word alone says nothing.

    >>> word_language("because", "latin"), word_language("entonces", "latin"), word_language("madrid", "latin")
    ('en', 'es', '')
    """
    return _latin_language(word) if script == "latin" else _SCRIPT_LANGUAGE.get(script, "")


def guess_language(text: str) -> str:
    """The language of most words of a text: "en", "es", a script's most common language, "other", or "" if none tells.

    >>> guess_language("How many apples are left?"), guess_language("¿Cuántas manzanas quedan?"), guess_language("3+5")
    ('en', 'es', '')
    >>> guess_language("还剩多少苹果？"), guess_language("これはりんごです。"), guess_language("Сколько яблок?")
    ('zh', 'ja', 'ru')
    """
    counts: Counter[str] = Counter()
    for (word, script), count in count_words(text).items():
        language = word_language(word, script)
        counts[language] += count * (_WEIGHT_OF_LISTS if _is_listed(word) else 1)
    del counts[""]
    if counts["ja"] and counts["zh"]:  # Japanese is written in both scripts
        counts["ja"] += counts.pop("zh")
    return max(counts, key=lambda language: (counts[language], language)) if counts.total() else ""


def language_share(text: str, language: str) -> float | None:
    """The share of a text's words that are in `language`, or `None` when no word tells.

    For English and Spanish, a Latin word that may be either counts for neither side; a text of nothing but such words
    counts as the language asked for. For other languages only the script is judged, so that Latin words are foreign in
    Chinese, but German is not told from French. A single Latin letter is a variable, unless it is a word such as `a`
    or `y`. Raises `ValueError` for what is no code of a language.

    >>> language_share("first we add and entonces", "en"), language_share("entonces sumamos", "es")
    (0.8, 1.0)
    >>> language_share("我们 now 加", "zh"), language_share("12 + 3", "en")
    (0.75, None)
    """
    scripts = scripts_of(language)
    ours = theirs = silent = 0
    for (word, script), count in count_words(text).items():
        if script == "latin" and len(word) == 1 and word_language(word, script) != language:
            continue  # a variable
        found = word_language(word, script) if script == "latin" and language in ("en", "es") else language
        if script not in scripts or (found and found != language):
            theirs += count
        elif found:
            ours += count
        else:
            silent += count
    if ours + theirs:
        return ours / (ours + theirs)
    return 1.0 if silent else None


def scripts_of(language: str) -> frozenset[str]:
    """The scripts of a language by its ISO 639-1 code; a code of two letters that is not known is taken as Latin.

    Raises `ValueError` for what is no such code.
    """
    if not re.fullmatch(r"[a-z]{2}", language):
        raise ValueError(f'a language is a code of two small letters such as "en", not {language!r}')
    return LANGUAGE_SCRIPTS.get(language, frozenset({"latin"}))


@lru_cache(maxsize=65536)
def script_of(character: str) -> str:
    """The script of a letter by its Unicode block, or "unknown".

    >>> script_of("a"), script_of("ж"), script_of("好"), script_of("ひ"), script_of("ᚠ")
    ('latin', 'cyrillic', 'han', 'kana', 'unknown')
    """
    return next((script for script, pattern in _OF_SCRIPT.items() if pattern.match(character)), "unknown")


def _word_pattern() -> re.Pattern[str]:
    latin = _SCRIPTS["latin"]
    spaced = [f"[{block}]+" for script, block in _SCRIPTS.items() if script != "latin" and script not in UNSPACED]
    unspaced = "".join(_SCRIPTS[script] for script in sorted(UNSPACED))
    return re.compile(rf"(?![\W\d_])(?:[{latin}]+(?:['’][{latin}]+)*|[{unspaced}]|{'|'.join(spaced)}|[^\W\d_])")


_WORD = _word_pattern()


def _prose(text: str) -> str:
    """The text without code, formulas, commands, links and tags, in one pass."""
    pieces: list[str] = []
    position = 0
    waiting: tuple[str, int, int] | None = None  # what would close the span, where it began, where its content began
    for match in _SPAN.finditer(text):
        token = match.group()
        if waiting and match.start() - waiting[1] > MAX_SPAN and waiting[0] != "```":
            waiting = None  # too far away: the opening was none
        if waiting is None:
            if token in _CLOSES:
                waiting = (_CLOSES[token], match.start(), match.end())
        elif token == waiting[0]:
            pieces.append(text[position : waiting[1]])
            position, waiting = match.end(), None
    pieces.append(text[position:] if waiting is None or waiting[0] != "```" else text[position : waiting[1]])
    prose = " ".join(pieces)
    for pattern in (_TAG, _COMMAND, _LINK):
        prose = pattern.sub(" ", prose)
    if "_" in prose or "(" in prose:
        prose = _NAME.sub(lambda name: " " if "_" in name.group() or name.group()[-1] == "(" else name.group(), prose)
    return unicodedata.normalize("NFC", prose)


def _is_listed(word: str) -> bool:
    return word in _ENGLISH or word in _SPANISH or word in _OTHER


@lru_cache(maxsize=65536)
def _latin_language(word: str) -> str:
    if len(word) > 40:
        return ""
    english, spanish = word in _ENGLISH, word in _SPANISH
    if english or spanish:
        return "" if english and spanish else "en" if english else "es"
    if word in _OTHER:
        return "other"
    english, spanish = _ENGLISH_SPELLING.match(word) is not None, _SPANISH_SPELLING.match(word) is not None
    if english == spanish:
        return ""
    return "en" if english else "es"
