"""Manifests as files: where they lie, which one a name means, and what is said of those that cannot be read."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import manifest_of, name_of, weights

from trilithon.errors import ModelError
from trilithon.models.names import ModelName
from trilithon.models.store import manifests
from trilithon.models.store.manifest import Manifest
from trilithon.models.store.manifests import exists, listing, parts_of, read, remove, stored_name, write
from trilithon.models.store.safe_dir import SafeDir

QWEN = manifest_of("Qwen:0.5B", weights("a" * 64, 1, "q.gguf"))
PATH = ("registry.ollama.ai", "library", "Qwen", "0.5B")


@pytest.fixture
def safe_dir(tmp_path: Path) -> SafeDir:
    return SafeDir(tmp_path / "root")


def file_of(safe_dir: SafeDir, *parts: str) -> Path:
    *folders, tag = parts
    return safe_dir.root.joinpath("manifests", *folders, f"{tag}.json")


def test_a_manifest_is_written_read_and_removed(safe_dir: SafeDir) -> None:
    assert (read(safe_dir, QWEN.name), exists(safe_dir, QWEN.name)) == (None, False)
    write(safe_dir, QWEN)
    assert file_of(safe_dir, *PATH).read_text() == QWEN.to_json()
    for name in (QWEN.name, name_of("qwen:0.5b"), name_of("QWEN:0.5B")):
        assert (read(safe_dir, name), exists(safe_dir, name)) == (QWEN, True)
        assert (parts_of(safe_dir, name), stored_name(safe_dir, name)) == (PATH, QWEN.name)
    assert not exists(safe_dir, name_of("qwen:latest"))
    assert parts_of(safe_dir, name_of("qwen:Latest")) == (*PATH[:3], "Latest")
    assert parts_of(safe_dir, name_of("other")) == (*PATH[:2], "other", "latest")
    remove(safe_dir, name_of("qwen:0.5b"))
    assert list((safe_dir.root / "manifests").iterdir()) == []
    with pytest.raises(FileNotFoundError):
        remove(safe_dir, QWEN.name)


def test_the_case_that_is_written_is_preferred(safe_dir: SafeDir) -> None:
    other = replace(QWEN, name=name_of("QWEN:0.5B"))
    for manifest in (QWEN, other):
        write(safe_dir, manifest)
    assert (read(safe_dir, QWEN.name), read(safe_dir, other.name)) == (QWEN, other)
    remove(safe_dir, other.name)
    assert file_of(safe_dir, *PATH).exists()
    assert listing((safe_dir,)).manifests == (QWEN,)


@pytest.mark.parametrize("digest", ["", "a" * 64, "b" * 64])
def test_a_name_with_a_digest_means_a_model_with_that_file(safe_dir: SafeDir, digest: str) -> None:
    write(safe_dir, QWEN)
    assert read(safe_dir, replace(QWEN.name, digest=digest)) == (None if digest == "b" * 64 else QWEN)


@pytest.mark.parametrize("host", ["example.org", "Example.org:5000"])
def test_a_port_is_part_of_the_host(safe_dir: SafeDir, host: str) -> None:
    name = ModelName(host, "ns", "model", "tag")
    write(safe_dir, replace(QWEN, name=name))
    assert stored_name(safe_dir, replace(name, host=host.lower())) == name
    assert stored_name(safe_dir, replace(name, model="MODEL")) == name
    assert listing((safe_dir,)).manifests[0].name == name


def test_a_name_counts_in_the_first_store_that_has_it(tmp_path: Path) -> None:
    first, second = SafeDir(tmp_path / "1"), SafeDir(tmp_path / "2")
    shadowed = replace(QWEN, name=name_of("qwen:0.5b"), source="another")
    others = [replace(QWEN, name=name_of(text)) for text in ("zeta", "Alpha", "beta:2", "beta:10")]
    for store, manifest in (
        (first, QWEN),
        (first, others[0]),
        (second, shadowed),
        *((second, it) for it in others[1:]),
    ):
        write(store, manifest)
    result = listing((first, second))
    assert result.manifests == (others[1], others[3], others[2], QWEN, others[0])
    assert result.roots == (second.root, second.root, second.root, first.root, first.root)
    assert result.problems == ()
    assert listing((second, first)).manifests[3] == shadowed


def test_only_blobs_of_the_store_are_its_digests(safe_dir: SafeDir) -> None:
    adopted = replace(weights("c" * 64, 1, "c.gguf"), path=Path("/c.gguf"))
    write(safe_dir, replace(QWEN, files=(*QWEN.files, weights("b" * 64, 1, "b.gguf"), adopted)))
    assert listing((safe_dir,)).digests == {"a" * 64, "b" * 64}


def test_what_cannot_be_used_is_said_and_hides_nothing(safe_dir: SafeDir) -> None:
    write(safe_dir, QWEN)
    newer = QWEN.to_json().replace('"version": 1', '"version": 2')
    texts = {"a": "{", "b": newer, "z": QWEN.to_json()}
    paths = {tag: file_of(safe_dir, *PATH[:3], tag) for tag in texts}
    for tag, text in texts.items():
        paths[tag].write_text(text)
    paths["a"].with_name(".hidden.json").write_text("half written")
    paths["a"].with_name("notes.txt").write_text("no manifest")
    expected = {
        tag: f"{paths[tag]} cannot be used: {why}; remove it (rm '{paths[tag]}') and pull the model again"
        for tag, why in (("a", "it is not JSON"), ("z", "it is the manifest of qwen:0.5B".replace("qwen", "Qwen")))
    }
    expected["b"] = (
        f"{paths['b']} cannot be used: a newer Trilithon wrote it (version 2, this one knows 1); upgrade Trilithon"
    )
    result = listing((safe_dir,))
    assert (result.manifests, sorted(result.problems)) == ((QWEN,), sorted(expected.values()))
    for tag, text in expected.items():
        with pytest.raises(ModelError) as caught:
            read(safe_dir, name_of(f"Qwen:{tag}"))
        assert str(caught.value) == text
        assert exists(safe_dir, name_of(f"Qwen:{tag}"))


def test_a_manifest_that_is_too_large_is_not_read(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write(safe_dir, QWEN)
    monkeypatch.setattr(manifests, "_MOST_BYTES", len(QWEN.to_json()))
    assert read(safe_dir, QWEN.name) == QWEN
    monkeypatch.setattr(manifests, "_MOST_BYTES", len(QWEN.to_json()) - 1)
    path = file_of(safe_dir, *PATH)
    with pytest.raises(ModelError) as caught:
        read(safe_dir, QWEN.name)
    assert str(caught.value) == f"{path} cannot be read: File too large; check its permissions (ls -l)"
    assert listing((safe_dir,)).problems == (str(caught.value),)


def test_a_folder_that_cannot_be_read_is_said(safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write(safe_dir, QWEN)
    write(safe_dir, replace(QWEN, name=name_of("other")))
    whole_open = os.open

    def refuse(name: str | Path, *others: int, **more: int) -> int:
        if name == "other":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return whole_open(name, *others, **more)

    monkeypatch.setattr(os, "open", refuse)
    result = listing((safe_dir,))
    folder = safe_dir.root / "manifests/registry.ollama.ai/library/other"
    assert result.manifests == (QWEN,)
    assert result.problems == (f"{folder} cannot be read: Permission denied; check its permissions (ls -l)",)


def test_a_model_that_is_removed_during_the_listing_is_left_out(
    safe_dir: SafeDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [replace(QWEN, name=name_of(text)) for text in ("a", "b")]
    for manifest in (*others, QWEN):
        write(safe_dir, manifest)
    whole_read = manifests.read_at

    def late(folder: int, name: str, most_bytes: int) -> bytes:
        file_of(safe_dir, *others[1].name.parts).unlink(missing_ok=True)
        return whole_read(folder, name, most_bytes)

    monkeypatch.setattr(manifests, "read_at", late)
    assert listing((safe_dir,)) == manifests.Listing((others[0], QWEN), (safe_dir.root,) * 2, ())


@pytest.mark.parametrize("part", ["", "..", "a/b", "a\0b"])
def test_no_name_leads_out_of_the_folder(safe_dir: SafeDir, part: str) -> None:
    for name in (
        ModelName("h.org", part, "m", "t"),
        ModelName("h.org", "n", part, "t"),
        ModelName("h.org", "n", "m", part),
    ):
        for call in (read, exists, remove, stored_name, parts_of):
            with pytest.raises(ModelError):
                call(safe_dir, name)
        with pytest.raises(ModelError):
            Manifest(name=name, files=(), source="", created="2026-01-02")
