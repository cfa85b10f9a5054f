"""The scripted engine: no model, but a script of speeds, text and faults, behind the protocol of the real engines.

Tests use it for everything above the protocol, and users can try a campaign, a crash or a handover on a machine without
a model. Its options are the fields of `Script`."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, get_args

from trilithon import __version__
from trilithon.board.snapshot import Board
from trilithon.engines.base import Build, FallbackStep, Feature, Launch, Placement, Settings, Unit
from trilithon.engines.placement_spec import SHORT_NAMES
from trilithon.engines.variables import Choice, Variable, shell_line
from trilithon.errors import UserError
from trilithon.language import Message
from trilithon.models.files.model_file import ModelFile
from trilithon.settings import Configuration
from trilithon.suggestions import alternatives
from trilithon.units import parse_duration

__all__ = ["FAULTS", "Script", "ScriptedEngine"]

_TEXT = (
    "A trilithon is the simplest gate that people have ever built: two upright stones and a third one laid across "
    "them. None of the three could stand as a gate alone. The uprights carry the weight, and the lintel holds them "
    "together, so that wind and frost move them less. The builders shaped each stone with patience, measured twice, "
    "and only then lifted it into place. Thousands of years later the gate still stands, because every part does "
    "what it does best."
)

_DEFAULT_CONTEXT = 4096

# Fields of Script that are faults; `flaky` limits them to the first starts.
FAULTS: Final = (
    "crash_after",
    "die_slowly",
    "error_after",
    "exit_after",
    "hang_after",
    "hang_start",
    "oom_after",
    "refuse_requests",
    "refuse_start",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What the scripted engine does. Each field is an option of the same name.

    `prefill` and `decode` are in tokens per second, and `speedup` is a factor of both; `noise` is the relative
    standard deviation of each request's rates; `load` is the time until it is ready, in seconds; `memory` is
    allocated and touched, in bytes. `wrong` is the fraction of positions with another next-token distribution than
    without it. `garbage` ("loop", "noise", "empty") replaces `text`. Faults that end in `_after`, and `die_slowly`,
    count the tokens generated since the start of the process: at that count it dies by SIGSEGV (crash) or SIGKILL
    (oom), exits with `exit_code` (exit), stops sending (hang), answers with an error (error), or gets slower and
    then dies by SIGABRT (die_slowly). `refuse_start` and `refuse_requests` are the messages to give. With `flaky`
    the faults happen only in that many first starts, counted in `flaky_file`. `vary` is what `tune` may change:
    "decode:90|decode:120&wrong:1;prefill:900" are two variables, and the first has two choices beside the default;
    settings of every engine may stand there too, as in "mask:4-7&t:4". Without `seed`, processes differ as real
    ones do."""

    prefill: float = 800.0
    decode: float = 60.0
    speedup: float = 1.0
    noise: float = 0.01
    seed: int | None = None
    load: float = 0.0
    memory: int = 0
    text: str = _TEXT
    thinking: str = ""
    wrong: float = 0.0
    garbage: str = ""
    crash_after: int | None = None
    die_slowly: int | None = None
    error_after: int | None = None
    exit_after: int | None = None
    exit_code: int = 1
    hang_after: int | None = None
    hang_start: bool = False
    oom_after: int | None = None
    refuse_requests: str = ""
    refuse_start: str = ""
    flaky: int | None = None
    flaky_file: str = ""
    vary: str = ""

    @classmethod
    def parse(cls, options: Iterable[tuple[str, str]]) -> "Script":
        """Raises UserError, naming the option and the fix, for an unknown name or an invalid value."""
        values: dict[str, Any] = {}
        for name, text in options:
            if name not in _PARSE:
                raise UserError(
                    Message("scripted: unknown option {name}; {fix}", name=name, fix=alternatives(name, _PARSE))
                )
            values[name] = _PARSE[name](name, text)
        script = cls(**values)
        script._check()
        return script

    def _check(self) -> None:
        if (self.flaky is None) != (not self.flaky_file):
            raise UserError(
                "scripted: flaky and flaky_file go together; give both, for example flaky=2 flaky_file=starts"
            )
        if self.flaky is not None and self == self.without_faults():
            raise UserError("scripted: flaky without a fault does nothing; add one, for example crash_after=3")

    def variables(self) -> tuple[Variable, ...]:
        """Those of `vary`. A choice that makes answers wrong is lossy."""
        return tuple(
            Variable(name=f"variable {number}", choices=(Choice(), *map(_choice, text.split("|"))), expected_gain=0.5)
            for number, text in enumerate(filter(None, self.vary.split(";")))
        )

    def without_faults(self) -> "Script":
        defaults: dict[str, Any] = {field.name: field.default for field in fields(self)}
        return replace(self, **{name: defaults[name] for name in FAULTS})


def _number(low: float, high: float, fix: str, *, low_counts: bool = True) -> Callable[[str, str], float]:
    def parse(name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high) or math.isinf(value) or (value == low and not low_counts):
            raise UserError(f"scripted: {name} = {text!r} is not valid; write {fix}")
        return value

    return parse


