"""Errors meant for people: what happened, where, and how to mend it.

Each also subclasses its standard-library ancestor, so that callers may catch `ValueError` or `OSError` as usual. The
command line prints them as one message with exit status 2; a traceback needs `--debug`.
"""


class MeleteError(Exception):
    """What went wrong, where (`place`: a file, a key, a setting) and how to mend it (`remedy`)."""

    def __init__(self, what: str, *, place: str = "", remedy: str = "") -> None:
        self.what, self.place, self.remedy = what, place, remedy
        super().__init__(
            "\n".join(part for part in (what, place and f"  where: {place}", remedy and f"  mend:  {remedy}") if part)
        )


class RecipeError(MeleteError, ValueError):
    """A recipe, a key, a value or an override that cannot be used."""


class ModelError(MeleteError, ValueError):
    """A model directory or tokenizer that cannot be loaded or does not fit."""


class DataError(MeleteError, ValueError):
    """A row, a file or a problem that cannot be used."""


class RunError(MeleteError, OSError):
    """A run directory that cannot be written, read or continued."""


class TrainingError(MeleteError, ArithmeticError):
    """A loss, gradient or reward that is not finite: the step is refused and the weights stay as they were."""
