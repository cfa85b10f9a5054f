"""A campaign's placements set on settings that hold before they are measured, and once further down when they fail in
use. What that gave up is told with every run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trilithon.bench.prepare import Prepared
from trilithon.engines.base import Placement
from trilithon.engines.table import engine
from trilithon.errors import RunError
from trilithon.runtime.fallback.search import Fallback, FallbackProbe, find_fallback, lower, probe
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
        self._standing: dict[tuple[str, str], Fallback] = {}
        self._lost: dict[tuple[str, str], RunError] = {}
        self._lowered: set[str] = set()
        self._reference: FallbackProbe | None = None

    async def find(self) -> Prepared:
        """The plan with each placement on its foothold. One that stands on none stays as it is: its runs will tell."""
        if any(self._is_unknown(half) for placement in self._prepared.placements for half in _halves(placement)):
            self._reference = await self._probe_reference()
        found = {placement.name: await self._stand(placement) for placement in self._prepared.placements}
        return replace(
            self._prepared,
            placements=tuple(found.values()),
            reference=found.get(self._prepared.reference.name, self._prepared.reference),
        )

    async def lower(self, placement: Placement, reason: RunError) -> Placement | None:
        """The same placement on the next rung that holds; None where there is none, or it was done before."""
        own = placement.name, placement.name
        standing = self._standing.get(own)
        if standing is None or placement.prefill is not None or placement.name in self._lowered:
            return None
        self._lowered.add(placement.name)
        try:
            found = await lower(
                engine(placement.build.engine, self._configuration),
                standing,
                reason,
                self._configuration,
                self._fresh_folder(),
                reference=self._reference,
                tell=self._tell,
            )
        except RunError:  # `reason` or another: nothing further down holds, and its own runs have told why
            return None
        self._standing[own] = found
        return found.placement

    def remarks(self, placement: Placement, logs: Sequence[str]) -> tuple[str, ...]:
        """What the user should know about a run of it that wrote `logs`, one per half, one line each."""
        halves = zip(_halves(placement), logs, strict=True)
        return tuple(dict.fromkeys(line for half, log in halves for line in self._remarks(placement, half, log)))

    def _remarks(self, placement: Placement, half: Placement, log: str) -> Iterator[str]:
        yield from engine(half.build.engine, self._configuration).remarks(half, log)
        key = placement.name, half.name
        if key in self._standing and self._standing[key].remark:
            yield self._standing[key].remark
        if key in self._lost:
            yield f"no settings were found that hold; the last tried ended so: {self._lost[key]}"

    async def _stand(self, placement: Placement) -> Placement:
        if placement.prefill is None:
            return await self._stand_half(placement.name, placement)
        first, second = [await self._stand_half(placement.name, half) for half in _halves(placement)]
        # Without flash attention V lies otherwise in the KV cache: the other half has to do without it too.
        safer = first if first.settings.flash_attention == "off" else second
        same = {name: getattr(safer.settings, name) for name in ("flash_attention", "kv_type_v")}
        first = replace(first, settings=replace(first.settings, **same))
        return replace(second, settings=replace(second.settings, **same), prefill=first)

    async def _stand_half(self, owner: str, placement: Placement) -> Placement:
        try:
            found = await find_fallback(
                engine(placement.build.engine, self._configuration),
                placement,
                self._configuration,
                self._fresh_folder(),
                reference=self._reference,
                tell=self._tell,
            )
        except RunError as error:
            self._lost[owner, placement.name] = error
            return placement
        self._standing[owner, placement.name] = found
        return found.placement if found.rung else placement

    def _is_unknown(self, placement: Placement) -> bool:
        ladder = engine(placement.build.engine, self._configuration).ladder(placement)
        return bool(ladder) and recall(self._configuration, placement) is None

    async def _probe_reference(self) -> FallbackProbe | None:
        """What the model says where quality is measured too; None where that is itself to be tried, or fails."""
        reference = self._prepared.reference
        if engine(reference.build.engine, self._configuration).ladder(reference):
            return None
        self._tell(f"{reference.name}: what the model says")
        try:
            async with open_runner(reference, self._fresh_folder(), self._configuration) as runner:
                return await probe(runner)
        except RunError:  # its own runs will tell
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
