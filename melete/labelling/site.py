"""The page to judge on, and what it asks."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from melete.errors import DataError, RunError
from melete.labelling.agreement import agreements, left_share
from melete.labelling.items import Item
from melete.labelling.journal import ANSWERS, FIRST, SECOND, UNDO, AlreadyAnswered, Entry, Journal, newest
from melete.web.app import make_app, package_pages
from melete.web.guard import error_body

LEFT, RIGHT = "left", "right"


class Answer(BaseModel):
    """What the page sends; `id` is made by the page, so that a repeated request is known as one."""

    id: str = Field(min_length=8, max_length=64)
    item: str = Field(max_length=64)
    answer: str = Field(max_length=16)
    unsafe: list[str] = Field(default=[], max_length=2)
    seconds: float = Field(default=0, ge=0, le=86400, allow_inf_nan=False)
    review: bool = False


class Undo(BaseModel):
    """What the page sends to take the last answer back."""

    id: str = Field(min_length=8, max_length=64)


class Labelling:
    """One person's work on the items of a file."""

    def __init__(self, items: Sequence[Item], journal: Journal, by: str, mode: str) -> None:
        self.items = {item.item_id: item for item in items}
        self.journal, self.by, self.mode = journal, by, mode

    def state(self, review: bool = False, shown: str = "") -> dict[str, Any]:
        """Progress, agreement, and the item to judge next: `shown`, else the first that waits."""
        self.journal.refresh()
        mine = {item: entry for (_, item), entry in self.journal.current(self.by).items() if item in self.items}
        agreed = agreements(self.journal, self.by, list(self.items))
        waiting = [item for item in self.items if item not in mine]
        if review:
            reviewed = {entry.item for entry in mine.values() if entry.review}
            differing = dict.fromkeys(item for one in agreed for item in one.differing)
            waiting = [item for item in differing if item not in reviewed]
        share, num = left_share({(self.by, item): entry for item, entry in mine.items()})
        following = shown or (waiting[0] if waiting else "")
        return {
            "by": self.by,
            "mode": self.mode,
            "review": review,
            "done": len(mine),
            "total": len(self.items),
            "waiting": len(waiting),
            "agreement": [asdict(one) | {"differing": len(one.differing)} for one in agreed],
            "left": {"share": share, "num": num},
            "notes": self.journal.notes,
            "item": self._shown(following, review) if following else None,
        }

    def answer(self, given: Answer) -> dict[str, Any]:
        """Keeps an answer, and says what comes next."""
        item = self.items.get(given.item)
        if item is None:
            raise DataError("there is no such item", remedy="reload the page")
        swapped = item.is_swapped(self.by)
        sides = {LEFT: int(swapped), RIGHT: int(not swapped)} if len(item.completions) == 2 else {LEFT: 0}
        answer = (FIRST, SECOND)[sides[given.answer]] if given.answer in sides else given.answer
        if answer not in ANSWERS[self.mode] or any(side not in sides for side in given.unsafe):
            raise DataError(f"{given.answer!r} is no answer here", remedy=f"one of {', '.join(ANSWERS[self.mode])}")
        unsafe = tuple(sorted({sides[side] for side in given.unsafe} | ({0} if answer == "unsafe" else set())))
        review = given.review
        self.journal.add(
            self._entry(item, given.id, answer, unsafe=unsafe, seconds=round(given.seconds, 1), review=review),
            refuse=self._refuse_second,
        )
        return self.state(review)

    def undo(self, given: Undo) -> dict[str, Any]:
        """Takes the last answer back and shows its item again."""
        self.journal.refresh()
        if repeated := next((entry for entry in self.journal.entries if entry.id == given.id), None):
            return self.state(shown=repeated.item)
        mine = [entry for entry in self.journal.entries if entry.item in self.items]
        last = newest(mine, self.by)
        if last is None:
            return self.state()
        self.journal.add(self._entry(self.items[last.item], given.id, UNDO))
        return self.state(shown=last.item)

    def _refuse_second(self, entry: Entry) -> str | None:
        is_there = (self.by, entry.item) in self.journal.current(self.by)
        return "this item is answered already, in another tab or window" if is_there and not entry.review else None

    def _entry(self, item: Item, id: str, answer: str, **further: Any) -> Entry:
        messages = tuple({"role": message.role, "content": message.content} for message in item.messages)
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        known = {"swapped": item.is_swapped(self.by), "at": at} | further
        return Entry(id, item.item_id, self.by, answer, messages, item.completions, **known)

    def _shown(self, item_id: str, review: bool) -> dict[str, Any]:
        item = self.items[item_id]
        swapped = item.is_swapped(self.by)
        shown = item.completions[::-1] if swapped else item.completions
        messages = [{"role": message.role, "content": message.content} for message in item.messages]
        told = {"id": item_id, "messages": messages, "answers": list(shown)}
        if review:
            now = {who: entry.answer for (who, one), entry in self.journal.current().items() if one == item_id}
            sides = {FIRST: (LEFT, RIGHT)[swapped], SECOND: (RIGHT, LEFT)[swapped]}
            told["said"] = {who: sides.get(answer, answer) for who, answer in now.items()}
        return told


def label_app(items: Sequence[Item], journal: Journal, *, by: str, mode: str, token: str | None = None) -> FastAPI:
    """The page and what it asks, for one person."""
    work = Labelling(items, journal, by, mode)
    app = make_app(title="melete label", token=token, max_body=2**16)
    package_pages(app, "melete.labelling")

    @app.exception_handler(AlreadyAnswered)
    async def already(_: Any, error: AlreadyAnswered) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse(error_body(error.what, code="already_answered"), 409)

    @app.exception_handler(RunError)
    async def not_written(_: Any, error: RunError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse(error_body(f"not saved: {error.what}", kind="server_error"), 507)

    # plain functions run in threads: a slow disk holds up nobody else
    app.add_api_route("/api/state", work.state, methods=["GET"])
    app.add_api_route("/api/answer", work.answer, methods=["POST"])
    app.add_api_route("/api/undo", work.undo, methods=["POST"])
    return app


def journal_of(data: Path) -> Path:
    """Where answers go by default: beside the data."""
    return data.with_name(f"{data.name.removesuffix('.jsonl')}.journal.jsonl")
