"""A pull killed before its steps on the disk: what is to be seen is whole, and the next pull fixes the rest."""

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin_hub import HubRepository, HubStandIn
from standin_registry import RegistryStandIn
from standin_web import WebStandIn

from trilithon.models.store.model_store import ModelStore

DATA = b"GGUF" + random.Random(4).randbytes(150_000)
# One process pays for the imports; each pull is a fork of it that ends, as by SIGKILL, before the step of that number.
PULLER = """
import json, os, sys
from pathlib import Path
import httpx, huggingface_hub.hf_api
from trilithon.models.store import partial
from trilithon.models.fetch.choose import Target
from trilithon.models.fetch.download import Download
from trilithon.models.names import parse_reference
from trilithon.models.fetch.pull import pull
from trilithon.models.fetch.download_list import PullOptions
from trilithon.models.store.model_store import ModelStore

partial._RECORD_BYTES = 20_000
steps = 0

def counted(call, is_step, last):
    def step(*words, **more):
        global steps
        if is_step(words):
            steps += 1
            if steps == last:
                os._exit(77)
        return call(*words, **more)
    return step

def run(root, text, chip, last):
    for name in ("rename", "unlink", "pwrite", "fsync", "fdatasync", "ftruncate", "mkdir", "fchmod", "rmdir"):
        setattr(os, name, counted(getattr(os, name), lambda _: True, last))
    os.open = counted(os.open, lambda words: words[1] & os.O_CREAT, last)
    wanted = Target(chip=chip, chip_by_name=bool(chip))
    options = PullOptions(target=wanted, transfer=Download(), insecure=True)
    with ModelStore(Path(root)) as store:
        pull(parse_reference(text), store, options, lambda _: None)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            run(*json.loads(line))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


EVERY = 7


class Puller:
    def __init__(self, process: "subprocess.Popen[str]"):
        self._process = process

    def pull(self, root: Path, text: str, chip: str = "", last: int = 0) -> int:
        """The exit code: 77 where it was ended before step `last`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(root), text, chip, last]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@pytest.fixture
def registry() -> Iterator[RegistryStandIn]:
    with RegistryStandIn() as server:
        server.add("library/m", "latest", [("model", DATA), ("template", "x"), ("license", "MIT")])
        yield server


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with WebStandIn() as storage, HubStandIn(storage) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        files = {f"M-{chip}.rkllm": DATA[number:] for number, chip in enumerate(("rk3588", "rk3576"), start=1)}
        server.repositories["u/M"] = HubRepository({**files, "tokenizer.json": b"{}" * 2000, "config.json": b"{}"})
        yield server


@pytest.fixture
def puller(home: Path, hub: HubStandIn) -> Iterator[Puller]:
    words = [sys.executable, "-c", PULLER]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield Puller(process)
    _, said = process.communicate(timeout=20)
    assert said == ""


def require_whole(root: Path) -> None:
    """Whatever has a final name is what it says."""
    with ModelStore(root) as store:
        listing = store.listing()
        assert listing.problems == ()
        assert [store.missing(manifest) for manifest in listing.manifests] == [()] * len(listing.manifests)
    for blob in root.glob("blobs/*"):
        assert blob.name == f"sha256-{hashlib.sha256(blob.read_bytes()).hexdigest()}"


def require_clean(root: Path, weights: int) -> None:
    with ModelStore(root) as store:
        (manifest,) = store.list()
    assert len(manifest.of_role("weights")) == weights
    assert {path.name for path in root.glob("blobs/*")} == {f"sha256-{file.digest}" for file in manifest.files}
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    assert [str(path) for path in files if path.parts[0] not in ("blobs", "manifests")] == []


def killed_at_each(puller: Puller, folder: Path, text: str, chip: str, before: str) -> int:
    """Every seventh step; how many there were. `before` is a chip that was pulled already."""
    for last in range(1, 1000, EVERY):
        root = folder / str(last)
        if before:
            assert puller.pull(root, text, before) == 0
        code = puller.pull(root, text, chip, last)
        require_whole(root)
        if code == 0:
            return last - 1
        assert code == 77
        assert puller.pull(root, text, chip) == 0
        require_clean(root, weights=2 if before else 1)
    raise AssertionError("it never came to its end")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pull_from_a_registry(puller: Puller, registry: RegistryStandIn, tmp_path: Path) -> None:
    assert killed_at_each(puller, tmp_path / "stores", f"{registry.host}/library/m", "", "") > 80


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pull_for_a_second_chip(puller: Puller, tmp_path: Path) -> None:
    assert killed_at_each(puller, tmp_path / "stores", "hf.co/u/M", "rk3576", "rk3588") > 40
