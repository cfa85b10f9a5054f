"""The tokenizer and chat template of a model, from the files beside its weights.

Nothing that comes with a model is executed, except for the template in its sandbox."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilithon.engines.wire.chat_template import ChatTemplate, for_template, read_chat_template
from trilithon.engines.wire.requests import RenderedPrompt
from trilithon.engines.wire.text_stream import opens_reasoning
from trilithon.errors import ModelError, UserError
from trilithon.models.files.rkllm import companion
from trilithon.packages import install_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["IMAGE_TAG", "Detokenizer", "ModelText", "plain_prompt"]

IMAGE_TAG = "<image>"
"""The place of a picture in a prompt for the runtime (rkllm.h: as many tags as pictures)."""

_ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}
_INCOMPLETE = "�"  # how a tokenizer decodes a character with missing bytes
_MOST_HELD_TOKENS = 8  # a character has at most 4 bytes; if it is incomplete after twice as many tokens, it is invalid


class ModelText:
    """The tokenizer and chat template of a model, as far as they exist beside its file.

    `note` says what is missing and the consequence; empty when both exist."""

    def __init__(self, tokenizer: "Tokenizer | None", template: ChatTemplate | None, note: str):
        self._tokenizer = tokenizer
        self._template = template
        self.note = note

    @classmethod
    def beside(cls, model: Path) -> "ModelText":
        """Raises ModelError for a damaged file."""
        path = companion(model, "tokenizer.json")
        if path is None:
            fix = "put the model's tokenizer.json and tokenizer_config.json beside it"
            return cls(None, None, f"{model.name} has no tokenizer beside it: chat uses the runtime's template; {fix}")
        try:
            tokenizer, template = _read_tokenizer(path), read_chat_template(path.parent)
        except ImportError as error:
            fix = install_line("jinja2", "tokenizers")
            return cls(None, None, f"{error.name} is missing: chat uses the runtime's template; run: {fix}")
        if template is None:
            return cls(tokenizer, None, f"no chat template beside {model.name}: chat uses the runtime's template")
        return cls(tokenizer, template, "")

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def has_template(self) -> bool:
        return self._template is not None

    @property
    def vocabulary(self) -> int | None:
        return None if self._tokenizer is None else self._tokenizer.get_vocab_size(with_added_tokens=True)

    def token(self, text: str) -> int | None:
        """The id of the token with this text, if there is one."""
        return None if self._tokenizer is None else self._tokenizer.token_to_id(text)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        enable_thinking: bool | None = None,
        generation_prompt: bool = True,
    ) -> RenderedPrompt:
        """The conversation in the model's template, or as text for the runtime's. Raises UserError where that is not
        possible."""
        if self._template is None or self._tokenizer is None:
            if tools:
                raise UserError(f"tools need the model's template; {self.note}")
            return RenderedPrompt(plain_prompt(messages), None, False)
        text = self._template.render(
            [for_template(message, _content(message)) for message in messages],
            tools=list(tools),
            enable_thinking=enable_thinking,
            generation_prompt=generation_prompt,
        )
        return RenderedPrompt(text, tuple(self.tokenize(text)), opens_reasoning(text))

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        valid = text.encode(errors="replace").decode()  # without half surrogates, which JSON can contain
        return list(self._need().encode(valid, add_special_tokens=add_special).ids)

    def detokenize(self, tokens: Sequence[int]) -> str:
        self._check(tokens)
        return self._need().decode(list(tokens), skip_special_tokens=False)

    def bytes_of(self, token: int) -> bytes:
        """Empty where there is no tokenizer."""
        return self.detokenize([token]).encode() if self.has_tokenizer else b""

    def detokenizer(self, *, special: bool = False) -> "Detokenizer":
        """For one answer; with `special` the text has the special tokens too."""
        tokenizer = self._need()
        return Detokenizer(lambda tokens: tokenizer.decode(tokens, skip_special_tokens=not special))

    def _need(self) -> "Tokenizer":
        if self._tokenizer is None:
            raise UserError(f"there is no tokenizer; {self.note}")
        return self._tokenizer

    def _check(self, tokens: Sequence[int]) -> None:
        bad = [token for token in tokens if not 0 <= token < 1 << 31]
        if bad:
            raise UserError(f"{bad[0]} is not a token; write numbers from 0 to the size of the vocabulary")


class Detokenizer:
    """Decodes the tokens of one answer one by one. A character of several tokens comes with the last of them."""

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._shown: list[int] = []  # the last decoded tokens: some tokenizers decode spaces by the tokens before
        self._held: list[int] = []

    def feed(self, token: int) -> str:
        self._held.append(token)
        text = self._text()
        if text.endswith(_INCOMPLETE) and len(self._held) < _MOST_HELD_TOKENS:
            return ""
        self._shown, self._held = self._held, []
        return text

    def finish(self) -> str:
        text = self._text() if self._held else ""
        self._shown, self._held = self._held, []
        return text

    def _text(self) -> str:
        before = self._decode(self._shown) if self._shown else ""
        return self._decode(self._shown + self._held)[len(before) :]


def plain_prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as one text, because the runtime takes a single message of a user: the message after the system's
    text, or, for more messages, all of them with their roles."""
    turns = [(str(message.get("role", "user")), _content(message)) for message in messages]
    for role, _ in turns:
        if role not in _ROLES:
            raise UserError(f"a message of the role {role} needs the model's chat template; put it beside the model")
    if sum(role != "system" for role, _ in turns) <= 1:
        return "\n\n".join(text for _, text in turns if text)
    return "\n\n".join(f"{_ROLES[role]}: {text}" for role, text in turns)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part(part) for part in content)


def _part(part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    if kind == "text":
        return str(part.get("text", ""))
    if kind == "image_url":
        return IMAGE_TAG
    raise UserError(f"content of the type {kind} is unknown; there are text and image_url")


def _read_tokenizer(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except Exception as error:  # the library raises nothing more specific
        raise ModelError(f"{path} is damaged: {error}; fetch the file again") from error
    tokenizer.no_truncation()  # both may be set from training
    tokenizer.no_padding()
    return tokenizer
