"""Errors meant for people: what happened, where, and how to mend it.

Each also subclasses its standard-library ancestor, so that callers may catch `ValueError` or `OSError` as usual. The
command line prints them as one message with exit status 2; a traceback needs `--debug`.
"""


class MeleteError(Exception):
    """What went wrong, where (`place`: a file, a key, a setting) and how to mend it (`remedy`).

    Where the place says enough, the remedy may be left out: then it is the usual one of its kind.
    """

    usual_remedy = ""

    def __init__(self, what: str, *, place: str = "", remedy: str = "") -> None:
        remedy = remedy or (self.usual_remedy if place else "")
        what, place, remedy = (_shown(part) for part in (what, place, remedy))
        self.what, self.place, self.remedy = what, place, remedy
        super().__init__(
            "\n".join(part for part in (what, place and f"  where: {place}", remedy and f"  mend:  {remedy}") if part)
        )


def _shown(text: str) -> str:
    """The text as any terminal can show it: halves of characters are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class RecipeError(MeleteError, ValueError):
    """A recipe, a key, a value or an override that cannot be used."""

    usual_remedy = "correct it there; nothing was started"


class ModelError(MeleteError, ValueError):
    """A model directory or tokenizer that cannot be loaded or does not fit."""

    usual_remedy = "mend it there, or choose another model"


class DataError(MeleteError, ValueError):
    """A row, a file or a problem that cannot be used."""

    usual_remedy = "correct what stands there, or leave it out"


class RunError(MeleteError, OSError):
    """A run directory that cannot be written, read or continued."""


class TrainingError(MeleteError, ArithmeticError):
    """A loss, gradient or reward that is not finite: the step is refused and the weights stay as they were."""
