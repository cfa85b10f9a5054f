"""The fork of rk-llama.cpp that a back-end library belongs to, by names in its bytes: the library is not loaded."""

import mmap
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trilithon.tables import table_beside

__all__ = ["Backend", "facts", "read_backend"]

_VARIABLE = re.compile(rb"(?<![A-Z0-9_])(?:GGML_)?RKN(?:PU2?|N)_[A-Z0-9_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """`lineage` is the fork's name, or empty for another back end: `stranger` then says what it is. `variables` are the
    environment variables that it reads. facts.toml describes the other fields."""

    lineage: str
    stranger: str = ""
    variables: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    presence: frozenset[str] = frozenset()
    flash_attention: bool = False
    flash_attention_micro_batch: int | None = None


@cache
def facts() -> dict[str, Any]:
    return table_beside(__file__, "facts.toml")


@cache
def read_backend(library: Path, fingerprint: str) -> Backend:
    """The result is cached by `fingerprint`, which identifies the content. Raises OSError when it cannot be read."""
    variables = _variables(library)
    stranger = _matching(facts()["strangers"], variables)
    if stranger:
        return Backend(lineage="", stranger=stranger["name"])
    lineage = _matching(facts()["lineages"], variables)
    if not lineage:
        return Backend(lineage="", stranger=f"an unknown back end ({library.name})")
    return Backend(
        lineage=lineage["name"],
        variables=variables,
        types=frozenset(lineage["types"]),
        presence=frozenset(lineage.get("presence", ())),
        flash_attention=lineage["flash_attention"],
        flash_attention_micro_batch=lineage.get("flash_attention_micro_batch"),
    )


def _variables(library: Path) -> frozenset[str]:
    with library.open("rb") as file:
        if library.stat().st_size == 0:  # an empty file cannot be mapped
            return frozenset()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return frozenset(name.decode() for name in _VARIABLE.findall(content))


def _matching(table: list[dict[str, Any]], variables: frozenset[str]) -> dict[str, Any]:
    return next((entry for entry in table if variables & set(entry["signs"])), {})
