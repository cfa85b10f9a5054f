"""The text form of a placement: `llama.cpp/cpu:t=4`, `PREFILL+DECODE` for a handover, or a server's address."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args
from urllib.parse import urlsplit

from trilithon.engines.base import Unit
from trilithon.errors import PlacementError
from trilithon.language import Message
from trilithon.suggestions import alternatives

__all__ = ["SHORT_NAMES", "PlacementSpec", "first_with_options", "parse_placement"]

_HALF_FORM = re.compile(r"(?P<engine>[\w.-]+)(?:@(?P<build>[\w.-]+))?/(?P<unit>cpu|gpu|npu)(?::(?P<options>.+))?")
# The plus sign between the halves of a handover; values of options may contain plus signs too.
_PLUS = re.compile(r"\+(?=[\w.-]+(?:@[\w.-]+)?/(?:cpu|gpu|npu)(?:[:+]|$))")
# The address of a server, and after it the model there: http://HOST:PORT#MODEL, or #model=MODEL,key=VARIABLE.
_SERVER_FORM = re.compile(r"https?:", re.IGNORECASE)
_SERVER_OPTION = re.compile(r"(?:^|,)(?=(?:model|key)=)")
# Option names → fields of Settings; any other name is an option of the engine.
SHORT_NAMES = {
    "t": "threads",
    "threads": "threads",
    "tb": "batch_threads",
    "mask": "cpus",
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
    """`ENGINE[@BUILD]/UNIT[:NAME=VALUE,...]`, parsed; with `prefill` it is the second half of `PREFILL+DECODE`.

    `http://HOST:PORT[#MODEL]` is the engine "http" on the unit "server", with the options address, model and key."""

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
    if _SERVER_FORM.match(text.strip()):
        return _parse_server(text.strip())
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


def _parse_server(text: str) -> PlacementSpec:
    """A path of the address is kept, but the `/v1` of OpenAI's base addresses is left out."""
    address, _, fragment = text.partition("#")
    try:
        parts = urlsplit(address)
        is_complete = bool(parts.hostname) and parts.port != 0 and address.isprintable() and " " not in address
    except ValueError:
        is_complete = False
    if is_complete and parts.username is not None:
        raise PlacementError(
            "placement {scheme}://…@{host}: what is in an address is stored with the results; "
            "put the server's key into the environment variable TRILITHON_SERVER_KEY",
            scheme=parts.scheme,
            host=parts.hostname,
        )
    if not is_complete or parts.query:
        raise PlacementError("placement {text}: write http://HOST:PORT, or http://HOST:PORT#MODEL", text=text)
    path = parts.path.rstrip("/").removesuffix("/v1")
    options = {"address": f"{parts.scheme}://{parts.netloc}{path}"}
    for word in filter(None, _SERVER_OPTION.split(fragment)):
        name, value = word.split("=", 1) if word.startswith(("model=", "key=")) else ("model", word)
        if not value.strip() or name in options:
            raise PlacementError(
                "placement {text}: write #MODEL, or #model=MODEL,key=VARIABLE, after the address", text=text
            )
        options[name] = value.strip()
    return PlacementSpec(text, "http", None, "server", options)


def _parse_half(text: str) -> PlacementSpec:
    match = _HALF_FORM.fullmatch(text.strip())
    if match is None:
        stated = re.fullmatch(r"[\w.@-]+/([\w.-]+)(?::.*)?", text.strip())
        if stated and stated[1] not in get_args(Unit):
            fix = alternatives(stated[1], [unit for unit in get_args(Unit) if unit != "server"])
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
