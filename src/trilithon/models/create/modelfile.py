"""Parses Ollama's Modelfile, and writes one for a model of the store.

The grammar is that of parser/parser.go in Ollama: each line has a command and its value; a value that begins with `"`
or triple quotes ends with a line that ends with the same; `#` begins a comment only at the beginning of a line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trilithon.errors import ModelError
from trilithon.language import Message
from trilithon.models.store.manifest import Manifest, PresetMessage
from trilithon.models.store.parameters import IGNORED_PARAMETERS, Parameter, read_parameter
from trilithon.suggestions import alternatives

__all__ = ["Modelfile", "parse_modelfile", "to_modelfile"]

_COMMAND = re.compile(r"[ \t]*([A-Za-z]+)[ \t](.*)", re.DOTALL)
# A line of RKLLAMA's, where no command of Ollama's has that form.
_ASSIGNMENT = re.compile(
    r"[ \t]*(?:export[ \t]+)?(?:([A-Za-z_][A-Za-z0-9_.]*)(?:=|[ \t]*=[ \t]*[\"'])|(FROM)[ \t]*=)", re.IGNORECASE
)
_WORD_AND_VALUE = re.compile(r"[ \t]*([A-Za-z0-9_]+)[ \t](.*)", re.DOTALL)
_COMMANDS = ("FROM", "PARAMETER", "SYSTEM", "TEMPLATE", "ADAPTER", "MESSAGE", "LICENSE")
_IGNORED = ("DRAFT", "PARSER", "RENDERER", "REQUIRES")
_ROLES = ("system", "user", "assistant")
_QUOTES = ('"""', '"')
_MOST_CHARACTERS = 16 << 20
_OPEN = 'the text begins with " and ends after other commands; write """ before and after it'


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelfile:
    """The commands of a Modelfile. `system` and `template` are None without such a command, and empty where it removes
    them. `sources` are names or paths; of several, one has the weights. `ignored` are commands without effect here, as
    they are written, and parameters of older Ollama versions."""

    sources: tuple[str, ...]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    system: str | None = None
    template: str | None = None
    adapters: tuple[str, ...] = ()
    messages: tuple[PresetMessage, ...] = ()
    licenses: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Command:
    line: int
    name: str
    value: str


def parse_modelfile(text: str) -> Modelfile:
    """Raises ModelError, with the number of the line, for a text that is not a Modelfile."""
    if len(text) > _MOST_CHARACTERS or "\0" in text:
        raise ModelError("this is not a Modelfile, which is a short text with FROM")
    commands = list(_commands(text))
    sources = _values(commands, "FROM")
    if not sources:
        raise ModelError("the Modelfile has no FROM; write FROM and a name or a path")
    return Modelfile(
        sources=sources,
        parameters=_parameters(commands),
        system=_last(_values(commands, "SYSTEM")),
        template=_last(_values(commands, "TEMPLATE")),
        adapters=_values(commands, "ADAPTER"),
        messages=tuple(map(_message, (command for command in commands if command.name == "MESSAGE"))),
        licenses=_values(commands, "LICENSE"),
        ignored=tuple(_ignored(commands)),
    )


def to_modelfile(manifest: Manifest) -> str:
    """A Modelfile from which `trilithon create` makes the same model: FROM with its name, and its settings.

    Raises ModelError for a text that the grammar cannot express: one with a line that ends with triple quotes."""
    lines = [f"FROM {manifest.name}"]
    for name, value in sorted(manifest.parameters.items()):
        lines += [f"PARAMETER {name} {_quoted(text, name)}" for text in _texts(value)]
    for command, text in (("SYSTEM", manifest.system), ("TEMPLATE", manifest.template)):
        if text:
            lines.append(f"{command} {_quoted(text, command)}")
    lines += [f"MESSAGE {message.role} {_quoted(message.content, 'MESSAGE')}" for message in manifest.messages]
    return "\n".join(lines) + "\n"


# Reading


def _commands(text: str) -> Iterator[_Command]:
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    at = 0
    while at < len(lines):
        line, number = lines[at], at + 1
        at += 1
        if not line.strip(" \t") or line.lstrip(" \t").startswith("#"):
            continue
        if assignment := _ASSIGNMENT.match(line):
            raise _mistake(number, _of_rkllama(assignment[1] or assignment[2]))
        match = _COMMAND.fullmatch(line)
        name = match[1].upper() if match else _first_word(line)
        if match is None or name not in (*_COMMANDS, *_IGNORED):
            raise _mistake(number, _unknown(name))
        prefix, value = _prefix(name, match[2], number)
        value, at = _unquoted(value, lines, at)
        yield _Command(number, name, prefix + value)


