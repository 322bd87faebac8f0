"""The forms in which people keep conversations and preferences, told by the columns of a row.

A form belongs to one kind of rows. Columns that it does not know are passed over, and columns of other names may be
given its roles: `columns = { prompt = "question", completion = "answer" }`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from melete.datasets.tables import TableRow, short
from melete.errors import DataError
from melete.suggest import did_you_mean
from melete.types import (
    Demonstration,
    LabelledCompletion,
    LabelledSteps,
    Message,
    PreferencePair,
    RankedCompletions,
)

Row = PreferencePair | RankedCompletions | Demonstration | LabelledCompletion | LabelledSteps
Turns = tuple[Message, ...]
# what may be told by `columns`, and how other people call it
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("question", "query", "problem", "instruction", "input", "text"),
    "completion": ("response", "answer", "output", "solution", "target", "answers"),
    "messages": ("conversation", "dialogue", "dialog", "turns", "chat"),
    "conversations": (),
    "instruction": (),
    "input": ("context",),
    "output": ("response",),
    "system": ("system_prompt",),
    "chosen": ("preferred", "winner", "accepted", "positive", "better"),
    "rejected": ("dispreferred", "loser", "refused", "negative", "worse"),
    "margin": (),
    "label": ("liked", "safe", "is_good", "good"),
    "completions": ("responses", "answers", "ranked", "outputs"),
    "steps": (),
    "labels": ("ratings",),
    "id": ("pair_id", "row_id"),
}
CALLED: Mapping[type[Row], str] = {
    Demonstration: "demonstrations",
    PreferencePair: "pairs",
    RankedCompletions: "rankings",
    LabelledCompletion: "labelled completions",
    LabelledSteps: "labelled steps",
}
TAKEN_BY: Mapping[type[Row], str] = {
    Demonstration: "`melete sft`",
    PreferencePair: "`melete dpo` and `melete rm`",
    RankedCompletions: "`melete rm --loss rankings`",
    LabelledCompletion: "`melete rm --loss pointwise`",
    LabelledSteps: "`melete rm --loss steps`",
}
NOTHING_ASKED = "neither prompt nor messages is given"
MESSAGES = 'messages: [{"role": "user", "content": "..."}], or prompt: "..."'
_SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "bard"), "assistant"),
    "system": "system",
}
_HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


@dataclass(frozen=True, slots=True)
class Format:
    """A form: what it is called, the roles that it needs, those it may have, and how a row of it is read.

    The first of several roles in `needs` that stand for each other is the one that is named when none is there.
    """

    name: str
    kind: type[Row]
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[TableRow], Mapping[str, Any]]
    may: tuple[str, ...] = ()

    @property
    def roles(self) -> set[str]:
        """All columns that it reads."""
        return {*(role for roles in self.needs for role in roles), *self.may, "id"}

    def fits(self, row: TableRow) -> bool:
        """Whether the row has a column for each role; what stands in it is checked when it is read."""
        return all(any(role in row.values for role in roles) for roles in self.needs) and _looks(self.name, row)

    def row(self, row: TableRow) -> Row:
        """The row in our own form. Raises `DataError` that names what is wrong with which column."""
        own_id = "pair_id" if self.kind is PreferencePair else "row_id"
        named = next((row.values[name] for name in (own_id, "id") if row.values.get(name) is not None), None)
        identity = str(row.place.rpartition(" ")[2] if named is None else named)
        try:
            return self.kind(identity, **self.read(row))
        except DataError:
            raise
        except ValueError as error:
            raise DataError(str(error), place=row.place) from error


def _looks(name: str, row: TableRow) -> bool:
    """What tells forms with the same columns apart."""
    if name == "implicit prompt":
        return "prompt" not in row.values and "messages" not in row.values
    if name == "messages":
        return "completion" not in row.values
    if name == "prompt and completion":  # a bad answer is not to be imitated
        return not isinstance(row.values.get("label"), bool)
    if name == "PRM800K":
        return isinstance(row.values.get("label"), Mapping)
    return True


def prompt_of(row: TableRow) -> Turns:
    """What is asked: text or turns under `prompt`, or turns under `messages`, behind `system` where there is one."""
    if isinstance(row.values.get("prompt"), str) and not _is_json_list(row.values["prompt"]):
        return (*_system(row), Message("user", row.values["prompt"]))
    for column in ("prompt", "messages"):
        value = row.values.get(column)
        if value and (_is_json_list(value) or isinstance(value, list | tuple)):
            return (*_system(row), *turns_of(row, column))
    raise DataError(NOTHING_ASKED, place=row.place, remedy=MESSAGES)


def _system(row: TableRow) -> Turns:
    text = row.values.get("system")
    return (Message("system", text),) if isinstance(text, str) and text else ()


def turns_of(row: TableRow, column: str) -> Turns:
    """The turns in a column, in the words of OpenAI (role, content) or of ShareGPT (from, value)."""
    place = f"{row.place}, column {column}"
    value = row.get(column)
    if isinstance(value, Mapping) and all(isinstance(each, list | tuple) for each in value.values()):
        value = [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]  # `datasets` may
    found = _list(value, place) if value is not None else []
    if not found:
        raise DataError("there is no message in this conversation", place=place, remedy=MESSAGES)
    return tuple(_turn(message, place) for message in found)


def _turn(message: Any, place: str) -> Message:
    if isinstance(message, Mapping):
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = _joined(content)
        if isinstance(role, str) and isinstance(content, str):
            known = _SPEAKERS.get(role.lower())
            if known or "role" in message:
                return Message(known or role, content)
            what = f"nobody is called {role!r} here; {did_you_mean(role, _SPEAKERS)}"
            raise DataError(what, place=place, remedy="leave such turns out, or call them human, gpt or system")
    shown = repr(message)
    raise DataError(f"{shown if len(shown) < 200 else shown[:200] + '...'} is no message", place=place, remedy=MESSAGES)


def _joined(parts: Sequence[Any]) -> str | None:
    """The text of a message in parts; None where a part is no text, such as an image."""
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    return "".join(text for text in texts if text) if all(isinstance(text, str) for text in texts) else None


def answer_of(row: TableRow, column: str) -> str:
    """One answer of the assistant: text, or a list with its one turn."""
    value = row.get(column)
    place = f"{row.place}, column {column}"
    if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
        turns = turns_of(row, column)
        if len(turns) == 1 and turns[0].role == "assistant":
            return turns[0].content
        raise DataError(f"must be one turn of the assistant, not {len(turns)} turns", place=place)
    return _text(value, place)


def _demonstration(turns: Turns, place: str) -> dict[str, Any]:
    """All turns up to the assistant's last; what follows it teaches nothing."""
    last = max((number for number, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        raise DataError("the assistant says nothing in this conversation", place=place, remedy="leave such rows out")
    return {"messages": turns[:last], "completion": turns[last].content}


def _prompt_completion(row: TableRow) -> dict[str, Any]:
    return {"messages": prompt_of(row), "completion": answer_of(row, "completion")}


def _messages(row: TableRow) -> dict[str, Any]:
    column = "messages" if "messages" in row.values else "conversations"
    return _demonstration((*_system(row), *turns_of(row, column)), f"{row.place}, column {column}")


def _alpaca(row: TableRow) -> dict[str, Any]:
    asked, more = row.text("instruction"), row.values.get("input")
    asked = f"{asked}\n\n{_text(more, f'{row.place}, column input')}" if more else asked
    return {"messages": (*_system(row), Message("user", asked)), "completion": answer_of(row, "output")}


def _pair(row: TableRow) -> dict[str, Any]:
    sides = [row.get(name) for name in ("chosen", "rejected")]
    if all(isinstance(side, Sequence) and not isinstance(side, str) and len(side) > 1 for side in sides):
        return _implicit_pair(row) | _margin(row)  # whole conversations: the prompt beside them says the same
    chosen, rejected = (answer_of(row, name) for name in ("chosen", "rejected"))
    return {"messages": prompt_of(row), "chosen": chosen, "rejected": rejected} | _margin(row)


def _implicit_pair(row: TableRow) -> dict[str, Any]:
    """Two conversations that are one up to their last turn."""
    remedy = "give the prompt in a column of its own, or conversations that differ in the last turn alone"
    sides = []
    for column in ("chosen", "rejected"):
        value = row.get(column)
        place = f"{row.place}, column {column}"
        turns = _hh_turns(value, place, remedy) if isinstance(value, str) else turns_of(row, column)
        if turns[-1].role != "assistant":
            raise DataError(f"ends with a turn of the {turns[-1].role}, not the assistant", place=place, remedy=remedy)
        sides.append(turns)
    chosen, rejected = sides
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        what = "chosen and rejected do not begin with the same conversation, so what was asked is not known"
        raise DataError(what, place=row.place, remedy=remedy)
    asked = (*_system(row), *chosen[:-1])
    return {"messages": asked, "chosen": chosen[-1].content, "rejected": rejected[-1].content} | _margin(row)


def _hh_turns(text: str, place: str, remedy: str) -> Turns:
    r"""The turns of a text in which "\n\nHuman: " and "\n\nAssistant: " begin them."""
    parts = _HH_TURN.split(text)
    if parts[0].strip() or len(parts) < 5:
        raise DataError("there is no prompt beside this text", place=place, remedy=remedy)
    names = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(names[name], words) for name, words in zip(parts[1::2], parts[2::2], strict=True))


def _margin(row: TableRow) -> dict[str, float]:
    return {"margin": _number(row.values["margin"], f"{row.place}, column margin")} if "margin" in row.values else {}


def _labelled(row: TableRow) -> dict[str, Any]:
    return _prompt_completion(row) | {"label": _flag(row.get("label"), f"{row.place}, column label")}


def _ranking(row: TableRow) -> dict[str, Any]:
    return {"messages": prompt_of(row), "completions": _each(_text, row, "completions")}


def _steps(row: TableRow) -> dict[str, Any]:
    steps = "steps" if "steps" in row.values else "completions"
    return {"messages": prompt_of(row), "steps": _each(_text, row, steps), "labels": _each(_flag, row, "labels")}


def _prm800k(row: TableRow) -> dict[str, Any]:
    """The path that the labeller went on with. A neutral rating counts as right, as Lightman et al. (2023) have it."""
    place = f"{row.place}, column label"
    try:
        steps, labels = [], []
        for step in row.values["label"]["steps"]:
            number, human = step.get("chosen_completion"), step.get("human_completion")
            picked = human if number is None and human else step["completions"][number or 0]
            rating = 1 if picked is human else picked["rating"]
            if rating is None:
                break
            steps.append(_text(picked["text"], place) + "\n")
            labels.append(rating >= 0)
        asked = _text(row.values["question"]["problem"], f"{row.place}, column question")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        remedy = "question: {problem}, label: {steps: [{completions: [{text, rating}], chosen_completion}]}"
        raise DataError("not a row of PRM800K", place=row.place, remedy=remedy) from error
    return {"messages": (Message("user", asked),), "steps": tuple(steps), "labels": tuple(labels)}


_ASKED = ("prompt", "messages")
# the first that fits is taken: forms with more columns stand before those with fewer
FORMATS = (
    Format("PRM800K", LabelledSteps, (("question",), ("label",)), _prm800k),
    Format("steps", LabelledSteps, (_ASKED, ("steps",), ("labels",)), _steps, ("system",)),
    Format("prompt, completions, labels", LabelledSteps, (_ASKED, ("completions",), ("labels",)), _steps, ("system",)),
    Format("implicit prompt", PreferencePair, (("chosen",), ("rejected",)), _implicit_pair, ("system", "margin")),
    Format("pairs", PreferencePair, (_ASKED, ("chosen",), ("rejected",)), _pair, ("system", "margin")),
    Format("labelled", LabelledCompletion, (_ASKED, ("completion",), ("label",)), _labelled, ("system",)),
    Format("rankings", RankedCompletions, (_ASKED, ("completions",)), _ranking, ("system",)),
    Format("prompt and completion", Demonstration, (_ASKED, ("completion",)), _prompt_completion, ("system",)),
    Format("messages", Demonstration, (("messages",),), _messages, ("system",)),
    Format("ShareGPT", Demonstration, (("conversations",),), _messages, ("system",)),
    Format("Alpaca", Demonstration, (("instruction",), ("output",)), _alpaca, ("input", "system")),
)


def formats_of(kind: type[Row]) -> list[Format]:
    """The forms of one kind, in the order in which they are tried."""
    return [one for one in FORMATS if one.kind is kind]


def words_of(row: Row) -> list[str]:
    """What the assistant says in a row of data, each answer as one text."""
    if isinstance(row, PreferencePair):
        return [row.chosen, row.rejected]
    if isinstance(row, RankedCompletions):
        return list(row.completions)
    if isinstance(row, LabelledSteps):
        return ["".join(row.steps)]
    earlier = [turn.content for turn in row.messages if turn.role == "assistant"]
    return [*earlier, row.completion] if isinstance(row, Demonstration) else [row.completion]


def _is_json_list(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("[{")


def _list(value: Any, place: str) -> Sequence[Any]:
    """A list, also where a table of text alone (CSV) writes it as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"must be a list, not {short(value)}", place=place) from None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f"must be a list, not {short(value)}", place=place)
    return value


def _each(check: Callable[[Any, str], Any], row: TableRow, column: str) -> tuple[Any, ...]:
    place = f"{row.place}, column {column}"
    return tuple(check(item, place) for item in _list(row.get(column), place))


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"must be text, not {short(value)}", place=place)
    return value


def _flag(value: Any, place: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, str) and value.strip().lower() in words:  # a table of text alone
        return words[value.strip().lower()]
    if isinstance(value, str | Mapping | Sequence) or value not in (True, False):
        raise DataError(f"must be true or false, not {short(value)}", place=place)
    return bool(value)


def _number(value: Any, place: str) -> float:
    try:
        number = float(value) if isinstance(value, str) else value  # a table of text alone
    except ValueError:
        number = None
    is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    if not is_number or number is None or number < 0:
        raise DataError(f"must be a number of at least 0, not {short(value)}", place=place)
    return float(number)


def renamed(row: TableRow, columns: Mapping[str, str]) -> TableRow:
    """The row with its columns under the names of the roles that `columns` gives them."""
    if not columns:
        return row
    kept = {name: value for name, value in row.values.items() if name not in {*columns, *columns.values()}}
    return TableRow(kept | {role: row.get(column) for role, column in columns.items()}, row.place)


def check_roles(columns: Mapping[str, str], place: str) -> None:
    """Raises `DataError` for a role that no form has."""
    for role in columns:
        if role not in USUAL_NAMES:
            what = f"columns has no role {role!r}; {did_you_mean(role, USUAL_NAMES)}"
            raise DataError(what, place=place, remedy=f"roles: {', '.join(USUAL_NAMES)}")


def format_of(row: TableRow, formats: Iterable[Format], columns: Mapping[str, str] = {}) -> Format | None:
    """The first form that fits the row and has all roles that `columns` names."""
    return next((one for one in formats if one.roles >= columns.keys() and one.fits(row)), None)
