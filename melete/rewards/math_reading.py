r"""Reading the form of a mathematical answer: an exact number, words, a tuple or set of such, or a formula.

Nothing is evaluated here, every pattern takes linear time, and numbers are `Fraction`s, never floats. A formula is left
to `mathematics`, which asks a computer algebra system in a process of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from melete.text.final_answer import unwrapped

MAX_CHARACTERS = 1000  # of a gold answer or an answer; nobody's final answer is longer
MAX_NESTING = 30  # brackets in brackets: each costs the parser of formulas a stack of frames
MAX_POWER = 10_000  # a written exponent or factorial beyond this is refused before anything computes it

_CHARACTERS = str.maketrans(
    {
        **{ord("0") + 0xFEE0 + digit: str(digit) for digit in range(10)},  # full-width digits; no other script's
        "−": "-", "–": "-", "＋": "+", "－": "-", "＝": "=", "，": ",", "（": "(", "）": ")", "．": ".", "％": "%",
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "π": r"\pi ", "∞": r"\infty ",
        "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ",
        "∈": r"\in ", "°": r"^\circ ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}", "\N{NO-BREAK SPACE}": " ", "\N{NARROW NO-BREAK SPACE}": " ", "’": "'",
    }
)  # fmt: skip
_REWRITES = (
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right|displaystyle|limits)(?![a-z])"), ""),
    (re.compile(r",\\!|\{,\}|(?<=\d)\\[,!](?=\d{3})"), ","),
    (re.compile(r"(?<!\\)\\[,;:! ]|~|\s+"), " "),
    (re.compile(r"(?<!\\)\\(%|#|&)"), r"\1"),
    (re.compile(r"\\(?:lbrace|{)\s*"), r"\\{"),
    (re.compile(r"\s*\\(?:rbrace|})"), r"\\}"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\s*(-?\d*\.\d+|-\d+|\d\d+)"), r"^{\1}"),  # x^10 outside of LaTeX is a power of ten
    (re.compile(r"(?<![\\A-Za-z])(pi|infty|theta|alpha|beta|sin|cos|tan|log|ln)(?![a-z])"), r"\\\1 "),
    (re.compile(r"(?<![\\A-Za-z])infinity(?![a-z])"), r"\\infty "),
)


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_INT = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_PLAIN = re.compile(rf"[+-]?{_INT}", re.ASCII)
_ARG = r"(?:\s*\{\s*([+-]?\d+)\s*\}|\s*(\d))"
_FRACTION = re.compile(rf"(?:(\d+)\s*)?\\frac{_ARG}{_ARG}", re.ASCII)
_SLASH = re.compile(rf"(?:(\d+)\s+)?({_INT})\s*/\s*({_INT})(?![\d.])", re.ASCII)
_DECIMAL = re.compile(
    rf"({_INT})?(?:\.(\d*)(?:\\overline\s*\{{(\d+)\}})?)?(?:[eE]([+-]?\d{{1,3}})(?![\dA-Za-z]))?", re.ASCII
)
_TEXT = re.compile(r"\\(?:text|textrm|textit|textbf|mathrm|mathbf|mathit|mbox|rm|operatorname)\s*\{([^{}]*)\}")
_NAME = re.compile(r"((?:[A-Za-z]|\\(?:alpha|beta|theta|lambda|mu|phi))(?:_\{?\w\}?)?(?:\(\s*[A-Za-z]\s*\))?)\s*=(?!=)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' .-]*")
_SHORT_WORDS = _listed("yes no odd up nan inf one two six ten all any mon tue wed thu fri sat sun")
_NOT_WORDS = _listed("sqrt frac sinh cosh tanh gamma delta lambda sigma omega arcsin arccos arctan")
_MULTIPLIERS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNIT = re.compile(r"[A-Za-z]+(?:\s*\^\s*\{?-?\d\}?)?(?:(?:\s*[/*.]\s*|\s+)[A-Za-z]+(?:\s*\^\s*\{?-?\d\}?)?)*\.?")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?")
_NOT_UNITS = _listed("or and to mod sqrt exp sin cos tan log factorial squared cubed over times plus minus")
_UNITS = {  # short names that need no space before them, and the names that mean them
    "mm": ("millimeter", "millimetre"), "cm": ("centimeter", "centimetre"), "m": ("meter", "metre"),
    "km": ("kilometer", "kilometre"), "in": ("inch", "inche"), "ft": ("foot", "feet"), "mi": ("mile",),
    "g": ("gram",), "kg": ("kilogram",), "l": ("liter", "litre"), "ml": ("milliliter", "millilitre"),
    "s": ("second", "sec"), "min": ("minute",), "h": ("hour", "hr"), "mph": ("mile per hour", "mile/hour"),
    "dollar": ("$", "usd"), "cent": ("c",), "degree": ("deg",), "": ("unit", "unit^2", "unit^3"),
}  # fmt: skip
_UNIT_NAMES = {alias: unit for unit, aliases in _UNITS.items() for alias in (unit, *aliases)}
_POWER = re.compile(r"\^\s*[{(]*\s*-?(\d+)(?:\s*\^\s*[{(]*\s*(\d+))?", re.ASCII)
_NO_FORMULA = re.compile(r"(?<![_^\d])\d+\s+\d|\d\s*_|__|@|\"", re.ASCII)
_WITH_DECIMALS = re.compile(r"(?<![\d.])(\d*)\.(\d+)", re.ASCII)
_BINOMIAL = re.compile(r"\\[dt]?binom\s*\{\s*\d{5}|\\choose.*\d{5}|\d{5}.*\\choose", re.ASCII)
_FACTORIAL = re.compile(r"(\d+)\s*[)}]*\s*!\s*(!*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number as written: whether a fraction, whether followed by a per cent sign, and its unit or base."""

    value: Fraction
    unit: str = ""
    is_percent: bool = False
    is_fraction: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """Words or a single letter, without case."""

    text: str


