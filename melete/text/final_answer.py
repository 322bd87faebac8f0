r"""The final answer of a completion: `\boxed{...}`, `<answer>...</answer>` or `#### ...`, after the thought.

Every function takes time linear in the length of the text, whatever the text is.
"""

from __future__ import annotations

import re
from typing import Literal

from melete.text.answers import parse_completion, without_thought

Reading = Literal["tags", "text", "free"]

_ANSWER_TAG = re.compile(r"</?answer>")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)  # an escaped brace is no brace
_HASHES = re.compile(r"^[ \t]*####(?!#)(.*)$", re.MULTILINE)
_NUMBER = re.compile(r"(?:(?<![\w.)\]}])[+-])?(?<![\w.])(?:\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|\.\d+)(?:/\d+)?%?", re.ASCII)
_WRAPPERS = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("{", "}"))
_NO_MEANING = re.compile(r"\\(?:[,;:! ]|left(?![a-z])|right(?![a-z])|displaystyle(?![a-z]))|\s+")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\\,|\\!)(?=\d{3}(?!\d))", re.ASCII)


def after_thought(text: str, *, thought_opened: bool = False) -> str | None:
    """What follows the last `</think>`, or the whole text where there is no thought; `None` inside an unclosed thought.

    `thought_opened` tells that the prompt's template has written `<think>` already.

    >>> after_thought("<think>6?</think> It is 7."), after_thought("7"), after_thought("<think>7")
    (' It is 7.', '7', None)
    >>> after_thought("7", thought_opened=True), after_thought("6?</think>7", thought_opened=True)
    (None, '7')
    """
    _, closed, tail = text.rpartition("</think>")
    if "<think>" in tail or (thought_opened and not closed):
        return None
    return tail


def answer_of(text: str, reading: Reading, *, thought_opened: bool = False) -> str | None:
    r"""What a completion answers, read as the task says, or `None`.

    "tags": what is inside `<answer>`, after the thought. "text": all that is not the thought. "free": any of the usual
    ways, down to the last number, for models that were never taught the tags; see `final_answer`.

    >>> [answer_of("<think>3+4</think> It is 7.", reading) for reading in ("tags", "text", "free")]
    [None, 'It is 7.', '7']
    """
    if reading == "text":
        return without_thought(text, thought_opened=thought_opened)
    if reading == "free":
        return final_answer(text, thought_opened=thought_opened, bare_number=True)
    return parse_completion(text, thought_opened=thought_opened).answer


def final_answer(text: str, *, thought_opened: bool = False, bare_number: bool = False) -> str | None:
    r"""The one answer that a completion gives, as written, or `None`.

    Only what stands after the thought counts. In this order: (1) the last `\boxed{...}`; (2) the last
    `<answer>...</answer>`, (3) the last line `#### ...`; (4) with `bare_number`, which is for evaluation only, the
    last number. Several answers are one when they are the same text, apart from spacing, `$` and thousands separators;
    several different ones are none, also a box that contradicts the tags. So is a box or a tag that is not closed. Of
    `####` lines only the numbers have to agree, because four hashes are a heading too. A box inside the tags is what
    the tags say.

    >>> final_answer(r"<think>\boxed{6}?</think> So it is \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> final_answer("<answer> 7 </answer>"), final_answer("3+4\n#### 7"), final_answer(r"\boxed{7} or \boxed{8}")
    ('7', '7', None)
    >>> final_answer("It is 1,007."), final_answer("It is 1,007.", bare_number=True)
    (None, '1,007')
    """
    visible = after_thought(text, thought_opened=thought_opened)
    if visible is None:
        return None
    boxed, tagged = boxed_answers(visible), _tagged_answers(visible)
    if boxed is None or tagged is None:
        return None
    if boxed or tagged:
        last = comparable((boxed or tagged)[-1])
        agree = all(comparable(answer) == last for answer in set(boxed + tagged))
        return (boxed or tagged)[-1] if agree else None
    hashes = [line.strip() for line in _HASHES.findall(visible)]
    if hashes:
        last = comparable(hashes[-1])
        others = (comparable(line) for line in set(hashes) if any(map(str.isdecimal, line)))
        return hashes[-1] if last and all(line == last or not _NUMBER.fullmatch(line) for line in others) else None
    return last_number(visible) if bare_number else None


