"""Pulling from an Ollama registry: manifests, blobs behind redirects, what a model says of itself, errors in words."""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from standin_registry import RegistryStandIn
from standin_web import Fault, WebStandIn

from trilithon.errors import ModelError
from trilithon.models.fetch import checked_transport
from trilithon.models.fetch.choose import Target
from trilithon.models.fetch.download import Download
from trilithon.models.fetch.download_list import PullOptions
from trilithon.models.fetch.http_client import PlainHttp, RetryPolicy
from trilithon.models.fetch.public_hosts import Address, PublicHosts
from trilithon.models.fetch.pull import Pulled, pull
from trilithon.models.names import parse_reference
from trilithon.models.store.manifest import PresetMessage
from trilithon.models.store.model_store import ModelStore

QUICK = Download(retry=RetryPolicy(attempts=3, first_wait_seconds=0.01, longest_wait_seconds=0.02, silence_seconds=2))
WEIGHTS = b"GGUF" + random.Random(1).randbytes(300_000)
LAYERS: list[tuple[str, bytes | str]] = [
    ("model", WEIGHTS),
    ("projector", b"GGUF-projector"),
    ("template", "{{ .Prompt }}"),
    ("system", "You are brief."),
    ("params", json.dumps({"stop": ["<end>"], "temperature": 0.5, "num_ctx": 4096, "warp": 9})),
    ("messages", json.dumps([{"role": "user", "content": "hi"}, {"role": 1}])),
    ("license", "MIT"),
    ("license", "Apache"),
]


@pytest.fixture
def registry() -> Iterator[RegistryStandIn]:
    with WebStandIn() as storage, RegistryStandIn(storage) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    with ModelStore(tmp_path / "models") as opened:
        yield opened


def fetch(store: ModelStore, text: str, *, insecure: bool = True) -> Pulled:
    options = PullOptions(target=Target(chip="unknown"), transfer=QUICK, insecure=insecure)
    return pull(parse_reference(text), store, options, lambda _: None)