def _first_word(line: str) -> str:
    """In capitals where it may be a command, else as it is written."""
    word = (line.split(maxsplit=1) or [line])[0]
    return word.upper() if word.isalpha() else word


def _prefix(name: str, rest: str, number: int) -> tuple[str, str]:
    """The word before the value of PARAMETER and MESSAGE, with a space; and the rest of the line."""
    if name not in ("PARAMETER", "MESSAGE"):
        return "", rest
    match = _WORD_AND_VALUE.fullmatch(rest)
    if match is None:
        what = "a name" if name == "PARAMETER" else "a role"
        raise _mistake(number, f"{name} without a value; write {name}, {what} and the value")
    return f"{match[1]} ", match[2]


def _unquoted(value: str, lines: Sequence[str], following: int) -> tuple[str, int]:
    """The value without its quotes, and the number of the next line."""
    start = value.lstrip()
    quote = next((quote for quote in _QUOTES if start.startswith(quote)), "")
    if not quote:
        return value.strip(), following
    if start.rstrip().endswith(quote) and len(start.rstrip()) >= 2 * len(quote):
        return start.rstrip()[len(quote) : -len(quote)], following
    for at in range(following, len(lines)):
        if (end := lines[at].rstrip()).endswith(quote):
            if quote == '"' and '"' in start[1:] and any(map(_is_command, lines[following : at + 1])):
                raise _mistake(following, _OPEN)
            return "\n".join([start, *lines[following:at], end])[len(quote) : -len(quote)], at + 1
    raise _mistake(following, f"the text does not end; write {quote} at the end of its last line")


def _is_command(line: str) -> bool:
    """Whether a line within a text is rather a command that the text would swallow."""
    match = _COMMAND.fullmatch(line)
    return match is not None and match[1] in _COMMANDS


def _parameters(commands: Sequence[_Command]) -> dict[str, Parameter]:
    """`stop` may be repeated; of other parameters the last one counts."""
    parameters: dict[str, Parameter] = {}
    for command in commands:
        name, _, text = command.value.partition(" ")
        if command.name != "PARAMETER" or name in IGNORED_PARAMETERS:
            continue
        try:
            value = read_parameter(name, text)
        except ModelError as error:
            raise _mistake(command.line, str(error)) from error
        previous = parameters.get(name)
        parameters[name] = [*previous, *value] if isinstance(previous, list) and isinstance(value, list) else value
    return parameters


def _message(command: _Command) -> PresetMessage:
    role, _, content = command.value.partition(" ")
    if role not in _ROLES:
        raise _mistake(command.line, f"MESSAGE has the unknown role {role[:80]!r}; write {', '.join(_ROLES)}")
    return PresetMessage(role, content)


def _ignored(commands: Sequence[_Command]) -> Iterator[str]:
    for command in commands:
        name = command.value.partition(" ")[0]
        if command.name in _IGNORED:
            yield f"{command.name} {command.value[:80]}"
        elif command.name == "PARAMETER" and name in IGNORED_PARAMETERS:
            yield f"PARAMETER {name}"


def _values(commands: Sequence[_Command], name: str) -> tuple[str, ...]:
    matching = [command for command in commands if command.name == name]
    for command in matching:
        if not command.value and name in ("FROM", "ADAPTER"):
            raise _mistake(command.line, f"{name} without a value; write a name or a path after it")
    return tuple(command.value for command in matching)


def _last(values: Sequence[str]) -> str | None:
    return values[-1] if values else None


def _of_rkllama(name: str) -> str:
    return (
        f"{name[:40]}=… is RKLLAMA's form of a Modelfile, and create reads Ollama's; use the model in place: "
        "trilithon adopt FOLDER, the folder of this Modelfile"
    )


def _unknown(name: str) -> str:
    if name in (*_COMMANDS, *_IGNORED):
        return f"{name} without a value; write it on the same line"
    fix = alternatives(name, (*_COMMANDS, *_IGNORED))
    return Message("unknown command {name!r}; {fix}", name=name[:80], fix=fix)


def _mistake(line: int, message: str) -> ModelError:
    return ModelError("line {line} of the Modelfile: {message}", line=line, message=message)


# Writing


def _texts(value: Parameter) -> Sequence[str]:
    if isinstance(value, bool):
        return ["true" if value else "false"]
    return value if isinstance(value, list) else [str(value)]


def _quoted(text: str, what: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text and "\n" not in text and text == text.strip() and not text.startswith('"'):
        return text
    if '"' not in text:
        return f'"{text}"'
    if any(line.rstrip().endswith('"""') for line in text.split("\n")[:-1]):
        raise ModelError(
            'the text of {what} has a line that ends with """, which a Modelfile cannot express; change it', what=what
        )
    return f'"""{text}"""'
