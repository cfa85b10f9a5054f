"""A conversation and its slash commands, without a terminal and without a server: what a line means, and what follows.

The words are Ollama's, so that hands that know them go on working."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from trilithon.errors import ModelError, UserError
from trilithon.models.store.parameters import Parameter, check_parameter, read_parameter
from trilithon.suggestions import alternatives

__all__ = ["HELP", "Leave", "Load", "Look", "More", "Save", "Send", "Step", "Subject", "Tell", "TerminalChat", "read"]

Subject = Literal["info", "system", "parameters", "template"]
Message = Mapping[str, Any]

HELP = '''\
/set parameter NAME VALUE   temperature, seed, num_predict, num_ctx, stop, …
/set system TEXT            the system prompt; """ begins and ends several lines
/set think [low | medium | high], /set nothink
/set verbose | quiet        how fast each answer was
/set format json | noformat answers in JSON
/show [info | system | parameters | template]
/save NAME, /load NAME      this conversation, and an earlier one
/clear                      forget what was said
/?                          this help
/bye                        leave (Ctrl-D too)
""" begins and ends a message of several lines. Ctrl-C stops an answer. Paths of images in a message are sent along.'''

_QUOTES = '"""'
_SUBJECTS = ("info", "system", "parameters", "template")
_EFFORTS = ("low", "medium", "high")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_ROLES = ("system", "user", "assistant", "tool")
_FORM = 1


@dataclass(frozen=True, slots=True)
class Send:
    """Ask the model this."""

    text: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Show the user this."""

    text: str


@dataclass(frozen=True, slots=True)
class Look:
    """Show the user what the server knows of the model."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class Save:
    name: str


@dataclass(frozen=True, slots=True)
class Load:
    name: str


@dataclass(frozen=True, slots=True)
class More:
    """Nothing yet: the next line goes on."""


@dataclass(frozen=True, slots=True)
class Leave:
    pass


Step = Send | Tell | Look | Save | Load | More | Leave


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalChat:
    """`messages` are Ollama's, without the system prompt. `think` None leaves it to the model. `begun` is what stands
    already in a text of several lines, None outside of one; `begins` the command that it belongs to, or empty."""

    model: str
    system: str = ""
    messages: tuple[Message, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    think: bool | str | None = None
    format: str | Mapping[str, Any] = ""
    verbose: bool = False
    begun: str | None = None
    begins: str = ""

    @property
    def prompt(self) -> str:
        return ">>> " if self.begun is None else "... "

    def asked(self, text: str, images: tuple[str, ...] = ()) -> "TerminalChat":
        """`images` in base64."""
        pictures = {"images": list(images)} if images else {}
        return replace(self, messages=(*self.messages, {"role": "user", "content": text, **pictures}))

    def answered(self, text: str) -> "TerminalChat":
        return replace(self, messages=(*self.messages, {"role": "assistant", "content": text}))

    def body(self) -> dict[str, Any]:
        """The request for the next answer, as Ollama's /api/chat takes it."""
        told: tuple[Message, ...] = ({"role": "system", "content": self.system},) if self.system else ()
        body: dict[str, Any] = {"model": self.model, "messages": [*told, *self.messages], "stream": True}
        if self.parameters:
            body["options"] = dict(self.parameters)
        if self.think is not None:
            body["think"] = self.think
        if self.format:
            body["format"] = self.format
        return body

    def to_json(self) -> str:
        kept = {name: getattr(self, name) for name in ("model", "system", "messages", "parameters", "think", "format")}
        return json.dumps({"form": _FORM, **kept}, indent=1, ensure_ascii=False) + "\n"

    def loaded(self, text: str) -> "TerminalChat":
        """The one that was kept as `text`, shown as this one is. Raises UserError for what is none."""
        try:
            return replace(_parsed(json.loads(text)), verbose=self.verbose)
        except (KeyError, TypeError, ValueError, ModelError, RecursionError) as error:
            raise UserError(
                "not a saved conversation ({reason}); save it again with /save NAME", reason=error
            ) from error


def read(talk: TerminalChat, line: str) -> tuple[TerminalChat, Step]:
    """What a line that the user wrote makes of the conversation, and what is to be done about it."""
    if talk.begun is not None:
        return _go_on(talk, line)
    if line.startswith(_QUOTES):
        return _go_on(replace(talk, begun=""), line.removeprefix(_QUOTES))
    word, _, rest = line.strip().partition(" ")
    if word in _COMMANDS:
        return _COMMANDS[word](talk, rest.strip())
    if re.fullmatch(r"/[a-z?]+", word):  # a path has more than one slash or a dot
        return talk, Tell(f"unknown command {word}; {alternatives(word, _COMMANDS)}")
    return (talk, Send(line.strip())) if line.strip() else (talk, More())


def _go_on(talk: TerminalChat, line: str) -> tuple[TerminalChat, Step]:
    """Another line of a text in triple quotes, the last one when it ends with them."""
    ended = line.rstrip().endswith(_QUOTES)
    text = f"{talk.begun}{line.rstrip().removesuffix(_QUOTES) if ended else line}"
    if not ended:
        return replace(talk, begun=f"{text}\n"), More()
    begins, talk = talk.begins, replace(talk, begun=None, begins="")
    if begins:
        return _set_system(talk, text)
    return (talk, Send(text.strip())) if text.strip() else (talk, More())


def _set(talk: TerminalChat, words: str) -> tuple[TerminalChat, Step]:
    what, _, rest = words.partition(" ")
    rest = rest.strip()
    match what, rest:
        case "parameter", _:
            return _set_parameter(talk, rest)
        case "system", _:
            if rest.startswith(_QUOTES):
                return _go_on(replace(talk, begun="", begins="system"), rest.removeprefix(_QUOTES))
            return _set_system(talk, rest)
        case "think", _ if rest in ("", *_EFFORTS):
            return replace(talk, think=rest or True), Tell("thinking is on")
        case "nothink", "":
            return replace(talk, think=False), Tell("thinking is off")
        case "verbose" | "quiet", "":
            shown = what == "verbose"
            return replace(talk, verbose=shown), Tell("timings are on" if shown else "timings are off")
        case "format", "json":
            return replace(talk, format="json"), Tell("JSON answers are on")
        case "noformat", "":
            return replace(talk, format=""), Tell("JSON answers are off")
    return talk, Tell(f"/set {words}: write one of the /set lines that /? shows")


def _set_system(talk: TerminalChat, text: str) -> tuple[TerminalChat, Step]:
    text = text.strip()
    told = "the system prompt is set" if text else "the model's own system prompt is used"
    return replace(talk, system=text), Tell(told)


def _set_parameter(talk: TerminalChat, words: str) -> tuple[TerminalChat, Step]:
    name, _, value = words.partition(" ")
    if not name or not value.strip():
        return talk, Tell("write /set parameter NAME VALUE, for example /set parameter temperature 0.2")
    try:
        parameter = read_parameter(name, value.strip())
    except ModelError as error:
        return talk, Tell(str(error))
    if isinstance(parameter, list) and isinstance(before := talk.parameters.get(name), list):
        parameter = [*before, *parameter]
    return replace(talk, parameters={**talk.parameters, name: parameter}), Tell(f"{name} is {_spelled(parameter)} now")


def _spelled(value: Parameter) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, list) else json.dumps(value)


