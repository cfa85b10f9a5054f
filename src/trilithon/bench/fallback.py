"""A campaign's placements get settings that work before they are measured, and the next fallback step, once, when they
fail in use. Every run says what was given up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trilithon.bench.prepare import Prepared
from trilithon.engines.base import Placement
from trilithon.engines.table import engine
from trilithon.errors import RunError
from trilithon.runtime.fallback.search import Fallback, FallbackProbe, FallbackSearch, probe
from trilithon.runtime.fallback.store import recall
from trilithon.runtime.opening import open_runner

__all__ = ["FallbackState"]


class FallbackState:
    """`folder` is private; `tell` says what happens now."""

    def __init__(self, prepared: Prepared, folder: Path, tell: Callable[[str], None]):
        self._prepared = prepared
        self._configuration = prepared.configuration
        self._folder = folder
        self._folders = 0
        self._tell = tell
        # By the campaign's placement and its half.
        self._fallbacks: dict[tuple[str, str], Fallback] = {}
        self._failed: dict[tuple[str, str], RunError] = {}
        self._lowered: set[str] = set()
        self._probes: dict[str, FallbackProbe | None] = {}  # of references, by name

    async def find(self) -> Prepared:
        """The campaign with the fallback of every placement. A placement without one that works stays unchanged: its
        runs report the failure."""
        for placement in self._prepared.placements:
            reference = self._prepared.reference_of(placement)
            if reference.name not in self._probes and any(map(self._is_unknown, _halves(placement))):
                self._probes[reference.name] = await self._probe(reference)
        placements = {placement.name: await self._find(placement) for placement in self._prepared.placements}
        return replace(
            self._prepared,
            placements=tuple(placements.values()),
            reference=placements.get(self._prepared.reference.name, self._prepared.reference),
            references={path: placements.get(one.name, one) for path, one in self._prepared.references.items()},
        )

    async def lower(self, placement: Placement, reason: RunError) -> Placement | None:
        """The placement with the next fallback step that works; None where there is none, or it has had one already."""
        key = placement.name, placement.name
        fallback = self._fallbacks.get(key)
        if fallback is None or placement.prefill is not None or placement.name in self._lowered:
            return None
        self._lowered.add(placement.name)
        try:
            fallback = await self._search(fallback.planned).find_after(fallback, reason)
        except RunError:  # no later step works; the placement's own runs report why
            return None
        self._fallbacks[key] = fallback
        return fallback.placement

    def remarks(self, placement: Placement, logs: Sequence[str]) -> tuple[str, ...]:
        """What the user should know about a run, one line each. `logs` has the log of every half."""
        halves = zip(_halves(placement), logs, strict=True)
        return tuple(dict.fromkeys(line for half, log in halves for line in self._remarks(placement, half, log)))

    def _remarks(self, placement: Placement, half: Placement, log: str) -> Iterator[str]:
        yield from engine(half.build.engine, self._configuration).remarks(half, log)
        key = placement.name, half.name
        if key in self._fallbacks and self._fallbacks[key].remark:
            yield self._fallbacks[key].remark
        if key in self._failed:
            yield f"no working settings were found; the last attempt failed: {self._failed[key]}"

    async def _find(self, placement: Placement) -> Placement:
        if placement.prefill is None:
            return await self._find_half(placement.name, placement)
        first, second = [await self._find_half(placement.name, half) for half in _halves(placement)]
        # Without flash attention, V has another layout in the KV cache: both halves must do without it.
        safer = first if first.settings.flash_attention == "off" else second
        same = {name: getattr(safer.settings, name) for name in ("flash_attention", "kv_type_v")}
        first = replace(first, settings=replace(first.settings, **same))
        return replace(second, settings=replace(second.settings, **same), prefill=first)

    async def _find_half(self, owner: str, placement: Placement) -> Placement:
        try:
            fallback = await self._search(placement).find()
        except RunError as error:
            self._failed[owner, placement.name] = error
            return placement
        self._fallbacks[owner, placement.name] = fallback
        return fallback.placement if fallback.step else placement

    def _search(self, placement: Placement) -> FallbackSearch:
        return FallbackSearch(
            engine(placement.build.engine, self._configuration),
            placement,
            self._configuration,
            self._fresh_folder(),
            reference=self._probes.get(self._prepared.reference_of(placement).name),
            tell=self._tell,
        )

    def _is_unknown(self, placement: Placement) -> bool:
        steps = engine(placement.build.engine, self._configuration).fallback_steps(placement)
        return bool(steps) and recall(self._configuration, placement) is None

    async def _probe(self, reference: Placement) -> FallbackProbe | None:
        """The probe of a reference placement; None where that one may need a fallback itself, or fails."""
        if engine(reference.build.engine, self._configuration).fallback_steps(reference):
            return None
        self._tell(f"{reference.name}: reading its answers for comparison")
        try:
            async with open_runner(reference, self._fresh_folder(), self._configuration) as runner:
                return await probe(runner)
        except RunError:  # its own runs report it
            return None

    def _fresh_folder(self) -> Path:
        self._folders += 1
        folder = self._folder / str(self._folders)
        folder.mkdir(parents=True)
        return folder


def _halves(placement: Placement) -> tuple[Placement, ...]:
    """A handover's two, prefill first; else the placement alone."""
    if placement.prefill is None:
        return (placement,)
    return placement.prefill, replace(placement, prefill=None)
