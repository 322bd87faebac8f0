"""What a client may ask, field by field.

What cannot be done is refused by its name; what changes nothing about an answer is ignored. A field that cannot be
served but stands at the value that asks for nothing, as many clients send it, is taken.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from melete.errors import DataError
from melete.types import Message

DEFAULT_TEXT_TOKENS = 16  # of /v1/completions, as OpenAI's
MAX_LOGPROBS = 20
# they change nothing about an answer
IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
) | frozenset(("parallel_tool_calls", "verbosity", "return_token_ids"))
# a field that is not served: the values that ask for nothing
_ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "suffix": ("",),
    "min_p": (0,),
}


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _whole_text(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("this is no text: it has half of a character (a lone surrogate)")
    return text


Text = Annotated[str, BeforeValidator(lambda v: _whole_text(v) if isinstance(v, str) else v)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


class StreamOptions(BaseModel):
    include_usage: bool = False


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Text


class Turn(BaseModel):
    """One message. What else clients hand back of an answer (its thought, its name) is not told to the model."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=1000)]

    def message(self) -> Message:
        """The turn as the chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class _Asked(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str = ""
    n: int = Field(1, ge=1, le=128)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[StopString], Field(max_length=8), BeforeValidator(_one_or_many)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        """A field that is null is one that is not given."""
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    def refuse_unknown(self) -> None:
        """Raises `DataError` naming a field that is not served and asks for something."""
        for name, value in (self.model_extra or {}).items():
            if name in IGNORED or any(value == nothing for nothing in _ASKS_NOTHING.get(name, ())):
                continue
            known = "is not supported by this server" if name in _ASKS_NOTHING else "is not a field of this interface"
            raise DataError(f"{name} {known}", place=name)
        if self.stream_options and not self.stream:
            raise DataError("stream_options is for answers that are streamed", place="stream_options")


class ChatRequest(_Asked):
    """The body of /v1/chat/completions."""

    messages: list[Turn] = Field(min_length=1, max_length=10_000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)

    def refuse_unknown(self) -> None:
        """Raises `DataError` naming the field."""
        super().refuse_unknown()
        if self.top_logprobs and not self.logprobs:
            raise DataError("top_logprobs needs logprobs to be true", place="top_logprobs")


TokenIds = list[Annotated[int, Field(ge=0, strict=True)]]


class TextRequest(_Asked):
    """The body of /v1/completions."""

    prompt: Text | TokenIds | list[Text] | list[TokenIds]
    max_tokens: int = Field(DEFAULT_TEXT_TOKENS, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    best_of: int | None = Field(None, ge=1)

    def refuse_unknown(self) -> None:
        """Raises `DataError` naming the field."""
        super().refuse_unknown()
        if self.best_of not in (None, self.n):
            raise DataError("best_of other than n is not supported by this server", place="best_of")
        if not self.max_tokens and not self.echo:
            raise DataError("max_tokens may be 0 with echo only", place="max_tokens")

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # pyright: ignore[reportReturnType]
        return self.prompt  # pyright: ignore[reportReturnType]
