"""Handovers among the placements to choose from, and settings of their two halves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trilithon.engines.base import Placement, Settings
from trilithon.engines.placement_spec import PlacementSpec, parse_placement
from trilithon.engines.placing import builds_of
from trilithon.engines.variables import Variable
from trilithon.settings import Configuration

__all__ = ["Knob", "halves", "handovers", "settings_of", "with_options"]


@dataclass(frozen=True, slots=True)
class Knob:
    """A variable, and whether it is one of the prefilling half of a handover."""

    variable: Variable
    of_prefill: bool


def handovers(specs: Sequence[PlacementSpec], configuration: Configuration) -> list[PlacementSpec]:
    """From each GPU and NPU among `specs` to each CPU, where both builds can and none is named. Raises PlacementError
    for a placement without a build."""
    if any(spec.prefill is not None for spec in specs):
        return []
    able = [spec for spec in specs if "handover" in builds_of(spec, configuration)[0].features]
    prefillers, decoders = ([spec for spec in able if (spec.unit == "cpu") == is_cpu] for is_cpu in (False, True))
    return [replace(second, prefill=first) for first in prefillers for second in decoders]


def with_options(
    spec: PlacementSpec, options: Mapping[str, str] | None = None, of_prefill: Mapping[str, str] | None = None
) -> PlacementSpec:
    """With further options, those of the prefilling half apart."""
    halves_and_options = [(spec, options)] if spec.prefill is None else [(spec.prefill, of_prefill), (spec, options)]
    return parse_placement("+".join(_spelled(half, more or {}) for half, more in halves_and_options))


def halves(placement: Placement) -> tuple[Placement, ...]:
    """A handover's two as placements of their own; any other placement itself."""
    first = placement.prefill
    if first is None:
        return (placement,)
    return first, replace(placement, name=placement.name.removeprefix(f"{first.name}+"), prefill=None)


def settings_of(placement: Placement) -> tuple[Settings, ...]:
    return tuple(half.settings for half in halves(placement))


def _spelled(spec: PlacementSpec, more: Mapping[str, str]) -> str:
    if not more:
        return spec.text
    text = ",".join(f"{name}={value}" for name, value in {**spec.options, **more}.items())
    return f"{spec.text.partition(':')[0]}:{text}"
