"""SIGHUP: config.toml is read again, and a running server takes of it what needs no restart."""

import asyncio
import dataclasses
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from trilithon.cli.serve.listening import notify
from trilithon.cli.serve.process import pinned_placement
from trilithon.cli.serve.settings import RELOADED, options_of
from trilithon.cli.serve.wanted import Typed, Wanted, wanted
from trilithon.engines.base import Placement
from trilithon.errors import TrilithonError
from trilithon.serve.access.security import AccessRules
from trilithon.serve.service import Service

__all__ = ["Reloading", "renew"]


class Reloading:
    """Of a running server that was started with `typed` and runs with `now`. `tell` takes lines for the user."""

    def __init__(self, typed: Typed, now: Wanted, service: Service, tell: Callable[[str], None]):
        self._typed = typed
        self._now = now
        self._service = service
        self._tell = tell
        self._one_at_a_time = asyncio.Lock()

    async def reload(self, rules: AccessRules, tls: ssl.SSLContext | None) -> None:
        """What changed, and what needs a restart, is told. Settings that do not fit change nothing."""
        async with self._one_at_a_time:
            await self._reload(rules, tls)

    async def _reload(self, rules: AccessRules, tls: ssl.SSLContext | None) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            new = await asyncio.to_thread(wanted, self._typed)
            pins = await asyncio.to_thread(self._placements, new)
            if tls is not None and new.words["tls_cert"] is not None:
                renew(tls, new.words["tls_cert"], new.words["tls_key"])
            rules.use(new.options.security)  # the first that changes anything, and the last that may refuse
        except (TrilithonError, OSError) as error:  # ssl's errors are OSErrors too
            self._tell(f"settings not changed: {error}")
        else:
            self._take(new, pins, has_tls=tls is not None)
        finally:
            notify("READY=1")

    def _placements(self, new: Wanted) -> dict[str, Placement]:
        """Of the models that are pinned from now on."""
        return dict(pinned_placement(self._service, name) for name in new.settings.pins)

    def _take(self, new: Wanted, pins: dict[str, Placement], *, has_tls: bool) -> None:
        old, service = self._now, self._service
        changed = _changed(self._typed, old, new)
        taken = sorted(name for name in changed if name in RELOADED and (has_tls or not name.startswith("tls_")))
        if old.configuration.aliases != new.configuration.aliases:
            service.shelf.use_aliases(new.configuration.aliases)
            taken = sorted({*taken, "aliases"} - {"alias", "hidden_alias"})
        if {"keep_alive", "memory_budget"} & changed:
            service.pool.use(budget_bytes=new.settings.budget_bytes, keep_alive_seconds=new.settings.keep_alive_seconds)
        if "pin" in changed:
            self._pin(old, pins)
        if "verbose" in changed:
            logging.getLogger().setLevel(logging.INFO if new.words["verbose"] else logging.WARNING)
        waiting = sorted(changed - set(taken) - {"alias", "hidden_alias"})
        self._now = _running(self._typed, old, new, frozenset(waiting))
        waiting += _changed_configuration(old, new)
        parts = [f"changed: {', '.join(taken) or 'nothing'}"]
        parts += [f"needs a restart: {', '.join(waiting)}"] if waiting else []
        self._tell(f"settings read again; {'; '.join(parts)}")

    def _pin(self, old: Wanted, pins: dict[str, Placement]) -> None:
        """Those that are pinned over the API stay."""
        for name in old.settings.pins:
            try:
                key, _ = pinned_placement(self._service, name)
            except TrilithonError:  # removed meanwhile, and so not pinned
                continue
            if key not in pins:
                self._service.pool.unpin(key)
        for key, placement in pins.items():
            try:
                self._service.pool.pin(key, placement)
            except TrilithonError as error:
                self._tell(f"{key} is not pinned: {error}")


def renew(tls: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Raises OSError, and leaves `tls` as it was: OpenSSL itself drops the old key where the new one does not fit."""
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    tls.load_cert_chain(certificate, key)


def _changed(typed: Typed, old: Wanted, new: Wanted) -> set[str]:
    return {
        name for name, option in options_of(typed.command).items() if old.words[option.name] != new.words[option.name]
    }


def _changed_configuration(old: Wanted, new: Wanted) -> list[str]:
    names = (part.name for part in dataclasses.fields(new.configuration) if part.name != "aliases")
    return [name for name in names if getattr(old.configuration, name) != getattr(new.configuration, name)]


def _running(typed: Typed, old: Wanted, new: Wanted, waiting: frozenset[str]) -> Wanted:
    """What the server runs with now: what waits for a restart is as it was."""
    words = dict(new.words)
    for name, option in options_of(typed.command).items():
        if name in waiting:
            words[str(option.name)] = old.words[str(option.name)]
    configuration = dataclasses.replace(old.configuration, aliases=new.configuration.aliases)
    return dataclasses.replace(new, words=words, configuration=configuration)
