import os
from pathlib import Path

from store_samples import CONTENT, DIGEST, add, entries, name_of

from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.upkeep import prune, remove_damaged, verify


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