@dataclass(frozen=True, slots=True)
class Collection:
    """Items between commas; `brackets` is "()", "[]", "(]", "[)", "{}" for a set or "" for a bare list."""

    brackets: str
    items: tuple[Reading, ...]


@dataclass(frozen=True, slots=True)
class Formula:
    """Anything else that is balanced and of modest size."""

    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer: the normalised text, the name before `=` if there is one (`y` of `y=2x+1`), and what it says."""

    text: str
    name: str
    body: Number | Words | Collection | Formula

    @property
    def is_equation(self) -> bool:
        return bool(self.name) or (isinstance(self.body, Formula) and has_equals(self.text))


@lru_cache(maxsize=4096)
def read(text: str) -> Reading | None:
    r"""The form of an answer, or `None` for what is none: empty, too long, unbalanced, of unknown characters, too big.

    >>> read(r"\frac{1}{2}").body
    Number(value=Fraction(1, 2), unit='', is_percent=False, is_fraction=True)
    >>> read(r"1,000\text{ cm}").body.value, read("y = 2x+1").name, read("(1, 2)").body.brackets, read("((7")
    (Fraction(1000, 1), 'y', '()', None)
    """
    if len(text) > MAX_CHARACTERS:
        return None
    if _PLAIN.fullmatch(text):  # most answers, and a hundred times as fast
        return Reading(text, "", Number(Fraction(int(text.replace(",", "")))))
    return _read_normal(normalised(text), 0)


def normalised(text: str) -> str:
    r"""One spelling of what is written in several: `\dfrac` and `\frac`, spacing, `**` and `^`, Unicode signs."""
    core = unwrapped(text.translate(_CHARACTERS))
    for pattern, replacement in _REWRITES:
        core = pattern.sub(replacement, core)
    return unwrapped(core)


def split_equals(text: str) -> list[str]:
    """The parts of a chain of equations: `2+3=5` has two.

    >>> split_equals("2+3=5"), split_equals("x<=5")
    (['2+3', '5'], ['x<=5'])
    """
    return re.split(r"(?<![<>!=:])=(?![=<>])", text)


def has_equals(text: str) -> bool:
    """Whether an equals sign is there, which is not part of another sign."""
    return len(split_equals(text)) > 1


def _read_normal(text: str, depth: int) -> Reading | None:
    if not text or depth > 3 or not text.isascii() or not text.isprintable():
        return None
    name = _NAME.match(text)
    if name and not has_equals(text[name.end() :]) and len(split_top(text)) == 1:
        body = _body(text[name.end() :].strip(), depth)
        return Reading(text, re.sub(r"[\s{}]", "", name.group(1)), body) if body else None
    body = _body(text, depth)
    return Reading(text, "", body) if body else None


def _body(text: str, depth: int) -> Number | Words | Collection | Formula | None:
    number = read_number(text)
    if number is not None:
        return number
    parts = split_top(text)
    words = _read_words(text) if is_balanced(text) else None
    if words is not None or not is_balanced(text):
        return words
    inner = parts[0] if len(parts) == 1 else ""
    brackets = _brackets(text)
    if brackets and is_balanced(
        text[len(brackets[0]) : -len(brackets[1])],
    ):
        inner = text[len(brackets[0]) : -len(brackets[1])].strip()
        parts, kind = split_top(inner), (brackets[0] + brackets[1]).replace("\\", "")
        if len(parts) == 1 and kind == "()":  # parentheses around one thing
            return _body(unwrapped(inner), depth + 1) if depth < 3 else None
        if len(parts) > 1 or kind == "{}":
            return _collection(kind, parts, depth)
    elif len(parts) > 1 and "matrix" not in text:
        return _collection("", parts, depth)
    return _formula(text)


def _collection(brackets: str, parts: list[str], depth: int) -> Collection | Formula | None:
    if any(part.strip(" .") in (r"\ldots", r"\dots", r"\cdots", "") for part in parts) or "|" in "".join(parts):
        return _formula(",".join(parts) if not brackets else rf"\{{{','.join(parts)}\}}")
    items = [_read_normal(unwrapped(part), depth + 1) for part in parts]
    return Collection(brackets, tuple(item for item in items if item)) if all(items) else None


def _formula(text: str) -> Formula | None:
    if _NO_FORMULA.search(text) or _is_huge(text):  # "1 2" is no number, and 1+2 to the parser
        return None
    return Formula(_WITH_DECIMALS.sub(_exact, text))


def _exact(decimal: re.Match[str]) -> str:
    """A decimal inside a formula as a fraction, so that nothing is ever rounded."""
    whole, decimals = decimal.groups()
    return rf"(\frac{{{int(whole + decimals)}}}{{{10 ** len(decimals)}}})"


def _is_huge(text: str) -> bool:
    """Whether a written power or factorial is beyond `MAX_POWER`, or a tower of powers, or a factorial of one."""
    for exponent, second in _POWER.findall(text):
        if len(exponent) > 5 or int(exponent) > MAX_POWER or len(second) > 2:
            return True
        if second and int(exponent) ** int(second) > MAX_POWER:
            return True
    if _BINOMIAL.search(text) or (re.search(r"[)}]\s*!", text) and re.search(r"\^|\d{4}", text, re.ASCII)):
        return True
    return any(len(n) > 5 or int(n) > MAX_POWER or (more and int(n) > 5) for n, more in _FACTORIAL.findall(text))


def read_number(text: str) -> Number | None:
    r"""A plain number with its unit: integer, decimal, fraction, mixed number, per cent, recurring decimal, base.

    >>> read_number(r"-1,250.5"), read_number(r"0.\overline{3}").value, read_number("1 1/2").value
    (Number(value=Fraction(-2501, 2), unit='', is_percent=False, is_fraction=False), Fraction(1, 3), Fraction(3, 2))
    >>> read_number(r"50\%"), read_number(r"5\text{ cm}^2").unit, read_number("5x"), read_number("1 2")
    (Number(value=Fraction(50, 1), unit='', is_percent=True, is_fraction=False), 'cm^2', None, None)
    """
    sign, rest = (text[0], text[1:].lstrip()) if text[:1] in ("+", "-") else ("", text)
    dollars = rest.startswith(("\\$", "$"))
    rest = rest.removeprefix("\\").removeprefix("$").lstrip() if dollars else rest
    found = _read_fraction(rest) or _read_decimal(rest)
    if found is None:
        return None
    value, end, is_fraction = found
    tail = rest[end:].replace("\\%", "%")
    if tail.strip().lower() in ("%", "percent", "per cent", r"\text{percent}", r"\text{ percent}"):
        unit, factor, is_percent = "", 1, True
    else:
        known = _read_unit(tail)
        if known is None:
            return None
        (unit, factor), is_percent = known, False
    if dollars and unit:
        return None
    return Number(
        (-value if sign == "-" else value) * factor, "dollar" if dollars else unit, is_percent, is_fraction and not unit
    )


def _read_fraction(text: str) -> tuple[Fraction, int, bool] | None:
    match = _FRACTION.match(text)
    if match:
        whole, top, below = match[1], match[2] or match[3], match[4] or match[5]
    else:
        match = _SLASH.match(text)
        if not match:
            return None
        whole, top, below = match[1], match[2].replace(",", ""), match[3].replace(",", "")
    if int(below) == 0 or (whole and (int(top) < 0 or int(below) < 0)):
        return None
    return int(whole or 0) + Fraction(int(top), int(below)), match.end(), True


def _read_decimal(text: str) -> tuple[Fraction, int, bool] | None:
    match = _DECIMAL.match(text)
    if not match or not (match[1] or match[2] or match[3]):
        return None
    whole, decimals, recurring, exponent = match[1] or "0", match[2] or "", match[3], int(match[4] or 0)
    value = Fraction(int(whole.replace(",", "") + decimals), 10 ** len(decimals))
    if recurring:
        value += Fraction(int(recurring), (10 ** len(recurring) - 1) * 10 ** len(decimals))
    return value * Fraction(10) ** exponent, match.end(), False


def _read_unit(tail: str) -> tuple[str, int] | None:
    """(Unit, factor of a word such as million), or `None` for what is no unit but a part of a formula."""
    stripped = tail.strip()
    if not stripped or _DEGREES.fullmatch(stripped):
        return "degree" if stripped else "", 1
    base = re.fullmatch(r"_\s*\{?\s*(\d\d?)\s*\}?", stripped, re.ASCII)
    if base:
        return f"base {base[1]}", 1
    words = re.sub(r"\s+", " ", _TEXT.sub(r"\1", stripped)).strip()
    tokens = re.findall(r"[a-z]+", words.lower())
    if not _UNIT.fullmatch(words) or _NOT_UNITS.intersection(tokens):
        return None
    in_text = _TEXT.match(stripped) is not None
    known = _unit_name(words)
    spaced = tail[:1].isspace() and all(len(word) > 2 or word in _UNIT_NAMES for word in tokens)
    if not in_text and (len(words) == 1 or not (spaced or known in _UNITS)):
        return None
    first, _, remaining = words.partition(" ")
    factor = _MULTIPLIERS.get(first.lower(), 1)
    return (_unit_name(remaining) if factor > 1 else known), factor


def _unit_name(words: str) -> str:
    name = re.sub(r"[\s{}]*\^[\s{}]*(-?\d)\}?", r"^\1", words.lower().rstrip("."))
    power = re.match(r"(square|sq|cubic)\.? ", name)
    if power:
        name = f"{name[power.end() :]}^{3 if power[1] == 'cubic' else 2}"
    stem, mark, exponent = name.partition("^")
    stem = stem if stem in _UNIT_NAMES else stem.removesuffix("s")
    stem = _UNIT_NAMES.get(stem, stem)
    return f"{stem}{mark}{exponent}" if stem else ""


def _read_words(text: str) -> Words | None:
    inner = _TEXT.sub(r"\1", text).strip()
    in_text = inner != text and _TEXT.fullmatch(text) is not None
    if inner.startswith("(") and inner.endswith(")"):
        inner = inner[1:-1].strip()
    if not _WORDS.fullmatch(inner):
        return None
    tokens = re.findall(r"[a-z]+", inner.lower())
    is_words = in_text or len(inner) == 1 or any(len(token) > 3 or token in _SHORT_WORDS for token in tokens)
    if not is_words or set(tokens) & _NOT_WORDS:
        return None
    return Words(" ".join(tokens))


_TOKEN = re.compile(r"\\[{}]|\\[A-Za-z]+|\\.|[()\[\]{},;]", re.DOTALL)
_OPENS = {"(": 1, "[": 1, "{": 1, "\\{": 1, ")": -1, "]": -1, "}": -1, "\\}": -1}


def split_top(text: str) -> list[str]:
    r"""The parts between commas (or semicolons) that are in no bracket.

    >>> split_top("1,(2,3)"), split_top(r"\frac{1,2}{3}")
    (['1', '(2,3)'], ['\\frac{1,2}{3}'])
    """
    parts, depth, begin = [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        depth += _OPENS.get(token, 0)
        if token in ",;" and depth == 0:
            parts.append(text[begin : match.start()].strip())
            begin = match.end()
    return [*parts, text[begin:].strip()]


def is_balanced(text: str) -> bool:
    """Whether braces match, as many brackets open as close, none closes first, and none is nested too deeply."""
    depth = braces = 0
    for match in _TOKEN.finditer(text):
        step = _OPENS.get(match.group(), 0)
        depth += step
        if match.group() in "{}":
            braces += step
        if depth > MAX_NESTING or braces < 0 or depth < 0:
            return False
    return braces == 0 and depth == 0


def _brackets(text: str) -> tuple[str, str] | None:
    for opening in ("\\{", "(", "["):
        for closing in ("\\}", ")", "]"):
            if text.startswith(opening) and text.endswith(closing) and (opening == "\\{") == (closing == "\\}"):
                return (opening, closing)
    return None
