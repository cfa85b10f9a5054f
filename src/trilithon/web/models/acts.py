"""What can be done with a model from the page: the service's own doings, one name for each."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

from trilithon.serve.service import Service, pool_key, task_of
from trilithon.web.models.live import Live, model_of

__all__ = ["ACTS", "Act", "possible"]

Act = Literal["load", "unload", "pin", "unpin"]


async def _load(service: Service, name: str, caller: str) -> None:
    await service.load(name, caller, None)


async def _unload(service: Service, name: str, _: str) -> None:
    """And its pin, or it would come back at once."""
    await service.unload(name)


async def _pin(service: Service, name: str, caller: str) -> None:
    """Loaded first: what goes wrong is told to who asked for it. Then it is the placement that was loaded."""
    await service.load(name, caller, None)
    entry = await service.entry(name)
    for loaded in service.pool.loaded():
        if loaded.key == pool_key(entry, task_of(loaded.placement.file)):
            service.pool.pin(loaded.key, loaded.placement)


async def _unpin(service: Service, name: str, _: str) -> None:
    for key in service.pool.pinned:
        if model_of(key) == name:
            service.pool.unpin(key)


ACTS: Mapping[Act, Callable[[Service, str, str], Awaitable[None]]] = {
    "load": _load,
    "unload": _unload,
    "pin": _pin,
    "unpin": _unpin,
}
"""Each takes the service, the model's name and the caller. They raise TrilithonError."""


def possible(name: str, live: Live) -> frozenset[Act]:
    """What makes sense as things are."""
    there = any(model.state != "leaving" for model in live.of(name))
    acts: set[Act] = {"unload"} if there else {"load"}
    acts.add("unpin" if name in live.pinned else "pin")
    return frozenset(acts)
