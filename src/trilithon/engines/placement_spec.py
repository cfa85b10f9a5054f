"""The text form of a placement: `llama.cpp/cpu:t=4`, or `PREFILL+DECODE` for a handover."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from trilithon.engines.base import Unit
from trilithon.errors import PlacementError
from trilithon.language import Message
from trilithon.suggestions import alternatives

__all__ = ["SHORT_NAMES", "PlacementSpec", "first_with_options", "parse_placement"]

_HALF_FORM = re.compile(r"(?P<engine>[\w.-]+)(?:@(?P<build>[\w.-]+))?/(?P<unit>cpu|gpu|npu)(?::(?P<options>.+))?")
# The plus sign between the halves of a handover; values of options may contain plus signs too.
_PLUS = re.compile(r"\+(?=[\w.-]+(?:@[\w.-]+)?/(?:cpu|gpu|npu)(?:[:+]|$))")
# Option names → fields of Settings; any other name is an option of the engine.
SHORT_NAMES = {
    "t": "threads",
    "threads": "threads",
    "ub": "micro_batch",
    "b": "batch",
    "c": "context",
    "ctk": "kv_type_k",
    "ctv": "kv_type_v",
    "fa": "flash_attention",
    "np": "slots",
    "spec": "speculation",
}


@dataclass(frozen=True, slots=True)
class PlacementSpec:
    """`ENGINE[@BUILD]/UNIT[:NAME=VALUE,...]`, parsed; with `prefill` it is the second half of `PREFILL+DECODE`."""

    text: str
    engine: str
    build: str | None
    unit: Unit
    options: Mapping[str, str]
    prefill: "PlacementSpec | None" = None

    @property
    def name(self) -> str:
        return f"{self.prefill.text}+{self.text}" if self.prefill else self.text


def parse_placement(text: str) -> PlacementSpec:
    """Raises PlacementError for a text of another form."""
    halves = [_parse_half(half) for half in _PLUS.split(text.strip())]
    if len(halves) > 2:
        raise PlacementError("placement {text}: a handover has two halves, PREFILL+DECODE", text=text)
    return halves[0] if len(halves) == 1 else replace(halves[1], prefill=halves[0])


def first_with_options(
    specs: Sequence[PlacementSpec], options: Mapping[str, str], runs: Callable[[PlacementSpec], bool]
) -> PlacementSpec:
    """The first of `specs`, which have no options, that runs with these; if none does, with those that every engine
    knows; else the first without any."""
    common = {name: value for name, value in options.items() if name in SHORT_NAMES}
    for chosen in (options, common):
        words = ",".join(f"{name}={value}" for name, value in chosen.items())
        candidates = (parse_placement(f"{spec.text}:{words}") for spec in specs if words)
        if (running := next(filter(runs, candidates), None)) is not None:
            return running
    return specs[0]


def _parse_half(text: str) -> PlacementSpec:
    match = _HALF_FORM.fullmatch(text.strip())
    if match is None:
        if stated := re.fullmatch(r"[\w.@-]+/([\w.-]+)(?::.*)?", text.strip()):
            fix = alternatives(stated[1], get_args(Unit))
            raise PlacementError(
                Message("placement {text}: unknown unit {unit}; {fix}", text=text, unit=stated[1], fix=fix)
            )
        raise PlacementError(
            "placement {text}: write ENGINE/UNIT, for example llama.cpp/cpu or llama.cpp/cpu:t=4", text=text
        )
    options: dict[str, str] = {}
    for word in (match["options"] or "").split(","):
        name, equals, value = word.partition("=")
        if not word:
            continue
        if not equals:
            raise PlacementError("placement {text}: write {name}=VALUE after the colon", text=text, name=name)
        name = name.strip()
        if SHORT_NAMES.get(name, name) in {SHORT_NAMES.get(known, known) for known in options}:
            raise PlacementError("placement {text}: {name} is given twice", text=text, name=name)
        options[name] = value.strip()
    unit: Any = match["unit"]
    return PlacementSpec(text.strip(), match["engine"], match["build"], unit, options)
