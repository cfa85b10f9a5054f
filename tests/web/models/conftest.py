"""Models for the pages to show: some of a store, and a stand-in of the hub to pull from."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from standin_hub import HubRepository, HubStandIn
from standin_web import Fault, WebStandIn

from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.model_store import ModelStore
from trilithon.settings import Configuration

Keep = Callable[..., str]


@pytest.fixture
def keep(configuration: Configuration, tiny: Path) -> Keep:
    """`keep("small:q4", size…)`: a model of the store, of the same file as all others; its name."""

    def kept(text: str, *, created: str = "2026-01-01T00:00:00+00:00", license_text: str = "", **more: object) -> str:
        model, _, tag = text.partition(":")
        with ModelStore.open(configuration) as store:
            files = [_file("weights", store.add(tiny), tiny.stat().st_size, f"{model}.gguf")]
            if license_text:
                content = license_text.encode()
                files.append(_file("license", store.add_bytes(content), len(content), "LICENSE", "text"))
            manifest = Manifest(
                name=ModelName("registry.ollama.ai", "library", model, tag or "latest"),
                files=tuple(files),
                source=f"the library of {model}",
                created=created,
                **more,  # type: ignore[arg-type]
            )
            store.put(manifest)
            return str(manifest.name)

    return kept


def _file(role: str, digest: str, size_bytes: int, name: str, form: str = "gguf") -> StoredFile:
    return StoredFile(
        role=role,  # type: ignore[arg-type]
        digest=digest,
        size_bytes=size_bytes,
        name=name,
        format=form,  # type: ignore[arg-type]
        quantization="F16" if role == "weights" else "",
    )


@pytest.fixture
def thousand(configuration: Configuration, keep: Keep) -> int:
    """How many models there are."""
    first = keep("model-0000:q4")
    with ModelStore.open(configuration) as store:
        manifest = next(each for each in store.list() if str(each.name) == first)
        for number in range(1, 1000):
            name = ModelName("registry.ollama.ai", "library", f"model-{number:04}", "q4")
            made = Manifest(name=name, files=manifest.files, source=manifest.source, created=manifest.created)
            path = store.local.root.joinpath("manifests", *name.parts[:3], f"{name.tag}.json")
            path.parent.mkdir(parents=True)
            path.write_text(made.to_json(), encoding="utf-8")  # `put` waits for the disk each time
    return 1000


@pytest.fixture
def storage() -> Iterator[WebStandIn]:
    with WebStandIn() as server:
        yield server


@pytest.fixture
def hub(home: Path, storage: WebStandIn, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """It has one repository: the tiny model and some bytes more, which come slowly enough to be watched."""
    with HubStandIn(storage) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.repositories["ann/Little-GGUF"] = HubRepository({"Little-F16.gguf": tiny.read_bytes() + bytes(32)})
        size = tiny.stat().st_size
        storage.fault = lambda asked: None if asked.is_look else Fault(pace=size / 4)
        yield server
