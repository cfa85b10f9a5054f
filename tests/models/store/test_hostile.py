"""The store under processes that die or work at once, and under people who plant links and write odd names."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import CONTENT, DIGEST, add, entries, manifest_of, name_of, refusal, weights

from trilithon.errors import ModelError
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, now
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import locate
from trilithon.models.store.upkeep import prune, verify

# Processes


def worker(program: str, *words: object) -> "subprocess.Popen[str]":
    source = (
        f"import sys\nfrom pathlib import Path\nfrom trilithon.models.store.model_store import ModelStore\n{program}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


RECEIVE = """
root, digest, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
content = Path(sys.argv[4]).read_bytes()
with ModelStore(root) as store, store.receive(digest, size) as partial:
    written = 0
    for start, end in partial.missing:
        for at in range(start, end, 10000):
            partial.write_at(at, content[at:min(at + 10000, end)])
            partial.record()
            written += min(10000, end - at)
    partial.finish()
print(written)
"""


def test_two_processes_receive_a_blob_once(tmp_path: Path, root: Path) -> None:
    (tmp_path / "content").write_bytes(CONTENT)
    workers = [worker(RECEIVE, root, DIGEST, len(CONTENT), tmp_path / "content") for _ in range(3)]
    said = [each.communicate(timeout=30) for each in workers]
    assert [each.returncode for each in workers] == [0, 0, 0], said
    assert sorted(int(out) for out, _ in said) == [0, 0, len(CONTENT)]
    assert entries(root) == {f"blobs/sha256-{DIGEST}"}


CHURN = """
import hashlib
import random
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.names import ModelName
from trilithon.models.store.upkeep import prune
from trilithon.errors import ModelError
root, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dice = random.Random(seed)
contents = [random.Random(number).randbytes(40000) for number in range(4)]
print("ready", flush=True)
for _ in range(rounds):
    name = ModelName("h", "n", f"m{dice.randrange(3)}", "t")
    what = dice.random()
    with ModelStore(root) as store:
        if what < 0.6:
            files = []
            for number in dice.sample(range(4), 2):
                content = contents[number]
                digest = hashlib.sha256(content).hexdigest()
                with store.receive(digest, len(content)) as partial:
                    for start, end in partial.missing:
                        for at in range(start, end, 9000):
                            partial.write_at(at, content[at:min(at + 9000, end)])
                            partial.record()
                    partial.finish()
                files.append(StoredFile(role="weights", digest=digest, size_bytes=len(content), name=f"{number}.gguf",
                                        format="gguf"))
            store.put(Manifest(name=name, files=tuple(files), source="churn", created=now()))
        elif what < 0.9:
            try:
                store.remove(name)
            except ModelError as error:
                assert "there is no" in str(error), error
        else:
            prune(store, stale_seconds=0 if dice.random() < 0.3 else 1e9)
