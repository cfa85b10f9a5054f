import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import CONTENT, DIGEST, add, entries, manifest_of, name_of, refusal, weights

from trilithon.errors import ModelError
from trilithon.models.store.locks import try_lock
from trilithon.models.store.manifest import StoredFile
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import locate
from trilithon.models.store.upkeep import Damage, Pruned, prune, remove_damaged, verify

STEMS = [f"sha256-{digit * 64}" for digit in "abcde"]


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes = b"x", age_seconds: float = 0.0) -> int:
    """Returns the size on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    moment = time.time() - age_seconds
    os.utime(path, (moment, moment))
    return path.stat().st_blocks * 512


def test_verify_says_which_model_suffers(store: ModelStore) -> None:
    add(store, "one")
    store.copy(name_of("one"), name_of("two"))
    add(store, "three", b"three")
    seen: list[tuple[int, int]] = []
    assert verify(store, progress=lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (len(CONTENT) + 5, len(CONTENT) + 5)
    path = store.blob_path(DIGEST)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"rotten")
    found = verify(store)
    assert [(each.models, each.digest) for each in found] == [(("one:latest", "two:latest"), DIGEST)]
    assert "is damaged" in found[0].problem
    assert verify(store, [name_of("three")]) == []
    assert verify(store, [name_of("two")])[0].digest == DIGEST
    store.close()
    assert remove_damaged(store, found) == 1
    assert verify(store)[0].problem == "is missing"
    store.add_bytes(CONTENT)
    assert remove_damaged(store, found) == 0  # another file by now
    assert verify(store) == []


def test_verify_sees_a_file_cut_short(store: ModelStore) -> None:
    add(store, "one")
    store.blob_path(DIGEST).chmod(0o644)
    os.truncate(store.blob_path(DIGEST), 10)
    assert "has 10 bytes" in verify(store)[0].problem
    assert store.missing(store.get(name_of("one")))


def test_prune_removes_what_nobody_uses(root: Path, store: ModelStore) -> None:
    kept = add(store, "kept")
    store.add_bytes(b"orphan")
    with store.receive("b" * 64, 100) as partial:
        partial.append(b"old")
    with store.receive("c" * 64, 100) as partial:
        partial.append(b"fresh")
    for path in (root / "partial").glob(f"sha256-{'b' * 64}.*"):
        os.utime(path, (0, 0))
    (root / "partial" / f"new-1-{'a' * 16}.data").write_bytes(b"of a killed process")
    (root / "manifests" / "registry.ollama.ai" / "library" / "kept" / ".new-1-ab").write_bytes(b"{")
    (root / "blobs" / "notes.txt").write_bytes(b"not ours")
    (root / "locks" / "receive-x.lock").write_bytes(b"")
    store.close()
    before = entries(root)
    planned = prune(store, dry_run=True)
    assert entries(root) - {"locks/store.lock"} == before - {"locks/store.lock"}
    done = prune(store)
    assert (done.blobs, done.partials) == (planned.blobs, planned.partials) == (1, 2)
    assert done.freed_bytes == planned.freed_bytes > 0
    assert entries(root) == {
        f"blobs/sha256-{DIGEST}",
        "blobs/notes.txt",
        "manifests/registry.ollama.ai/library/kept/latest.json",
        f"partial/sha256-{'c' * 64}.data",
        f"partial/sha256-{'c' * 64}.json",
    }
    assert store.list() == (kept,)
    assert prune(store, stale_seconds=0).partials == 1


def test_an_empty_store_has_nothing_to_prune(root: Path, store: ModelStore) -> None:
    assert prune(store) == prune(store, dry_run=True) == Pruned(blobs=0, partials=0, freed_bytes=0, kept=())
    assert not root.exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_which_stopped_downloads_are_pruned(root: Path, store: ModelStore, dry_run: bool) -> None:
    folder, old = root / "partial", 24 * 3600 + 60
    write(folder / f"{STEMS[0]}.txt", age_seconds=old)
    write(folder / f"{STEMS[1]}.data", age_seconds=old)  # still written
    write(folder / f"{STEMS[2]}.data", age_seconds=old)  # its record is new
    write(folder / f"{STEMS[2]}.json", age_seconds=24 * 3600 - 60)
    write(folder / "notes.data", age_seconds=old)
    freed = write(folder / f"{STEMS[3]}.data", bytes(20_000), age_seconds=old)
    freed += write(folder / f"{STEMS[3]}.json", age_seconds=old)
    freed += write(folder / f".new-{STEMS[4]}.json", bytes(5000), age_seconds=old)
    freed += write(folder / f"new-1-{'a' * 16}.data", bytes(9000))  # cannot be resumed
    write(folder / f"new-2-{'b' * 16}.data")  # still written
    before = entries(folder)
    held = [try_lock(store.local, f"receive-{stem}") for stem in (STEMS[1], f"new-2-{'b' * 16}")]
    assert prune(store, dry_run=dry_run) == Pruned(partials=3, freed_bytes=freed)
    removed = {f"{STEMS[3]}.data", f"{STEMS[3]}.json", f".new-{STEMS[4]}.json", f"new-1-{'a' * 16}.data"}
    assert before - entries(folder) == (set() if dry_run else removed)
    for lock in held:
        assert lock is not None
        lock.release()
    assert prune(store, dry_run=True, stale_seconds=0).partials == (6 if dry_run else 3)


def test_blobs_that_are_pulled_are_kept(store: ModelStore) -> None:
    digests = sorted(store.add_bytes(content) for content in (b"one", b"other", b"third"))
    store.close()
    held = [try_lock(store.local, f"hold-{digest}", shared=True) for digest in digests[:2]]
    assert prune(store, dry_run=True).blobs == 3
    pruned = prune(store)
    assert (pruned.blobs, pruned.freed_bytes > 0) == (1, True)
    assert pruned.kept == tuple(f"sha256:{digest[:12]}… is kept: it is being pulled" for digest in digests[:2])
    assert [store.has(digest) for digest in digests] == [True, True, False]
    for lock in held:
        assert lock is not None
        lock.release()


def test_no_blob_is_pruned_while_a_manifest_cannot_be_read(root: Path, store: ModelStore) -> None:
    store.add_bytes(b"orphan")
    store.close()
    freed = write(root / "partial" / f"{STEMS[0]}.data", age_seconds=25 * 3600)
    write(root / "manifests/registry.ollama.ai/library/m/latest.json", b"{")
    (problem,) = store.listing().problems
    expected = Pruned(partials=1, freed_bytes=freed, kept=(f"blobs are kept until this is fixed: {problem}",))
    assert prune(store) == expected
    assert store.has(digest_of(b"orphan"))


def test_links_of_models_that_are_gone_are_pruned(tmp_path: Path, root: Path, store: ModelStore) -> None:
    add(store, "kept")
    path = locate("kept", store, lambda _: True)
    links, outside = root / "links", tmp_path / "outside.gguf"
    outside.write_bytes(b"x")
    library = links / "registry.ollama.ai/library"
    for name, *targets in (
        ("gone", root / "blobs" / f"sha256-{DIGEST}"),
        ("adopted", root / "blobs/none", outside),
        ("lost", tmp_path / "none"),
        ("kept-not", root / "blobs" / f"sha256-{DIGEST}", tmp_path / "none"),
    ):
        (library / name / "latest/key").mkdir(parents=True)
        for number, target in enumerate(targets):
            (library / name / "latest/key" / f"{number}.gguf").symlink_to(target)
    (library / "empty/latest/key").mkdir(parents=True)
    write(path.parent / ".new-m.gguf")
    write(library / "gone/latest/key/deeper/file")
    (root / "manifests/registry.ollama.ai/other/model").mkdir(parents=True)
    for name in ("store", "receive-x", "hold-y"):
        write(root / "locks" / f"{name}.lock")
    store.close()
    held = try_lock(store.local, "hold-y")
    assert held is not None
    assert prune(store) == Pruned()
    assert path.read_bytes() == CONTENT
    assert {
        str(entry.relative_to(links)) for entry in links.rglob("*") if not entry.is_dir() or entry.is_symlink()
    } == {
        str(path.relative_to(links)),
        "registry.ollama.ai/library/adopted/latest/key/0.gguf",
        "registry.ollama.ai/library/adopted/latest/key/1.gguf",
        "registry.ollama.ai/library/gone/latest/key/deeper/file",
    }
    assert sorted(entry.name for entry in library.iterdir()) == ["adopted", "gone", "kept"]
    assert [entry.name for entry in (root / "manifests/registry.ollama.ai").iterdir()] == ["library"]
    assert [entry.name for entry in (root / "locks").iterdir()] == ["hold-y.lock"]
    held.release()


def test_every_kind_of_damage(tmp_path: Path, root: Path, store: ModelStore) -> None:
    layer_root = tmp_path / "layer"
    with ModelStore(layer_root) as layer:
        in_layer = layer.add_bytes(b"in a layer")
    (layer_root / "blobs" / f"sha256-{in_layer}").chmod(0o644)
    (layer_root / "blobs" / f"sha256-{in_layer}").write_bytes(b"IN A LAYER")
    orphans = sorted(store.add_bytes(content) for content in (b"x1", b"x2", b"x3"))
    for digest in orphans[::2]:
        store.blob_path(digest).chmod(0o644)
        store.blob_path(digest).write_bytes(b"??")

    def adopted(name: str, content: bytes | None, digest: str = "") -> StoredFile:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        return replace(weights(size_bytes=3, name=name[:20] + ".gguf"), digest=digest, path=path)

    files = [
        adopted("right", b"abc", digest_of(b"abc")),
        adopted("unchecked", b"abc"),
        adopted("gone", None),
        adopted("longer", b"abcd"),
        adopted("changed", b"abd", digest_of(b"abc")),
        adopted("n" * 300, None),
        weights(in_layer, 10, "layer.gguf"),
        weights("f" * 64, 1, "never.gguf"),
    ]
    with ModelStore(root, [layer_root]) as both:
        write(root / "manifests/registry.ollama.ai/library/m/latest.json", manifest_of("m", *files).to_json().encode())
        before, seen = set(Path("/proc/self/fd").iterdir()), []
        damages = verify(both, progress=lambda done, total: seen.append((done, total)))
        assert set(Path("/proc/self/fd").iterdir()) == before
    total = 3 * 6 + 10 + 1 + 3 * 2
    assert seen == [(done, total) for done in (3, 15, 28, 31, 33, 35)]

    def damage(file: StoredFile, problem: str, inode: int) -> Damage:
        return Damage(models=("m:latest",), file=file.name, digest=file.digest, problem=problem, inode=inode)

    inodes = {name: (tmp_path / name).stat().st_ino for name in ("longer", "changed")}
    inodes["layer"] = (layer_root / "blobs" / f"sha256-{in_layer}").stat().st_ino
    assert damages[:6] == [
        damage(files[2], "is missing", 0),
        damage(files[3], "has 4 bytes and should have 3", inodes["longer"]),
        damage(files[4], f"is damaged: its SHA-256 is {digest_of(b'abd')[:12]}…", inodes["changed"]),
        damage(files[5], "cannot be read: File name too long", 0),
        damage(files[6], f"is damaged: its SHA-256 is {digest_of(b'IN A LAYER')[:12]}…", inodes["layer"]),
        damage(files[7], "is missing", 0),
    ]
    assert damages[6:] == [
        Damage(
            models=(),
            file=f"sha256-{digest}",
            digest=digest,
            problem=f"is damaged: its SHA-256 is {digest_of(b'??')[:12]}…",
            removable=True,
            inode=store.blob_path(digest).stat().st_ino,
        )
        for digest in orphans[::2]
    ]
    store.close()
    assert remove_damaged(store, damages) == 2
    assert [store.has(digest) for digest in orphans] == [False, True, False]
    assert remove_damaged(store, damages) == 0


def test_a_damaged_blob_that_is_pulled_is_kept(store: ModelStore) -> None:
    add(store, "m")
    store.blob_path(DIGEST).chmod(0o644)
    os.truncate(store.blob_path(DIGEST), 10)
    damages = verify(store)
    held = try_lock(store.local, f"hold-{DIGEST}", shared=True)
    assert held is not None
    assert remove_damaged(store, damages) == 0
    held.release()
    assert remove_damaged(store, damages) == 1


def test_a_manifest_that_cannot_be_read_is_a_damage(root: Path, store: ModelStore) -> None:
    write(root / "manifests/registry.ollama.ai/library/m/latest.json", b"{")
    (problem,) = store.listing().problems
    assert verify(store) == [Damage(models=(), file="", digest="", problem=problem)]
    assert remove_damaged(store, verify(store)) == 0


@pytest.mark.parametrize(
    "place",
    [
        "manifests",
        "manifests/registry.ollama.ai",
        "manifests/registry.ollama.ai/library",
        "manifests/registry.ollama.ai/library/two",
        "manifests/registry.ollama.ai/library/two/latest.json",
        "blobs",
        "partial",
        "locks",
        "links",
    ],
)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_the_store_stops_what_deletes(root: Path, store: ModelStore, place: str, dangling: bool) -> None:
    """As of somebody who moved a part of the store to another disk."""
    add(store, "one")
    add(store, "two", b"two")
    store.close()
    moved, elsewhere = root.parent / "moved", root.parent / "elsewhere"
    if (root / place).exists():
        (root / place).rename(elsewhere if dangling else moved)
    (root / place).symlink_to(moved)
    line = f"{root / place} is a symbolic link, and the store follows none; put what it points to in its place"
    assert any(damage.problem.startswith(line) for damage in verify(store))
    calls: list[Callable[[], object]] = [lambda: prune(store, stale_seconds=0), lambda: store.get(name_of("three"))]
    calls += [lambda: store.remove(name_of("one")), lambda: store.add_bytes(b"three")]
    outcomes = []
    for call in calls:
        try:
            outcomes.append(str(call()))
        except ModelError as error:
            outcomes.append(str(error))
    if place != "locks":
        below = place.count("/")
        assert all("is a symbolic link" in text for text in outcomes[: 3 if below else 4])
        assert all(text.startswith("nothing was removed: ") for text in (outcomes[0], outcomes[2]))
        assert (root / "manifests/registry.ollama.ai/library/one/latest.json").exists() or place.startswith("manifests")
    blobs = (elsewhere if dangling else moved) if place == "blobs" else root / "blobs"
    assert {path.name for path in blobs.iterdir()} >= {f"sha256-{DIGEST}", f"sha256-{digest_of(b'two')}"}


def test_blobs_without_any_manifest_stay(root: Path, store: ModelStore) -> None:
    """As on a disk whose folder of manifests is not mounted, or was lost; a stopped first pull has one."""
    add(store, "one")
    store.close()
    shutil.rmtree(root / "manifests")
    assert "nothing was removed: " in refusal(prune, store, stale_seconds=0)
    assert "manifests is missing" in verify(store)[0].problem
    assert "manifests is missing" in refusal(store.add_bytes, b"three")
    assert "manifests is missing" in refusal(store.put, manifest_of("two", weights()))
    (root / "manifests").write_bytes(b"")
    assert "nothing was removed: " in refusal(prune, store, stale_seconds=0)
    (root / "manifests").unlink()
    (root / "manifests").mkdir()
    assert prune(store, stale_seconds=0).blobs == 1
    with ModelStore(root.parent / "first") as first:
        first.add_bytes(CONTENT)
    assert prune(first, stale_seconds=0).blobs == 1
