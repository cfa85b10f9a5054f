"""Chat templates of Hugging Face models: read from the files beside the weights, and rendered.

A template is a program from the model's author. It runs in Jinja's sandbox, with the filters and globals that such
templates use, and with limits of time and size."""

import contextlib
import json
import resource
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilithon.board.sysfs import THIS_MACHINE, parse_kibibytes
from trilithon.errors import ModelError, UserError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.nodes import Node
    from jinja2.parser import Parser

__all__ = ["ChatTemplate", "for_template", "read_chat_template"]

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


_MOST_SECONDS = 5.0  # of CPU time; a template that ends takes milliseconds
_MOST_LETTERS = 32 << 20
_MOST_BYTES = 512 << 20  # a text of _MOST_LETTERS has up to 128 MiB, and its parts as much

# Python's errors in expressions of a template: "x" + 1, a missing key, a division by zero, a text of terabytes.
_EXPRESSION_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, MemoryError)


class ChatTemplate:
    """Raises ModelError for a text that is not a template. `with_tools` is used for requests with tools, `special` are
    the names and texts of special tokens, `where` is the file for error messages."""

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
        """The prompt for `messages`. Raises UserError where the template rejects them, or does not end."""
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
        except MemoryError as error:
            raise UserError(
                f"the model's chat template needs more than {_MOST_BYTES >> 20} MiB; use another one"
            ) from error
        except (TemplateError, *_EXPRESSION_ERRORS) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the model's chat template rejects this conversation: {reason}; change it") from error
        except (RecursionError, _DoesNotEnd) as error:
            raise UserError("the model's chat template does not end; use another conversion of the model") from error


class _DoesNotEnd(Exception):
    """A template takes too long, or writes more than any model can read."""


def _joined(pieces: Iterator[str]) -> str:
    parts, letters = [], 0
    for piece in pieces:
        parts.append(piece)
        letters += len(piece)
        if letters > _MOST_LETTERS:
            raise _DoesNotEnd
    return "".join(parts)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises _DoesNotEnd in a block that uses more CPU time, and MemoryError where it takes more than _MOST_BYTES. Only
    a signal can interrupt loops in Python's own code, and only the main thread gets signals. A server renders there; in
    other threads there is no limit. The timer counts the CPU time of all threads, so the handler compares that of this
    thread; that of the kernel counts too, which gives the memory."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    end = time.thread_time() + seconds

    def check(*_: object) -> None:
        if time.thread_time() > end:
            raise _DoesNotEnd

    before = signal.signal(signal.SIGPROF, check)
    signal.siginterrupt(signal.SIGPROF, False)  # system calls of other threads must not be interrupted
    signal.setitimer(signal.ITIMER_PROF, seconds / 10, seconds / 10)
    try:
        with _memory_limit():
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _memory_limit() -> Iterator[None]:
    """Of this process, which may have _MOST_BYTES of private memory more than it has. Under a limit that is lower
    already, that one counts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    present_bytes = parse_kibibytes(THIS_MACHINE.fields("/proc/self/status").get("VmData"))
    if present_bytes is not None:
        most = present_bytes + _MOST_BYTES
        limits = [limit for limit in (most, soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _compiled(text: str, where: Path) -> "Template":
    """Raises ModelError for a text that is not a template."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}` marks the answers of the model for training; it has no effect here."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's interface)

        def parse(self, parser: "Parser") -> "list[Node]":
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    try:
        with _limited(_MOST_SECONDS):  # constant expressions are computed here
            return environment.from_string(text)
    except (TemplateError, RecursionError, _DoesNotEnd, *_EXPRESSION_ERRORS) as error:
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
    """Without the escapes for HTML of Jinja's filter, which models do not know."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def for_template(message: Mapping[str, Any], content: str) -> dict[str, Any]:
    """The message with `content` as its text, and the arguments of calls as objects: requests have them as JSON in a
    text, which templates would quote again. Raises UserError for arguments that are not JSON."""
    converted = dict(message) | {"content": content}
    if calls := message.get("tool_calls"):
        converted["tool_calls"] = [_call(call) for call in calls]
    return converted


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"the arguments of a call of {function.get('name')} are not JSON: {error}") from error
    return dict(call) | {"function": function}


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """From chat_template.jinja, chat_template.json or tokenizer_config.json, in the order of Hugging Face's loader.
    Raises ModelError for a damaged file."""
    configuration = _json_object(folder / "tokenizer_config.json")
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        text = jinja.read_text(encoding="utf-8", errors="replace")
        return ChatTemplate(text, text, _special(configuration), jinja)
    for name in ("chat_template.json", "tokenizer_config.json"):
        templates = _json_object(folder / name).get("chat_template")
        if isinstance(templates, list):
            templates = {entry.get("name"): entry.get("template") for entry in templates if isinstance(entry, dict)}
        elif isinstance(templates, str):
            templates = {"default": templates}
        if isinstance(templates, dict) and isinstance(plain := templates.get("default"), str):
            with_tools = templates.get("tool_use")
            with_tools = with_tools if isinstance(with_tools, str) else plain
            return ChatTemplate(plain, with_tools, _special(configuration), folder / name)
    return None


def _special(configuration: Mapping[str, Any]) -> dict[str, str]:
    tokens = {name: configuration.get(name) for name in _SPECIAL}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _json_object(path: Path) -> dict[str, Any]:
    """Empty where there is no such file. Raises ModelError for one that is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}; fetch the file again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it is not a JSON object; fetch the file again")
    return content