def _integer(low: int, fix: str) -> Callable[[str, str], int]:
    def parse(name: str, text: str) -> int:
        if not text.strip().removeprefix("-").isdecimal() or int(text) < low:
            raise UserError(f"scripted: {name} = {text!r} is not valid; write {fix}")
        return int(text)

    return parse


def _text(name: str, text: str) -> str:
    if not text.strip():
        raise UserError(f"scripted: {name} is empty; write a text, or leave it out")
    return text


def _choice(text: str) -> Choice:
    options = dict(word.split(":", 1) for word in text.split("&"))
    return Choice(options=options, lossy=bool(options.keys() & {"wrong", "garbage"}))


def _vary(name: str, text: str) -> str:
    """Raises UserError for a choice that is no valid script."""
    for word in text.replace(";", "|").split("|"):
        pairs = [pair.partition(":") for pair in word.split("&")]
        if not all(colon for _, colon, _ in pairs) or any(option == "vary" for option, _, _ in pairs):
            raise UserError(f"scripted: {name} = {text!r} is not valid; write decode:90|decode:120&wrong:1;prefill:900")
        Script.parse((option, value) for option, _, value in pairs if option not in SHORT_NAMES)
    return text


def _one_of(*words: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if text not in words:
            raise UserError(f"scripted: {name} = {text!r} is not valid; write one of {', '.join(words)}")
        return text

    return parse


def _yes_no(name: str, text: str) -> bool:
    return _one_of("yes", "no")(name, text) == "yes"


def _exit_code(name: str, text: str) -> int:
    code = _integer(0, "a number from 0 to 255")(name, text)
    if code > 255:
        raise UserError(f"scripted: {name} = {text!r} is not valid; write a number from 0 to 255")
    return code


_rate = _number(0, 1e7, "tokens per second, for example 60", low_counts=False)
_count = _integer(0, "a number of tokens, 0 or more")

_PARSE: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "prefill": _rate,
    "decode": _rate,
    "speedup": _number(0, 1000, "a factor, for example 1.5", low_counts=False),
    "noise": _number(0, 0.5, "a fraction from 0 to 0.5, for example 0.01"),
    "seed": _integer(0, "a whole number"),
    "load": lambda name, text: parse_duration(text, name=f"scripted: {name}"),
    "memory": _integer(0, "a number of bytes"),
    "text": _text,
    "thinking": _text,
    "wrong": _number(0, 1, "a fraction from 0 to 1"),
    "garbage": _one_of("loop", "noise", "empty"),
    "crash_after": _count,
    "die_slowly": _count,
    "error_after": _count,
    "exit_after": _count,
    "exit_code": _exit_code,
    "hang_after": _count,
    "hang_start": _yes_no,
    "oom_after": _count,
    "refuse_requests": _text,
    "refuse_start": _text,
    "flaky": _integer(1, "a number of starts, 1 or more"),
    "flaky_file": _text,
    "vary": _vary,
}


class ScriptedEngine:
    """Runs any file on any unit, and accepts images: the script decides the answer. Tools and grammars are refused: a
    script does not obey them."""

    name = "scripted"
    only_when_named = True
    simulated = True

    def __init__(self, _: Configuration | None = None) -> None:
        """Engines are constructed with the configuration; this one does not use it."""

    def builds(self) -> list[Build]:
        return [
            Build(
                engine=self.name,
                name="builtin",
                version=__version__,
                units=("cpu", "gpu", "npu"),
                features=frozenset(get_args(Feature)) - {"speculation", "grammar", "llguidance"},
                where="trilithon",
                simulated=True,
            )
        ]

    def missing(self) -> str:
        return ""

    def problems(self) -> tuple[str, ...]:
        return ()

    def refusal(self, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        if unit not in build.units:
            return f"{build.engine} has no unit {unit}; use one of {', '.join(build.units)}"
        try:
            Script.parse(settings.options)
        except UserError as error:
            return str(error)
        return ""

    def launch(self, placement: Placement, folder: Path) -> Launch:
        socket, settings = folder / "wire.sock", placement.settings
        arguments = {
            "--socket": str(socket),
            "--script": json.dumps(dict(settings.options)),
            "--model": str(placement.file.path),
            "--context": str(settings.context or _DEFAULT_CONTEXT),
            "--batch": str(settings.batch),
            "--slots": str(settings.slots),
            "--slot-save-path": str(folder / "slots"),
        }
        flags = tuple(word for pair in arguments.items() for word in pair)
        return Launch(
            argv=(sys.executable, "-P", "-m", "trilithon.engines.scripted.child.server", *flags),
            socket=socket,
            cpus=settings.cpus,
        )

    def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
        return ()

    def variables(self, placement: Placement, board: Board, depth: int) -> tuple[Variable, ...]:
        del board, depth
        return Script.parse(placement.settings.options).variables()

    def by_hand(self, placement: Placement) -> str:
        argv = self.launch(placement, Path("folder")).argv
        return shell_line(argv, placement)

    def remarks(self, placement: Placement, log: str) -> tuple[str, ...]:
        return ()
