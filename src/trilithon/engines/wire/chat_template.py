"""Chat templates as Hugging Face's models bring them: read from the files beside the weights, and rendered.

A template is a program that somebody else wrote. It runs in Jinja's sandbox, with what such templates count on and
nothing more."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilithon.errors import ModelError, UserError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.nodes import Node
    from jinja2.parser import Parser

__all__ = ["ChatTemplate", "read_chat_template"]

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


_MOST_SECONDS = 5.0  # of computing; what is not meant to go on for ever takes milliseconds
_MOST_LETTERS = 32 << 20

# What a template's expressions raise is Python's own: "x" + 1, a missing key, a division by zero, a text of terabytes.
_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, MemoryError)


class ChatTemplate:
    def __init__(self, plain: str, with_tools: str, special: Mapping[str, str], where: Path):
        self._special = dict(special)
        self._plain = _compiled(plain, where)
        self._with_tools = self._plain if with_tools == plain else _compiled(with_tools, where)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: list[Mapping[str, Any]],
        enable_thinking: bool | None,
        generation_prompt: bool,
    ) -> str:
        from jinja2 import TemplateError

        variables = self._special | {
            "messages": messages,
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": generation_prompt,
        }
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        template = self._with_tools if tools else self._plain
        try:
            with _limited(_MOST_SECONDS):
                return _joined(template.generate(variables))
        except (TemplateError, *_FAULTS) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the model's chat template refuses this conversation: {reason}; change it") from error
        except (RecursionError, _NeverEnds) as error:
            raise UserError("the model's chat template never ends; take another conversion of the model") from error


class _NeverEnds(Exception):
    """A template computes on and on, or writes more than any model reads."""


def _joined(pieces: Iterator[str]) -> str:
    joined, letters = [], 0
    for piece in pieces:
        joined.append(piece)
        letters += len(piece)
        if letters > _MOST_LETTERS:
            raise _NeverEnds
    return "".join(joined)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises _NeverEnds in what runs for longer. Only a signal can break off Python's own loops, and it comes to the
    main thread alone, which is where a server renders; elsewhere there is no limit. The runtime's threads compute
    too, so the process's clock rings, and this thread's own decides."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    end = time.thread_time() + seconds

    def look(*_: object) -> None:
        if time.thread_time() > end:
            raise _NeverEnds

    before = signal.signal(signal.SIGVTALRM, look)
    signal.siginterrupt(signal.SIGVTALRM, False)  # the driver's calls in those threads are not to be broken off
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds / 10, seconds / 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _compiled(text: str, where: Path) -> "Template":
    """Raises ModelError for what is no template."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}` marks for training what the model said; here it means nothing."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's form

        def parse(self, parser: "Parser") -> "list[Node]":
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    try:
        with _limited(_MOST_SECONDS):  # constant expressions are computed here already
            return environment.from_string(text)
    except (TemplateError, RecursionError, _NeverEnds, *_FAULTS) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{where}: the chat template is damaged: {reason}; fetch the file again") from error


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes for HTML, which no model has learnt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """From chat_template.jinja, chat_template.json or tokenizer_config.json, as Hugging Face's loader looks."""
    configuration = _json_object(folder / "tokenizer_config.json")
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        text = jinja.read_text(encoding="utf-8", errors="replace")
        return ChatTemplate(text, text, _special(configuration), jinja)
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _json_object(folder / name).get("chat_template")
        if isinstance(found, list):
            found = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        elif isinstance(found, str):
            found = {"default": found}
        if isinstance(found, dict) and isinstance(plain := found.get("default"), str):
            with_tools = found.get("tool_use")
            chosen = with_tools if isinstance(with_tools, str) else plain
            return ChatTemplate(plain, chosen, _special(configuration), folder / name)
    return None


def _special(configuration: Mapping[str, Any]) -> dict[str, str]:
    found = {name: configuration.get(name) for name in _SPECIAL}
    plain = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: token for name, token in plain.items() if isinstance(token, str)}


def _json_object(path: Path) -> dict[str, Any]:
    """Empty where there is no such file. Raises ModelError for one that is damaged."""
    try:
        json_object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}; fetch the file again") from error
    if not isinstance(json_object, dict):
        raise ModelError(f"{path} is damaged: it holds no object; fetch the file again")
    return json_object
