"""The bodies of Ollama's API as they come in, each field of its kind and within bounds.

Fields as in api/types.go of Ollama 0.33. What is not stated here is let through, for the routes to say that it means
nothing."""

from typing import Annotated, Any, Final

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from trilithon.serve.http.openapi import STATUSES
from trilithon.serve.validation import MOST_MESSAGES, MOST_PROMPT_CHARACTERS, MOST_TOOLS

__all__ = [
    "ERRORS",
    "CopyBody",
    "CreateBody",
    "EmbedBody",
    "EmbeddingsBody",
    "ErrorBody",
    "GenerateBody",
    "NamedBody",
    "OllamaChatBody",
    "OllamaMessage",
    "PullBody",
    "ShowBody",
]

_LONGEST_NAME: Final = 1024
_MOST_IMAGES: Final = 64
_MOST_INPUTS: Final = 4096
_MOST_TOP_LOGPROBS: Final = 20

Name = Annotated[str, Field(max_length=_LONGEST_NAME)]
Text = Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)]
Images = Annotated[list[str], Field(max_length=_MOST_IMAGES)]
Named = Annotated[dict[str, str], Field(max_length=256)]
KeepAlive = float | str


class ErrorBody(BaseModel):
    error: str


ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorBody, "description": description} for status, description in STATUSES.items()
}


class _OllamaBody(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, populate_by_name=True)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Fields that are nothing here, less those that are null."""
        return tuple(name for name, value in (self.model_extra or {}).items() if value is not None)


class ToolCallFunction(_OllamaBody):
    name: Name
    arguments: dict[str, Any] = {}


class OllamaToolCall(_OllamaBody):
    id: Name | None = None
    function: ToolCallFunction


class OllamaMessage(_OllamaBody):
    role: Annotated[str, Field(max_length=32)]
    content: Text | None = None
    thinking: Text | None = None
    images: Images | None = None
    tool_calls: Annotated[list[OllamaToolCall], Field(max_length=MOST_TOOLS)] | None = None
    tool_name: Name | None = None
    tool_call_id: Name | None = None


class _OllamaRequestBody(_OllamaBody):
    """What generate and chat have in common."""

    model: Name = ""
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=_MOST_TOP_LOGPROBS)] | None = None


class GenerateBody(_OllamaRequestBody):
    prompt: Text | None = None
    suffix: Text | None = None
    system: Text | None = None
    template: Text | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: Images | None = None


class OllamaChatBody(_OllamaRequestBody):
    messages: Annotated[list[OllamaMessage], Field(max_length=MOST_MESSAGES)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MOST_TOOLS)] | None = None


class EmbedBody(_OllamaBody):
    model: Name = ""
    input: Text | Annotated[list[Text], Field(max_length=_MOST_INPUTS)] | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] | None = None


class EmbeddingsBody(_OllamaBody):
    """The older form, for one text."""

    model: Name = ""
    prompt: Text | None = None
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] | None = None


class NamedBody(_OllamaBody):
    """Older clients write `name`."""

    model: Annotated[Name, Field(validation_alias=AliasChoices("model", "name"))] = ""


class ShowBody(NamedBody):
    verbose: bool | None = None


class PullBody(NamedBody):
    insecure: bool | None = None
    stream: bool | None = None


class CopyBody(_OllamaBody):
    source: Name = ""
    destination: Name = ""


class CreateBody(NamedBody):
    """`files` and `adapters` name blobs that were uploaded before: file name → sha256:digest. Older clients write
    `quantization`."""

    base: Annotated[Name | None, Field(validation_alias="from")] = None
    files: Named | None = None
    adapters: Named | None = None
    template: Text | None = None
    license: Text | list[Text] | None = None
    system: Text | None = None
    parameters: dict[str, Any] | None = None
    messages: Annotated[list[OllamaMessage], Field(max_length=MOST_MESSAGES)] | None = None
    quantize: Annotated[str, Field(max_length=32)] | None = None
    quantization: Annotated[str, Field(max_length=32)] | None = None
    draft_files: Named | None = None
    stream: bool | None = None