def _show(talk: TerminalChat, words: str) -> tuple[TerminalChat, Step]:
    subject = words or "info"
    if subject == "system" and talk.system:
        return talk, Tell(talk.system)
    for known in _SUBJECTS:
        if subject == known:
            return talk, Look(known)  # type: ignore[arg-type] # _SUBJECTS has what Subject says
    return talk, Tell(f"/show {words}: write one of {', '.join(_SUBJECTS)}")


def _keep(talk: TerminalChat, name: str) -> tuple[TerminalChat, Step]:
    return talk, Save(name) if _NAME.fullmatch(name) else _no_name("save")


def _load(talk: TerminalChat, name: str) -> tuple[TerminalChat, Step]:
    return talk, Load(name) if _NAME.fullmatch(name) else _no_name("load")


def _no_name(command: str) -> Tell:
    return Tell(f"write /{command} NAME, the name of letters, digits, dot, dash and underscore")


def _clear(talk: TerminalChat, _: str) -> tuple[TerminalChat, Step]:
    return replace(talk, messages=()), Tell("the conversation is cleared")


def _help(talk: TerminalChat, _: str) -> tuple[TerminalChat, Step]:
    return talk, Tell(HELP)


def _leave(talk: TerminalChat, _: str) -> tuple[TerminalChat, Step]:
    return talk, Leave()


_COMMANDS = {
    "/set": _set,
    "/show": _show,
    "/save": _keep,
    "/load": _load,
    "/clear": _clear,
    "/?": _help,
    "/help": _help,
    "/bye": _leave,
    "/exit": _leave,
}


def _parsed(kept: Any) -> TerminalChat:
    if not isinstance(kept, dict) or kept.get("form") != _FORM:
        raise ValueError(f"its form is not {_FORM}")
    think, form = kept["think"], kept["format"]
    if not (isinstance(think, bool) or think in (None, *_EFFORTS)) or not isinstance(form, str | dict):
        raise ValueError("think and format do not fit")
    return TerminalChat(
        model=_text(kept["model"]),
        system=_text(kept["system"]),
        messages=tuple(map(_message, kept["messages"])),
        parameters={name: check_parameter(name, value) for name, value in kept["parameters"].items()},
        think=think,
        format=form,
    )


def _message(kept: Any) -> Message:
    if not isinstance(kept, dict) or kept.get("role") not in _ROLES:
        raise ValueError("a message without a role")
    images = kept.get("images", [])
    pictures = {"images": [_text(image) for image in images]} if images else {}
    return {"role": kept["role"], "content": _text(kept["content"]), **pictures}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is no text")
    return value
