"""What the server over the library takes from a request; what it has not is refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trilithon.engines.ik_llamacpp.child.library import IkModel
from trilithon.engines.ik_llamacpp.child.sampling import IkSampling
from trilithon.engines.wire.bodies import field_of
from trilithon.engines.wire.chat_template import ChatTemplate, for_template
from trilithon.engines.wire.generation import GenerationRequest
from trilithon.engines.wire.http import WireError
from trilithon.engines.wire.requests import RenderedPrompt, RequestReader, chat_messages, offered_tools
from trilithon.engines.wire.sampling_fields import NEUTRAL, RANDOM_SEEDS, UNSUPPORTED, biases, refuse_unknown, within
from trilithon.engines.wire.text_stream import opens_reasoning
from trilithon.errors import UserError

__all__ = ["IkReader", "IkRequest", "IkText"]

_ENGINE = "ik_llama.cpp's library"
# What llama-server uses for a model without a template.
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IkRequest(GenerationRequest):
    """`bias` is added to the scores of tokens."""

    sampling: IkSampling = field(default_factory=IkSampling)
    bias: Mapping[int, float] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty")
        return {name: getattr(self.sampling, name) for name in names}


class IkText:
    """The model's tokenizer and chat template, as a TextCodec."""

    note = ""
    has_tokenizer = True

    def __init__(self, model: IkModel, path: Path, template: str | None) -> None:
        self._model = model
        self.chat_template = template or model.metadata("tokenizer.chat_template") or _CHATML
        self.bos, self.eos = (
            "" if token < 0 else self.bytes_of(token).decode(errors="replace") for token in (model.bos, model.eos)
        )
        special = {"bos_token": self.bos, "eos_token": self.eos}
        self._template = ChatTemplate(self.chat_template, self.chat_template, special, path)

    @property
    def vocabulary(self) -> int | None:
        return self._model.vocabulary

    def token(self, text: str) -> int | None:
        """The id of the token with this text, if there is one."""
        tokens = self.tokenize(text)
        return tokens[0] if len(tokens) == 1 else None

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        return self._model.tokenize(text, add_special=add_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")

    def bytes_of(self, token: int) -> bytes:
        if not 0 <= token < self._model.vocabulary:
            raise UserError(f"{token} is not a token; write numbers from 0 to {self._model.vocabulary - 1}")
        return self._model.piece(token, special=True)

    def chat(self, body: Mapping[str, Any]) -> RenderedPrompt:
        """Raises WireError and UserError."""
        settings = field_of(body, "chat_template_kwargs", dict, {})
        if unknown := settings.keys() - {"enable_thinking"}:
            message = f'"chat_template_kwargs" takes enable_thinking alone; leave out {", ".join(sorted(unknown))}'
            raise WireError(400, message, UNSUPPORTED)
        text = self._template.render(
            [for_template(message, _content(message)) for message in chat_messages(body)],
            tools=list(offered_tools(body)),
            enable_thinking=settings.get("enable_thinking", body.get("enable_thinking")),
            generation_prompt=field_of(body, "add_generation_prompt", bool, True),
        )
        tokens = self.tokenize(text, add_special=True)
        if tokens[:2] == [self._model.bos] * 2:  # the template writes it too
            del tokens[0]
        return RenderedPrompt(text, tuple(tokens), opens_reasoning(text))


class IkReader(RequestReader[IkRequest]):
    def __init__(self, text: IkText, context: int) -> None:
        super().__init__(text, context)
        self._ik_text = text

    def rendered(self, body: Mapping[str, Any]) -> RenderedPrompt:
        return self._ik_text.chat(body)

    def request(self, body: Mapping[str, Any], common: GenerationRequest) -> IkRequest:
        refuse_unknown(body, {**NEUTRAL, "mirostat": (0,)}, _ENGINE)
        fields = {name: getattr(common, name) for name in GenerationRequest.__slots__}
        return IkRequest(**fields, sampling=_sampling(body), bias=biases(body, self._ik_text.token))


def _sampling(body: Mapping[str, Any]) -> IkSampling:
    default = IkSampling()
    seed = field_of(body, "seed", int, -1)
    return IkSampling(
        temperature=within(body, "temperature", default.temperature, 0, 100),
        top_k=field_of(body, "top_k", int, default.top_k),
        top_p=within(body, "top_p", default.top_p, 0, 1),
        min_p=within(body, "min_p", default.min_p, 0, 1),
        repeat_penalty=within(body, "repeat_penalty", default.repeat_penalty, 0.1, 10),
        frequency_penalty=within(body, "frequency_penalty", 0.0, -2, 2),
        presence_penalty=within(body, "presence_penalty", 0.0, -2, 2),
        last_n=field_of(body, "repeat_last_n", int, default.last_n),
        seed=None if seed in RANDOM_SEEDS else abs(seed),
    )


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if any(part.get("type") != "text" for part in content):
        raise WireError(400, f"{_ENGINE} takes no images; leave them out", UNSUPPORTED)
    return "".join(str(part.get("text", "")) for part in content)