print("done")
"""


def sound(root: Path) -> None:
    """Every blob is what its name says, and every model is whole: true at any moment."""
    with ModelStore(root) as store:
        listing = store.listing()
        assert listing.problems == ()
        assert verify(store) == []
        assert all(store.missing(each) == () for each in listing.manifests)


def left_over(root: Path) -> set[str]:
    """What remains beside the models when everything has been pruned."""
    with ModelStore(root) as store:
        prune(store, stale_seconds=0)
        known = {f"blobs/sha256-{digest}" for digest in store.listing().digests}
        known |= {f"manifests/{'/'.join(each.name.parts)}.json" for each in store.list()}
        return entries(root) - known


@pytest.mark.slow
def test_killed_at_any_moment(root: Path) -> None:
    dice = random.Random(6)
    for seed in range(12):
        process = worker(CHURN, root, seed, 10_000)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(dice.uniform(0.0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        sound(root)
    assert left_over(root) == set()


def test_processes_at_once_do_each_other_no_harm(root: Path) -> None:
    workers = [worker(CHURN, root, seed, 25) for seed in range(3)]
    for process in workers:
        out, error = process.communicate(timeout=60)
        assert out.endswith("done\n"), error
    sound(root)
    assert left_over(root) == set()


# Nothing outside


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"secret")
    (folder / f"sha256-{DIGEST}").write_bytes(CONTENT)
    return folder


def picture(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_mode, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    } | {"": (folder.stat().st_mtime_ns, 0, b"")}


PLANTS = st.sampled_from(
    [
        "blobs",
        "manifests",
        "partial",
        "locks",
        "links",
        f"blobs/sha256-{DIGEST}",
        f"partial/sha256-{DIGEST}.data",
        f"partial/sha256-{DIGEST}.json",
        f"locks/receive-sha256-{DIGEST}.lock",
        f"locks/hold-{DIGEST}.lock",
        "locks/store.lock",
        "manifests/registry.ollama.ai",
        "manifests/registry.ollama.ai/library",
        "manifests/registry.ollama.ai/library/m",
        "manifests/registry.ollama.ai/library/m/latest.json",
        "links/registry.ollama.ai",
        "links/registry.ollama.ai/library/m/latest",
        f"links/registry.ollama.ai/library/m/latest/{DIGEST[:16]}",
        f"links/registry.ollama.ai/library/m/latest/{DIGEST[:16]}/m.gguf",
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plants=st.lists(PLANTS, min_size=1, max_size=2, unique=True), to_file=st.booleans(), number=st.integers(0))
def test_planted_links_lead_nowhere(
    tmp_path: Path, outside: Path, plants: list[str], to_file: bool, number: int
) -> None:
    root = tmp_path / f"store-{number}-{time.monotonic_ns()}"
    target = outside / (f"sha256-{DIGEST}" if to_file else ".")
    for plant in sorted(plants, key=len, reverse=True):
        path = root / plant
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.symlink_to(target)
    before = picture(outside)
    with ModelStore(root) as store:
        for call in (
            lambda: store.has(DIGEST),
            lambda: store.add_bytes(CONTENT),
            lambda: store.put(manifest_of("m", weights())),
            lambda: locate("m", store, lambda _: True),
            store.list,
            lambda: verify(store),
            lambda: prune(store, stale_seconds=0),
            lambda: store.remove(name_of("m")),
            lambda: prune(store, stale_seconds=0),
        ):
            try:
                found = call()
            except ModelError as error:
                assert "\n" not in str(error)
                continue
            if isinstance(found, Path):  # nothing that lies outside is handed to an engine
                assert found.resolve().is_relative_to(root.resolve())
    assert picture(outside) == before


part = st.text(max_size=12) | st.sampled_from(["..", ".", "", "/", "a/b", "/etc", "x" * 300, "a\0b", "~", "con", "-rf"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(host=part, namespace=part, model=part, tag=part, digest=part, file=part)
def test_no_name_leads_outside(
    tmp_path: Path, outside: Path, host: str, namespace: str, model: str, tag: str, digest: str, file: str
) -> None:
    root = tmp_path / "deep" / "store"
    name = ModelName(host, namespace, model, tag)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(root)}
    with ModelStore(root) as store:
        stored = store.add_bytes(b"x")
        for call in (
            lambda: store.get(name),
            lambda: store.remove(name),
            lambda: store.copy(name, name_of("m")),
            lambda: store.put(Manifest(name=name, files=(weights(stored, 1),), source="", created=now())),
            lambda: store.put(manifest_of("m", weights(stored, 1, file))),
            lambda: store.put(manifest_of("m", weights(digest, 1))),
            lambda: locate("m", store, lambda _: True),
            lambda: store.has(digest),
            lambda: store.blob_path(digest),
            lambda: store.add_bytes(b"y"),
            lambda: store.remove(name),
        ):
            try:
                call()
            except ModelError as error:
                assert "\n" not in str(error)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(root)} - {root.parent} == before - {
        root.parent
    }


def test_pipes_and_folders_are_no_files(root: Path, store: ModelStore) -> None:
    add(store, "m")
    (root / "blobs" / ("sha256-" + "d" * 64)).mkdir()
    os.mkfifo(root / "blobs" / ("sha256-" + "e" * 64))
    os.mkfifo(root / "manifests" / "registry.ollama.ai" / "library" / "m" / "pipe.json")
    (root / "manifests" / "stray.txt").write_text("hello")
    assert len(store.list()) == 1
    assert not store.has("d" * 64)
    assert not store.has("e" * 64)
    assert verify(store) == []
    prune(store)


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "disk")
    with ModelStore(tmp_path / "models") as store:
        add(store, "m")
        assert locate("m", store, lambda _: True).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with ModelStore(tmp_path / "file" / "models") as store:
        assert "TRILITHON_DATA" in refusal(store.add_bytes, b"x")


def test_locks_fall_with_their_process(root: Path, store: ModelStore) -> None:
    program = (
        "with ModelStore(Path(sys.argv[1])).locked('a' * 64):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    process = worker(program, root)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with (root / "locks" / f"pull-{'a' * 64}.lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.kill()
    process.communicate()
    with store.locked("a" * 64, on_wait=lambda: pytest.fail("still held")):
        pass
