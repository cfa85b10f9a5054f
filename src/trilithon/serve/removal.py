"""A model taken out of the store: unloaded first, and only where it is the store's own."""

import asyncio

from trilithon.models.store.model_store import ModelStore, Removal
from trilithon.serve.catalog.catalog import CatalogEntry
from trilithon.serve.service import Service
from trilithon.serve.validation import wrong

__all__ = ["remove"]


async def remove(service: Service, entry: CatalogEntry) -> Removal:
    """The name, and the files that no other name uses; those who work with it finish first. Raises Problem for another
    program's model, ModelError for what goes wrong on disk."""
    name, configuration = entry.manifest.name, service.shelf.configuration
    if not await asyncio.to_thread(_is_own, service, entry):
        raise wrong("model", f"model '{entry.name}' belongs to another program or folder; remove it there")
    await service.unload_entry(entry)

    def removed() -> Removal:
        with ModelStore.open(configuration) as store:
            return store.remove(name)

    return await asyncio.to_thread(removed)


def _is_own(service: Service, entry: CatalogEntry) -> bool:
    with ModelStore.open(service.shelf.configuration) as store:
        return store.is_local(entry.manifest.name)
