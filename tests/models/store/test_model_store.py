import hashlib
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_samples import CONTENT, DIGEST, add, entries, manifest_of, name_of, refusal, weights

from trilithon.models.files.hashing import file_sha256
from trilithon.models.store import partial as partial_module
from trilithon.models.store.locks import try_lock
from trilithon.models.store.manifest import Manifest
from trilithon.models.store.model_store import ModelStore, Removal
from trilithon.models.store.partial import merged
from trilithon.models.store.resolve import locate
from trilithon.models.store.safe_dir import SafeDir
from trilithon.models.store.upkeep import prune, verify
from trilithon.settings import Configuration

# Blobs


def test_nothing_is_written_before_there_is_something_to_keep(root: Path, store: ModelStore) -> None:
    assert store.list() == ()
    assert not store.has(DIGEST)
    assert prune(store).blobs == 0
    assert verify(store) == []
    assert "see trilithon list" in refusal(store.get, name_of("qwen"))
    assert not root.parent.exists()


def test_the_store_lies_where_the_settings_say(tmp_path: Path) -> None:
    configuration = Configuration(data=tmp_path / "d", cache=tmp_path / "c", stores=(tmp_path / "layer",))
    with ModelStore.open(configuration) as store:
        path = store.blob_path(store.add_bytes(b"x"))
        assert path == tmp_path / "d" / "models" / "blobs" / f"sha256-{hashlib.sha256(b'x').hexdigest()}"
        assert [layer.root for layer in store.layers] == [tmp_path / "layer"]
    assert file_sha256(path, tmp_path / "c", lambda done, total: pytest.fail("it was known")) == path.name[7:]


def test_a_file_is_copied_into_the_store(tmp_path: Path, store: ModelStore) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    seen: list[tuple[int, int]] = []
    assert store.add(tmp_path / "file", lambda done, total: seen.append((done, total))) == DIGEST
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert store.blob_path(DIGEST).read_bytes() == CONTENT
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert "No such file" in refusal(store.add, tmp_path / "none")


def test_the_listing_is_by_name_and_passes_over_other_files(root: Path, store: ModelStore) -> None:
    for name in ("Zeta", "alpha", "beta"):
        add(store, name)
    folder = root / "manifests" / "registry.ollama.ai" / "library" / "alpha"
    (folder / ".latest.json").write_text("half written")
    (folder / "notes.txt").write_text("not a manifest")
    listing = store.listing()
    assert [manifest.name.model for manifest in listing.manifests] == ["alpha", "beta", "Zeta"]
    assert listing.problems == ()
    assert store.is_local(name_of("alpha")) is True
    assert store.is_local(name_of("gamma")) is False


def test_a_lock_is_released_once_and_leaves_nothing_open(root: Path) -> None:
    safe_dir = SafeDir(root)
    before = set(Path("/proc/self/fd").iterdir())
    held = try_lock(safe_dir, "a")
    assert held is not None
    assert try_lock(safe_dir, "a") is None
    held.release()
    assert set(Path("/proc/self/fd").iterdir()) == before
    other = os.open("/dev/null", os.O_RDONLY)  # takes the number that the lock had
    held.release()
    os.close(other)
    assert not list((root / "locks").iterdir())