def test_a_registry_without_tls_needs_insecure(
    registry: RegistryStandIn, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of another machine: here its name is resolved to this one."""

    async def resolved(host: str, port: int) -> list[Address]:
        return [ip_address("127.0.0.1")]

    monkeypatch.setattr(checked_transport, "resolved", resolved)
    registry.add("library/tiny", "1", LAYERS)
    hosts = PublicHosts(frozenset({"box.lan", "127.0.0.1"}))  # its files lie on a second server
    options = PullOptions(target=Target(chip="unknown"), transfer=QUICK, hosts=hosts)
    name = parse_reference(f"box.lan:{registry.host.rpartition(':')[2]}/library/tiny:1")
    with pytest.raises(PlainHttp, match=r"box.lan speaks plain http, not https; add --insecure"):
        pull(name, store, options, lambda _: None)
    pulled = pull(name, store, replace(options, insecure=True), lambda _: None)
    assert pulled.manifest.of_role("weights")[0].size_bytes == len(WEIGHTS)
    with pytest.raises(PlainHttp, match=r"127.0.0.1 speaks plain http, not https; add --insecure"):
        fetch(store, f"{registry.host}/library/tiny:1", insecure=False)


def test_a_model_with_everything(registry: RegistryStandIn, store: ModelStore) -> None:
    registry.add("library/tiny", "0.5b", LAYERS, {"file_type": "Q4_K_M"})
    pulled = fetch(store, f"{registry.host}/library/tiny:0.5b")
    manifest = pulled.manifest
    assert str(manifest.name) == f"{registry.host}/library/tiny:0.5b"
    assert [(file.role, file.name, file.format, file.quantization) for file in manifest.files] == [
        ("weights", "tiny-0.5b.gguf", "gguf", "Q4_K_M"),
        ("projector", "tiny-0.5b-projector.gguf", "gguf", ""),
        ("template", "ollama-template.txt", "text", ""),
        ("license", "license.txt", "text", ""),
        ("license", "license-2.txt", "text", ""),
    ]
    assert store.file_path(manifest.files[0]).read_bytes() == WEIGHTS
    assert manifest.parameters == {"stop": ["<end>"], "temperature": 0.5, "num_ctx": 4096}
    assert pulled.notes[0].startswith("left out: unknown parameter 'warp'")
    assert manifest.system == "You are brief."
    assert manifest.messages == (PresetMessage("user", "hi"),)
    assert store.get(manifest.name) == manifest


def test_two_tags_share_their_weights(registry: RegistryStandIn, store: ModelStore) -> None:
    for tag in ("a", "b"):
        registry.add("library/tiny", tag, [("model", WEIGHTS), ("system", tag)])
        pulled = fetch(store, f"{registry.host}/library/tiny:{tag}")
    assert pulled.fetched_bytes == 0
    assert pulled.manifest.system == "b"
    assert len(store.list()) == 2


def test_the_digest_has_to_be_there(registry: RegistryStandIn, store: ModelStore) -> None:
    digest = registry.add("library/tiny", "latest", [("model", WEIGHTS)])[0]
    assert fetch(store, f"{registry.host}/library/tiny@sha256:{digest}").fetched_bytes == len(WEIGHTS)
    with pytest.raises(ModelError, match="has no file sha256:000000000000… in the registry any more"):
        fetch(store, f"{registry.host}/library/tiny@sha256:{'0' * 64}")


def test_no_such_model(registry: RegistryStandIn, store: ModelStore) -> None:
    with pytest.raises(
        ModelError, match=r"127.0.0.1:\d+ has no model 127.*/library/nothing:latest; check its name and tag"
    ):
        fetch(store, f"{registry.host}/library/nothing")


def test_a_login(registry: RegistryStandIn, store: ModelStore) -> None:
    registry.fault = lambda _: Fault(status=401)
    with pytest.raises(ModelError, match="requires a login for"):
        fetch(store, f"{registry.host}/library/tiny")
    assert len(registry.asked) == 1


def test_plain_http_is_spoken_with_this_machine_and_when_said(registry: RegistryStandIn, store: ModelStore) -> None:
    registry.add("library/tiny", "latest", [("model", WEIGHTS)])
    with pytest.raises(PlainHttp, match="speaks plain http, not https; add --insecure"):
        fetch(store, f"{registry.host}/library/tiny", insecure=False)


def test_a_model_that_runs_elsewhere(registry: RegistryStandIn, store: ModelStore) -> None:
    registry.add("library/huge", "cloud", [("license", "x")])
    with pytest.raises(ModelError, match="has no weights, only license: it runs elsewhere, or is not a GGUF"):
        fetch(store, f"{registry.host}/library/huge:cloud")


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ([], "sends no manifest"),
        ({"layers": 3}, "sends no manifest"),
        (
            {"layers": [{"digest": "sha256:../../etc/passwd", "size": 1, "mediaType": "x"}]},
            "has a file without a valid SHA-256",
        ),
        (
            {"layers": [{"digest": "sha256:" + "a" * 64, "size": -1, "mediaType": "x"}]},
            "has a file without a valid SHA-256",
        ),
        (
            {"layers": [{"digest": "sha256:" + "a" * 64, "size": True, "mediaType": "x"}]},
            "has a file without a valid SHA-256",
        ),
        ({"layers": [3]}, "has a file without a valid SHA-256"),
        ({"layers": []}, "has no weights, only nothing"),
        ({"layers": [{}] * 1001}, "has no valid list of files"),
    ],
)
def test_manifests_that_are_none(registry: RegistryStandIn, store: ModelStore, manifest: Any, words: str) -> None:
    registry.manifests["library/odd/latest"] = manifest
    with pytest.raises(ModelError, match=words):
        fetch(store, f"{registry.host}/library/odd")
    assert not store.local.root.exists()


def test_a_text_with_a_wrong_sum(registry: RegistryStandIn, store: ModelStore) -> None:
    registry.add("library/tiny", "latest", [("model", WEIGHTS), ("system", "yes")])
    registry.storage.put(f"/storage/sha256:{hashlib.sha256(b'yes').hexdigest()}", b"no")
    with pytest.raises(ModelError, match="the SHA-256 of its system is wrong"):
        fetch(store, f"{registry.host}/library/tiny")


def test_texts_without_end_are_not_read(registry: RegistryStandIn, store: ModelStore) -> None:
    registry.add("library/tiny", "latest", [("model", WEIGHTS), *[("system", f"{n}" * 9) for n in range(9)]])
    rows = registry.manifests["library/tiny/latest"]["layers"]
    for row in rows[1:]:
        row["size"] = 1 << 20
    with pytest.raises(ModelError, match="its texts have 9437184 bytes, which is too long; choose another model"):
        fetch(store, f"{registry.host}/library/tiny")
    for row in rows[1:]:
        row["size"] = 5
    with pytest.raises(ModelError, match="is longer than 5 B; check its name"):
        fetch(store, f"{registry.host}/library/tiny")


def test_weights_with_a_wrong_sum_or_length(registry: RegistryStandIn, store: ModelStore) -> None:
    digest = registry.add("library/tiny", "latest", [("model", WEIGHTS)])[0]
    registry.storage.put(f"/storage/sha256:{digest}", WEIGHTS[::-1])
    with pytest.raises(ModelError, match="its SHA-256 is"):
        fetch(store, f"{registry.host}/library/tiny")
    registry.storage.put(f"/storage/sha256:{digest}", WEIGHTS[:-1])
    with pytest.raises(ModelError, match="has 300003 bytes and should have 300004"):
        fetch(store, f"{registry.host}/library/tiny")
    assert store.list() == ()