def boxed_answers(text: str) -> list[str] | None:
    r"""What is in each outermost `\boxed{...}` (or `\fbox`), in order; `None` when one is empty or never closed.

    >>> boxed_answers(r"\boxed{\{1,2\}} and \boxed{x=\boxed{3}}"), boxed_answers("7"), boxed_answers(r"\boxed{{7}")
    (['\\{1,2\\}', 'x={3}'], [], None)
    """
    if "\\boxed" not in text and "\\fbox" not in text:
        return []
    found: list[str] = []
    depth = begin = 0
    for match in _BOX_OR_BRACE.finditer(text):
        token = match.group()
        if token == "}" and depth:
            depth -= 1
            if not depth:
                found.append(_BOX.sub("{", text[begin : match.start()]).strip())
        elif token[-1] == "{" and token != r"\{" and (depth or token != "{"):
            begin = begin if depth else match.end()
            depth += 1
    return None if depth or not all(found) else found


def last_number(text: str) -> str | None:
    """The last number in digits 0-9: with its sign, decimals, thousands separators, a simple fraction or a per cent.

    >>> last_number("from 3-5 to -1,250.5, then done."), last_number("1/2 or 50%"), last_number("none")
    ('-1,250.5', '50%', None)
    """
    last = None
    for match in _NUMBER.finditer(text):
        last = match.group()
    return last


def comparable(text: str) -> str:
    r"""An answer without what has no meaning: spacing, `$`, outer braces, thousands separators, the full stop.

    >>> comparable("$ 1,000 $."), comparable(r"\left( 1,\; 2 \right)"), comparable("{7}"), comparable("1 2")
    ('1000', '(1,2)', '7', '1 2')
    """
    core = unwrapped(text)
    core = _THOUSANDS.sub("", core)
    core = _NO_MEANING.sub(" ", core)
    return re.sub(r"(?<![^\W_]) | (?![^\W_])", "", core)  # a space between two words, or two numbers, says something


def unwrapped(text: str) -> str:
    r"""An answer without white space, full stop, `$...$`, `\(...\)`, `\[...\]`, `**...**` and `{...}` around it.

    >>> unwrapped(r" $$\frac{1}{2}$$. "), unwrapped("{1}{2}"), unwrapped("**7**")
    ('\\frac{1}{2}', '{1}{2}', '7')
    """
    core = text.strip()
    for _ in range(8):  # wrappers in wrappers; more than a few are nobody's answer
        before = core
        core = core.removesuffix(".").strip()
        for opening, closing in _WRAPPERS:
            inner = core[len(opening) : -len(closing)]
            long_enough = len(core) > len(opening) + len(closing)
            if long_enough and core.startswith(opening) and core.endswith(closing) and not _leaves(inner, opening):
                core = inner.strip()
        if core == before:
            break
    return core


def _leaves(inner: str, opening: str) -> bool:
    """Whether the pair around `inner` is not one pair, as in `{1}{2}`."""
    if opening != "{":
        return opening in inner.strip("$") if opening == "$" else opening in inner
    depth = 0
    for match in _BOX_OR_BRACE.finditer(inner):
        depth += {"{": 1, "}": -1}.get(match.group()[-1], 0) if match.group() not in (r"\{", r"\}") else 0
        if depth < 0:
            return True
    return depth != 0 or inner.endswith("\\")


def _tagged_answers(text: str) -> list[str] | None:
    """What is in each `<answer>...</answer>`; `None` when tags are nested, empty or left open."""
    tags = _ANSWER_TAG.findall(text)
    if not tags:
        return []
    if tags != ["<answer>", "</answer>"] * (len(tags) // 2):
        return None
    answers: list[str] = []
    for content in _ANSWER_TAG.split(text)[1::2]:
        boxed = boxed_answers(content)
        if boxed is None:
            return None
        answers += boxed or [content.strip()]
    return answers if all(answers) else None