def test_a_note_claims_only_what_the_disk_has(root: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data, note = (root / "partial" / f"sha256-{DIGEST}.{suffix}" for suffix in ("data", "json"))
    synced: list[tuple[int, bool]] = []
    sync = os.fdatasync

    def watched(descriptor: int) -> None:
        sync(descriptor)
        synced.append((os.fstat(descriptor).st_ino, note.exists()))

    monkeypatch.setattr(os, "fdatasync", watched)
    with store.receive(DIGEST, len(CONTENT)) as partial:
        partial.append(CONTENT[:1000])
        partial.record()
        assert synced == [(data.stat().st_ino, False)]
        assert json.loads(note.read_text()) == {"size_bytes": len(CONTENT), "done": [[0, 1000]]}


@pytest.mark.parametrize(
    ("known", "expected", "kept"),
    [(None, 1000, True), (None, 999, False), (None, 2000, True), (2000, 2000, True), (2000, 3000, False)],
)
def test_bytes_of_a_file_of_another_size_are_dropped(
    store: ModelStore, known: int | None, expected: int, kept: bool
) -> None:
    with store.receive(None, known, key="k") as partial:
        partial.append(CONTENT[:1000])
        partial.expect(expected)
        assert partial.done == (((0, 1000),) if kept else ())
        assert partial.size_bytes == expected


def test_a_disk_that_takes_a_part_of_a_write_gets_the_rest(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: write(descriptor, data[:70_000], at))
    with store.receive(DIGEST, len(CONTENT)) as partial:
        partial.write_at(100_000, CONTENT[100_000:])
        partial.write_at(0, CONTENT[:100_000])
        assert partial.finish() == DIGEST


def test_ranges_are_recorded_every_so_many_bytes_or_seconds(
    root: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_module, "_RECORD_BYTES", 2000)
    monkeypatch.setattr(partial_module, "_RECORD_SECONDS", 1e9)
    record = root / "partial" / f"sha256-{DIGEST}.json"

    def recorded() -> list[list[int]]:
        return json.loads(record.read_text())["done"] if record.exists() else []

    with store.receive(DIGEST, len(CONTENT)) as partial:
        for end, expected in ((1999, []), (2000, [[0, 2000]]), (3999, [[0, 2000]]), (4000, [[0, 4000]])):
            partial.append(CONTENT[partial.bytes_done : end])
            assert recorded() == expected
        monkeypatch.setattr(partial_module, "_RECORD_SECONDS", -1.0)
        partial.append(CONTENT[4000:4001])
        assert recorded() == [[0, 4001]]


def test_bytes_may_come_in_any_order(store: ModelStore) -> None:
    half = len(CONTENT) // 2
    with store.receive(DIGEST, len(CONTENT)) as partial:
        partial.write_at(half, CONTENT[half:])
        assert partial.missing == ((0, half),)
        partial.append(CONTENT[:half])
        assert partial.missing == ()
        assert partial.finish() == DIGEST
    assert store.blob_path(DIGEST).read_bytes() == CONTENT


def test_threads_may_write_at_once(store: ModelStore) -> None:
    pieces = [(at, CONTENT[at : at + 1000]) for at in range(0, len(CONTENT), 1000)]
    with store.receive(DIGEST, len(CONTENT)) as partial:
        threads = [
            threading.Thread(target=lambda mine: [partial.write_at(*each) for each in mine], args=(pieces[n::4],))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert partial.finish() == DIGEST


def test_a_stopped_one_is_gone_on_with(root: Path, store: ModelStore) -> None:
    with pytest.raises(ConnectionError), store.receive(DIGEST, len(CONTENT)) as partial:
        partial.write_at(1000, CONTENT[1000:5000])
        raise ConnectionError
    assert not store.has(DIGEST)
    with ModelStore(root).receive(DIGEST, len(CONTENT)) as partial:
        assert partial.missing == ((0, 1000), (5000, len(CONTENT)))
        assert partial.bytes_done == 4000
        partial.write_at(0, CONTENT[:1000])
        partial.append(CONTENT[5000:])
        partial.finish()
    assert entries(root) == {f"blobs/sha256-{DIGEST}", f"locks/hold-{DIGEST}.lock"}


def test_one_without_a_digest_is_known_by_its_key(store: ModelStore) -> None:
    with store.receive(None, None, key="https://example.org/a etag 1") as partial:
        partial.append(CONTENT[:1000])
        assert partial.missing == ((1000, None),)
    with store.receive(None, None, key="https://example.org/a etag 2") as partial:
        assert partial.bytes_done == 0
    with store.receive(None, len(CONTENT), key="https://example.org/a etag 1") as partial:
        assert partial.bytes_done == 1000
        partial.append(CONTENT[1000:])
        assert partial.finish() == DIGEST


def test_one_without_a_name_leaves_nothing(root: Path, store: ModelStore) -> None:
    with store.receive() as partial:
        partial.append(b"x")
    assert entries(root) == set()


def test_a_kill_right_after_the_name_leaves_nothing_to_the_next(
    root: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), store.receive(DIGEST, len(CONTENT)) as partial:
        partial.append(CONTENT)
        monkeypatch.setattr(store.local, "unlink", killed)
        partial.finish()
    monkeypatch.undo()
    store.close()
    assert entries(root) == {f"blobs/sha256-{DIGEST}", f"partial/sha256-{DIGEST}.json"}
    with store.receive(DIGEST, len(CONTENT)) as partial:
        assert partial.present
    store.close()
    assert entries(root) == {f"blobs/sha256-{DIGEST}"}


def test_another_size_means_another_file(store: ModelStore) -> None:
    with store.receive(None, None, key="k") as partial:
        partial.append(b"x" * 10)
        partial.expect(20)
    with store.receive(None, 30, key="k") as partial:
        assert partial.bytes_done == 0
        partial.append(b"x" * 10)
        partial.expect(5)
        assert partial.missing == ((0, 5),)


def test_a_wrong_sum_leaves_nothing(root: Path, store: ModelStore) -> None:
    with store.receive(DIGEST, len(CONTENT)) as partial:
        partial.append(CONTENT[:-1] + b"!")
        assert "should be" in refusal(partial.finish)
    store.close()
    assert entries(root) == set()


def test_what_is_not_whole_is_not_finished(store: ModelStore) -> None:
    with store.receive(DIGEST, len(CONTENT)) as partial:
        partial.append(CONTENT[:-1])
        assert "pull it again" in refusal(partial.finish)
        assert "received more than the announced" in refusal(partial.append, b"12")
    assert not store.has(DIGEST)


def test_a_blob_cut_short_is_received_anew(store: ModelStore) -> None:
    kept = add(store, "m")
    store.blob_path(DIGEST).chmod(0o644)
    os.truncate(store.blob_path(DIGEST), 10)
    assert store.missing(kept) == kept.files
    with store.receive(DIGEST, len(CONTENT)) as partial:
        assert not partial.present
        partial.append(CONTENT)
        partial.finish()
    assert store.missing(kept) == ()


def test_the_empty_file_is_a_file(store: ModelStore) -> None:
    with store.receive() as partial:
        assert partial.finish() == hashlib.sha256(b"").hexdigest()
    assert store.blob_path(hashlib.sha256(b"").hexdigest()).read_bytes() == b""


@pytest.mark.parametrize(
    "state", [b"", b"{}", b"[", b'{"size_bytes": 1, "done": [[0]]}', b'{"size_bytes":-1,"done":[]}']
)
def test_a_damaged_note_costs_the_work_and_nothing_else(root: Path, store: ModelStore, state: bytes) -> None:
    with store.receive(DIGEST, len(CONTENT)) as partial:
        partial.append(b"wrong")
    (root / "partial" / f"sha256-{DIGEST}.json").write_bytes(state)
    with store.receive(DIGEST, len(CONTENT)) as partial:
        assert partial.bytes_done == 0
        partial.append(CONTENT)
        assert partial.finish() == DIGEST


def test_a_note_never_promises_more_than_there_is(root: Path, store: ModelStore) -> None:
    with store.receive(DIGEST, len(CONTENT)) as partial:
        partial.append(CONTENT[:5000])
    os.truncate(root / "partial" / f"sha256-{DIGEST}.data", 2000)
    with store.receive(DIGEST, len(CONTENT)) as partial:
        assert partial.missing == ((2000, len(CONTENT)),)


def test_space_is_asked_for_before_anything_comes(store: ModelStore) -> None:
    text = refusal(store.receive(DIGEST, 1 << 60).__enter__)
    assert "TRILITHON_DATA" in text
    assert "trilithon rm NAME" in text
    store.room_for(1)


def test_what_was_written_and_never_noted_takes_no_room_again(
    root: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that ran full takes no note either."""
    (root / "partial").mkdir(parents=True)
    (root / "partial" / f"sha256-{DIGEST}.data").write_bytes(CONTENT)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=(64 << 20) + 5000))
    store.room_for_all({DIGEST: len(CONTENT)})
    with store.receive(DIGEST, len(CONTENT)) as partial:
        assert partial.bytes_done == 0
    refusal(store.room_for_all, {DIGEST: len(CONTENT) + 50_000})


def test_what_others_still_write_is_not_free(root: Path, store: ModelStore) -> None:
    free = shutil.disk_usage(root.parent.parent).free
    with ModelStore(root) as other, other.receive("b" * 64, free * 3 // 5) as partial:
        partial.append(b"x")
        partial.record()
        refusal(store.room_for, free * 3 // 5)
        store.room_for_all({"b" * 64: free * 3 // 5})  # who waits for it writes it no second time
        refusal(store.room_for_all, {"b" * 64: free * 3 // 5, "c" * 64: free * 3 // 5})
    store.room_for(free * 3 // 5)


ranges = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(ranges))
def test_ranges_are_the_set_of_their_bytes(pieces: list[tuple[int, int]]) -> None:
    done: tuple[tuple[int, int], ...] = ()
    for piece in pieces:
        done = merged(done, piece)
    assert {n for start, end in done for n in range(start, end)} == {n for a, b in pieces for n in range(a, b)}
    assert all(start < end for start, end in done)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(done))


# Manifests


def test_a_model_is_kept_and_found(store: ModelStore) -> None:
    kept = add(store, "qwen2.5:0.5b")
    assert store.get(name_of("qwen2.5:0.5b")) == kept
    assert store.list() == (kept,)
    assert store.missing(kept) == ()
    assert "did you mean qwen2.5:0.5b?" in refusal(store.get, name_of("qwen2.5:7b"))
    assert "did you mean qwen2.5:0.5b?" in refusal(store.get, name_of("qwen25:0.5b"))
    assert "trilithon pull other:latest" in refusal(store.get, name_of("other"))


def test_case_makes_no_other_model(root: Path, store: ModelStore) -> None:
    add(store, "host:5000/Me/Qwen:A")
    kept = add(store, "HOST:5000/me/qwen:a", b"two")
    assert str(kept.name) == "host:5000/Me/Qwen:A"
    assert store.list() == (kept,)
    assert str(add(store, "host:5000/ME/QWEN:b").name) == "host:5000/Me/Qwen:b"
    assert store.get(name_of("Host:5000/ME/QWEN:A")) == kept
    store.remove(name_of("HOST:5000/ME/QWEN:A"))
    assert len(list((root / "manifests").iterdir())) == 1


def test_a_digest_in_a_name_is_not_ignored(store: ModelStore) -> None:
    add(store, "m")
    assert store.get(replace(name_of("m"), digest=DIGEST))
    assert "there is no" in refusal(store.get, replace(name_of("m"), digest="0" * 64))


def test_a_model_without_its_files_is_refused(store: ModelStore) -> None:
    assert "is missing or incomplete" in refusal(store.put, manifest_of("m", weights()))
    store.add_bytes(CONTENT)
    assert "is missing or incomplete" in refusal(store.put, manifest_of("m", weights(size_bytes=5)))
    assert store.list() == ()


def test_blobs_go_with_the_last_model_that_uses_them(store: ModelStore) -> None:
    add(store, "one")
    assert store.copy(name_of("one"), name_of("two")).name == name_of("two")
    assert store.remove(name_of("one")).freed_bytes == 0
    assert store.has(DIGEST)
    assert store.remove(name_of("two")).freed_bytes == len(CONTENT)
    assert not store.has(DIGEST)
    assert "there is no" in refusal(store.remove, name_of("two"))


def test_a_copy_takes_nobodys_place(store: ModelStore) -> None:
    add(store, "one")
    add(store, "two", b"2")
    assert "trilithon rm TWO:latest" in refusal(store.copy, name_of("one"), name_of("TWO"))
    assert "there is no" in refusal(store.copy, name_of("three"), name_of("four"))


def test_a_new_version_takes_the_place_of_the_old(store: ModelStore) -> None:
    add(store, "m")
    add(store, "m", b"new")
    assert not store.has(DIGEST)
    assert store.remove(name_of("m")).freed_bytes == 3


def test_nothing_is_left_of_a_removed_model(root: Path, store: ModelStore) -> None:
    add(store, "m")
    locate("m", store, lambda file: True)
    store.remove(name_of("m"))
    assert entries(root) == set()
    assert sorted(path.name for path in root.iterdir()) == ["blobs", "links", "locks", "manifests", "partial"]
    assert not any((root / "manifests").iterdir())
    assert not any((root / "links").iterdir())


def test_a_blob_that_is_pulled_stays(root: Path, store: ModelStore) -> None:
    add(store, "old")
    with ModelStore(root) as other:
        with other.locked(DIGEST):
            assert other.has(DIGEST)
        removal = store.remove(name_of("old"))
        assert removal.freed_bytes == 0
        assert "being pulled" in removal.kept[0]
        assert prune(store).blobs == 0
        assert prune(store).kept
        other.put(manifest_of("new", weights()))
        assert prune(store) == prune(store, dry_run=True)
    assert store.remove(name_of("new")).freed_bytes == len(CONTENT)


def test_a_received_blob_stays_until_it_is_named(root: Path, store: ModelStore) -> None:
    with ModelStore(root) as other:
        other.add_bytes(CONTENT)
        assert prune(store).blobs == 0
    assert prune(store).blobs == 1


def test_the_second_waits_for_the_first(root: Path, store: ModelStore) -> None:
    waited: list[float] = []

    def give_up() -> None:
        waited.append(time.monotonic())
        raise TimeoutError

    with store.receive(DIGEST, len(CONTENT)) as partial:
        with ModelStore(root) as other, pytest.raises(TimeoutError), other.receive(DIGEST, on_wait=give_up):
            pytest.fail("both had it")
        partial.append(CONTENT)
        partial.finish()
    with ModelStore(root) as other, other.receive(DIGEST, len(CONTENT), on_wait=give_up) as partial:
        assert partial.present
        assert partial.missing == ()
        assert partial.finish() == DIGEST
    assert len(waited) == 1


def test_a_closed_folder_hides_no_other_models_and_spares_every_blob(root: Path, store: ModelStore) -> None:
    """As a pull under sudo leaves them."""
    add(store, "theirs/a")
    add(store, "mine/b", b"two")
    closed = root / "manifests" / "registry.ollama.ai" / "theirs"
    with _nobody(root), _closed(closed):
        listing = store.listing()
        assert [str(each.name) for each in listing.manifests] == ["mine/b:latest"]
        assert listing.problems == (f"{closed} cannot be read: Permission denied; check its permissions (ls -l)",)
        assert store.remove(name_of("mine/b")).kept[0].startswith("its files stay until this is fixed: ")
        assert "Permission denied" in prune(store).kept[0]
    assert [str(each.name) for each in store.list()] == ["theirs/a:latest"]
    assert verify(store) == []


def test_a_file_in_place_behind_a_closed_folder_is_missing_and_stops_nothing(
    tmp_path: Path, root: Path, store: ModelStore
) -> None:
    (theirs := tmp_path / "theirs").mkdir()
    (theirs / "m.gguf").write_bytes(CONTENT)
    file = replace(weights(), digest="", path=theirs / "m.gguf")
    manifest = store.put(manifest_of("a", file))
    add(store, "b")
    with _closed(theirs), _nobody(root):
        assert store.missing(manifest) == (file,)
        assert "is missing" in refusal(store.file_path, file)
    assert store.missing(manifest) == ()


@contextmanager
def _closed(folder: Path) -> Iterator[None]:
    folder.chmod(0)
    try:
        yield
    finally:
        folder.chmod(0o755)


@contextmanager
def _nobody(root: Path) -> Iterator[None]:
    """Permissions mean nothing to root: the store is given to somebody else, who we are meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    for path in (root, *root.rglob("*")):
        os.chown(path, 65534, 65534)
    above = [each for each in root.parents if not each.stat().st_mode & 1]
    before = {each: each.stat().st_mode for each in above}
    for each in above:
        each.chmod(before[each] | 0o011)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for each in above:
            each.chmod(before[each] & 0o7777)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"kind": "trilithon model", "version": 99}'])
def test_an_unreadable_manifest_spares_every_blob(root: Path, store: ModelStore, content: bytes) -> None:
    kept = add(store, "good")
    add(store, "bad", b"bad")
    path = root / "manifests" / "registry.ollama.ai" / "library" / "bad" / "latest.json"
    path.write_bytes(content)
    store.close()
    listing = store.listing()
    assert listing.manifests == (kept,)
    assert len(listing.problems) == 1
    assert str(path) in listing.problems[0]
    assert "upgrade Trilithon" in refusal(store.get, name_of("bad")) or "rm '" in refusal(store.get, name_of("bad"))
    assert prune(store).kept
    assert store.remove(name_of("good")).kept
    assert store.has(DIGEST)
    assert store.remove(name_of("bad")).kept
    assert prune(store).blobs == 2
    assert entries(root) == set()


def test_a_manifest_in_anothers_place_is_not_believed(root: Path, store: ModelStore) -> None:
    add(store, "a")
    folder = root / "manifests" / "registry.ollama.ai" / "library"
    (folder / "b").mkdir()
    (folder / "b" / "latest.json").write_bytes((folder / "a" / "latest.json").read_bytes())
    assert "it is the manifest of a:latest" in refusal(store.get, name_of("b"))


def test_a_layer_is_read_and_never_written(tmp_path: Path, store: ModelStore) -> None:
    layer = tmp_path / "layer"
    with ModelStore(layer) as below:
        add(below, "shared")
        add(below, "both", b"layer")
    before = {path: path.stat().st_mtime_ns for path in layer.rglob("*")}
    with ModelStore(store.local.root, (layer,)) as above:
        own = add(above, "both", b"own")
        assert [str(each.name) for each in above.list()] == ["both:latest", "shared:latest"]
        assert above.get(name_of("both")) == own
        assert above.blob_path(DIGEST).parent == layer / "blobs"
        assert str(layer) in refusal(above.remove, name_of("shared"))
        with above.receive(DIGEST) as partial:
            assert partial.present
        assert above.copy(name_of("shared"), name_of("mine"))
        assert locate("shared", above, lambda file: True).read_bytes() == CONTENT
        assert above.remove(name_of("mine")).freed_bytes == 0
        assert verify(above) == []
        prune(above)
    assert {path: path.stat().st_mtime_ns for path in layer.rglob("*")} == before


def test_an_adopted_file_is_used_in_place(tmp_path: Path, store: ModelStore) -> None:
    file = tmp_path / "there" / "m.gguf"
    file.parent.mkdir()
    file.write_bytes(CONTENT)
    kept = store.put(manifest_of("m", replace(weights(), digest="", path=file)))
    assert store.missing(kept) == ()
    assert locate("m", store, lambda _: True) == file
    assert verify(store) == []
    assert prune(store).blobs == 0
    store.remove(name_of("m"))
    assert file.read_bytes() == CONTENT
    store.put(manifest_of("m", replace(weights(), digest="", path=file)))
    file.unlink()
    assert store.missing(kept) == kept.files
    assert "is missing" in refusal(locate, "m", store, lambda _: True)
    assert verify(store)[0].problem == "is missing"


# What a store gives and keeps, call by call


def test_where_a_file_lies(tmp_path: Path, store: ModelStore) -> None:
    layers = [tmp_path / "layer-1", tmp_path / "layer-2"]
    for layer in layers:
        with ModelStore(layer) as below:
            below.add_bytes(b"both")
            below.add_bytes(layer.name.encode())
    both, second = (hashlib.sha256(content).hexdigest() for content in (b"both", b"layer-2"))
    root = store.local.root
    with ModelStore(root, [*layers, root]) as above:
        assert [layer.root for layer in above.layers] == layers
        assert (above.where(both), above.where(second)) == above.layers
        assert above.blob_path(second) == layers[1] / "blobs" / f"sha256-{second}"
        assert (above.has(both), above.where(DIGEST), above.has(DIGEST)) == (True, None, False)
        text = f"the file sha256:{DIGEST[:12]}… is not in the store; pull its model again"
        assert refusal(above.blob_path, DIGEST) == text
        above.add_bytes(b"both")  # a layer has it already
        assert above.where(both) is above.layers[0]
        path = tmp_path / "m.gguf"
        file = replace(weights(), digest="", path=path)
        assert refusal(above.file_path, file) == f"{path} (m.gguf) is missing; restore it, or remove the model"
        path.write_bytes(CONTENT)
        assert above.file_path(file) == path
        assert above.file_path(weights(second)) == above.blob_path(second)


def test_where_a_model_lies(tmp_path: Path, store: ModelStore) -> None:
    layers = [tmp_path / "layer-1", tmp_path / "layer-2"]
    for layer in layers:
        with ModelStore(layer) as below:
            add(below, "both", layer.name.encode())
            add(below, layer.name, layer.name.encode())
    add(store, "own")
    with ModelStore(store.local.root, layers) as above:
        names = ("own", "both", "layer-2", "none")
        assert [above.root_of(name_of(name)) for name in names] == [store.local.root, layers[0], layers[1], None]
        assert [above.is_local(name_of(name)) for name in names] == [True, False, False, False]
        assert above.listing().roots == (layers[0], layers[0], layers[1], store.local.root)
        assert refusal(above.remove, name_of("layer-2")) == (
            f"layer-2:latest is in {layers[1]}, which is read only; remove it there, or change the setting stores"
        )
        similar = "there is no both:7b in the store; did you mean both:latest? Or fetch it: trilithon pull both:7b"
        assert refusal(above.get, name_of("both:7b")) == similar
        fix = "see trilithon list, or fetch it: trilithon pull else:latest"
        assert refusal(above.get, name_of("else")) == f"there is no else:latest in the store; {fix}"


def test_a_blob_is_locked_while_it_is_used_and_held_afterwards(store: ModelStore) -> None:
    digest = store.add_bytes(CONTENT)
    store.close()

    def states() -> list[bool]:
        locks = [try_lock(store.local, f"{kind}-{digest}") for kind in ("pull", "hold")]
        for lock in locks:
            if lock is not None:
                lock.release()
        return [lock is not None for lock in locks]

    with store.locked(digest):
        assert states() == [False, False]
    assert states() == [True, False]
    with store.locked(digest):
        pass
    store.close()
    assert states() == [True, True]
    with store.receive(digest) as partial:
        assert partial.present
    assert states() == [True, False]
    store.put(manifest_of("m", weights(digest)))
    assert states() == [True, True]
    with pytest.raises(KeyboardInterrupt), store.locked(digest):
        raise KeyboardInterrupt
    assert states() == [True, False]
    store.close()
    with store.receive(None, len(CONTENT), key="k") as partial:  # its digest is known at the end
        partial.append(CONTENT)
        assert states() == [True, True]
        partial.finish()
    assert states() == [True, False]
    for call in (store.locked, store.receive):
        assert "not a SHA-256" in refusal(call("../x").__enter__)


def test_a_lock_that_another_process_holds_is_waited_for(store: ModelStore) -> None:
    calls: list[str] = []

    def give_up() -> None:
        calls.append("waits")
        raise TimeoutError

    held = try_lock(store.local, f"pull-{DIGEST}")
    assert held is not None
    with pytest.raises(TimeoutError), store.locked(DIGEST, give_up):
        pytest.fail("both had it")
    held.release()
    with store.locked(DIGEST, give_up):
        assert calls == ["waits"]


def test_progress_of_a_copy(tmp_path: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilithon.models.store.model_store._CHUNK_BYTES", 200_000)
    (tmp_path / "file").write_bytes(CONTENT)
    seen: list[tuple[int, int]] = []
    store.add(tmp_path / "file", lambda done, total: seen.append((done, total)))
    assert seen == [(200_000, 300_000), (300_000, 300_000)]
    assert "cannot be read: Is a directory; check" in refusal(store.add, tmp_path)


def test_what_a_killed_process_left_of_small_bytes_is_dropped(root: Path, store: ModelStore) -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    with store.receive(digest, 5) as partial:
        partial.append(b"wro")
    assert store.add_bytes(b"right") == digest
    assert store.add_bytes(b"right") == digest
    assert store.blob_path(digest).read_bytes() == b"right"


def test_a_merge_gets_the_files_that_are_there(store: ModelStore) -> None:
    calls: list[tuple[str, ...]] = []

    def merge(new: Manifest, before: Manifest) -> Manifest:
        calls.append((str(before.name), *(file.name for file in before.files)))
        return replace(new, files=new.files + before.files)

    one, other = (weights(store.add_bytes(content), 3, f"{content.decode()}.gguf") for content in (b"one", b"two"))
    new = weights(store.add_bytes(b"new"), 3, "new.gguf")
    assert store.put(manifest_of("M", one, other), merge=merge).files == (one, other)
    (store.local.root / "blobs" / f"sha256-{other.digest}").unlink()
    stored = store.put(manifest_of("m", new), merge=merge)
    assert (stored.name, stored.files) == (name_of("M"), (new, one))
    assert store.get(name_of("m")) == stored
    assert calls == [("M:latest", "one.gguf")]
    assert store.has(one.digest)


def test_replaced_files_go_unless_another_model_has_them(store: ModelStore) -> None:
    add(store, "m", b"one")
    store.copy(name_of("m"), name_of("n"))
    add(store, "m", b"two")
    assert store.has(hashlib.sha256(b"one").hexdigest())
    add(store, "n", b"two")
    assert not store.has(hashlib.sha256(b"one").hexdigest())
    assert store.has(hashlib.sha256(b"two").hexdigest())
    assert refusal(store.put, store.get(name_of("n")), new=True) == (
        "n:latest exists already; remove it first: trilithon rm n:latest"
    )
    text = refusal(store.put, manifest_of("x", weights("e" * 64, 3, "lost.gguf")))
    assert text == "lost.gguf of x:latest is missing or incomplete; pull it again"


def test_blobs_that_are_being_pulled_are_kept_and_the_others_go(store: ModelStore) -> None:
    digests = sorted(store.add_bytes(bytes([number])) for number in range(6))
    store.put(manifest_of("m", *(weights(digest, 1, f"{digest[:8]}.gguf") for digest in digests)))
    held = [try_lock(store.local, f"hold-{digest}", shared=True) for digest in digests[:4]]
    kept = tuple(f"sha256:{digest[:12]}… is kept: it is being pulled" for digest in digests[:4])
    assert store.remove(name_of("m")) == Removal(2, kept)
    assert [store.has(digest) for digest in digests] == [True] * 4 + [False] * 2
    for lock in held:
        assert lock is not None
        lock.release()


def test_a_manifest_that_cannot_be_read_is_replaced_or_removed(root: Path, store: ModelStore) -> None:
    add(store, "m", b"one")
    path = root / "manifests/registry.ollama.ai/library/m/latest.json"
    path.write_text("{")
    add(store, "good")
    (problem,) = store.listing().problems
    assert store.remove(name_of("good")) == Removal(0, (f"its files stay until this is fixed: {problem}",))
    removal = store.remove(name_of("m"))
    assert removal.kept == ("its manifest could not be read; free its files with: trilithon prune",)
    assert removal.freed_bytes == 0
    add(store, "m", b"two")
    path.write_text("{")
    stored = add(store, "m", b"three")
    assert store.get(name_of("m")) == stored
    path.write_text("{")
    assert store.put(stored, merge=lambda *_: pytest.fail("there is nothing to merge with")) == stored
