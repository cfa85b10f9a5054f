"""Pulls that are stopped, killed, doubled, or of an address: the right bytes, once, and nothing left lying about."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from other_ggufs import write_adapter, write_imatrix, write_projector
from standin_registry import RegistryStandIn
from standin_web import Asked, Fault, WebStandIn

from trilithon.errors import DownloadError, ModelError, NotAModel
from trilithon.models.fetch.choose import Target
from trilithon.models.fetch.download import Download
from trilithon.models.fetch.download_list import PullOptions
from trilithon.models.fetch.http_client import RetryPolicy
from trilithon.models.fetch.pull import Pulled, PullStep, pull
from trilithon.models.names import parse_reference
from trilithon.models.store.model_store import ModelStore

PATIENCE = RetryPolicy(attempts=3, first_wait_seconds=0.01, longest_wait_seconds=0.02, silence_seconds=2)
OPTIONS = PullOptions(target=Target(chip="unknown"), transfer=Download(retry=PATIENCE), insecure=True)
DATA = b"GGUF" + random.Random(2).randbytes(2_500_000)
# A process of its own, for it is killed: the pull as the program makes it, only that it notes often what came.
PULLER = """
import sys
from pathlib import Path
from trilithon.errors import TrilithonError
from trilithon.models.store import partial
from trilithon.models.fetch.choose import Target
from trilithon.models.fetch.download import Download
from trilithon.models.fetch.http_client import RetryPolicy
from trilithon.models.names import parse_reference
from trilithon.models.fetch.pull import pull
from trilithon.models.fetch.download_list import PullOptions
from trilithon.models.store.model_store import ModelStore

partial._RECORD_BYTES = 200_000
retry = RetryPolicy(attempts=30, first_wait_seconds=0.002, longest_wait_seconds=0.01, silence_seconds=5)
options = PullOptions(target=Target(chip="unknown"), transfer=Download(retry=retry), insecure=True)
with ModelStore(Path(sys.argv[1])) as store:
    while line := sys.stdin.readline().strip():
        try:
            pulled = pull(parse_reference(line), store, options, lambda step: print(step.stage, flush=True))
            print("done", pulled.fetched_bytes, flush=True)
        except TrilithonError as error:
            print("failed", error, flush=True)
"""


@pytest.fixture
def registry() -> Iterator[RegistryStandIn]:
    with RegistryStandIn() as server:
        yield server


@pytest.fixture
def web() -> Iterator[WebStandIn]:
    with WebStandIn() as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def fetch(root: Path, text: str, tell: Callable[[PullStep], None] = lambda _: None) -> Pulled:
    with ModelStore(root) as store:
        return pull(parse_reference(text), store, OPTIONS, tell)


def content(root: Path, pulled: Pulled) -> bytes:
    return ModelStore(root).file_path(pulled.manifest.files[0]).read_bytes()


def lying_about(root: Path) -> list[str]:
    """Files that are neither blobs nor manifests."""
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return [str(path) for path in found if path.parts[0] not in ("blobs", "manifests")]


def start(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PULLER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def ask(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{text}\n")
    process.stdin.flush()


def outcome(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(("done", "failed")):
            return line.strip()
    raise AssertionError("the process ended")


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=20)


def test_a_stopped_pull_keeps_what_came(registry: RegistryStandIn, root: Path) -> None:
    registry.add("library/tiny", "latest", [("model", DATA)])
    registry.fault = lambda asked: Fault(pace=1_000_000) if "blobs" in asked.path and not asked.is_look else None

    def tell(step: PullStep) -> None:
        if step.stage == "fetching" and step.progress and step.progress.done_bytes > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(root, f"{registry.host}/library/tiny", tell)
    assert ModelStore(root).list() == ()
    registry.fault = lambda _: None
    pulled = fetch(root, f"{registry.host}/library/tiny")
    assert 0 < pulled.fetched_bytes < len(DATA) - 500_000
    assert content(root, pulled) == DATA
    assert lying_about(root) == []


def _kill_again_and_again(root: Path, registry: RegistryStandIn, count: int, seed: int) -> int:
    """Pull `count` models with cuts, and kill half of the pulls at some moment; how often one was killed."""
    luck, killed = random.Random(seed), 0
    registry.fault = lambda asked: _misfortune(asked, luck)
    process = start(root)
    for number in range(count):
        data = b"GGUF" + random.Random(number).randbytes(luck.randrange(1, 600_000))
        registry.add("library/m", str(number), [("model", data)])
        reference = f"{registry.host}/library/m:{number}"
        ask(process, reference)
        if luck.random() < 0.5:
            time.sleep(luck.uniform(0, 0.12))
            os.kill(process.pid, signal.SIGKILL)
            end(process)
            killed += 1
            process = start(root)
            ask(process, reference)
        assert outcome(process).startswith("done")
    assert process.stdin is not None
    end(process)
    return killed


def _misfortune(asked: Asked, luck: random.Random) -> Fault | None:
    if luck.random() < 0.6:
        return None
    if "manifests" in asked.path or luck.random() < 0.2:
        return Fault(status=luck.choice([429, 500, 503]))
    return Fault(after=luck.randrange(0, 300_000), spoil=False)


def _require_all(root: Path, count: int) -> None:
    store = ModelStore(root)
    models = {manifest.name.tag: manifest for manifest in store.list()}
    assert len(models) == count
    for number in range(count):
        data = store.file_path(models[str(number)].files[0]).read_bytes()
        assert data == b"GGUF" + random.Random(number).randbytes(len(data) - 4)
        assert len(data) == models[str(number)].files[0].size_bytes
    assert lying_about(root) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fifty_downloads_with_cuts_and_kills(registry: RegistryStandIn, root: Path) -> None:
    assert _kill_again_and_again(root, registry, 50, seed=2) > 15
    _require_all(root, 50)


def test_two_processes_download_it_once(registry: RegistryStandIn, root: Path) -> None:
    registry.add("library/tiny", "latest", [("model", DATA)])
    registry.fault = lambda asked: Fault(pace=5_000_000) if "blobs" in asked.path and not asked.is_look else None
    processes = [start(root), start(root)]
    for process in processes:
        ask(process, f"{registry.host}/library/tiny")
    fetched = sorted(int(outcome(process).split()[1]) for process in processes)
    for process in processes:
        end(process)
    assert fetched == [0, len(DATA)]
    weights = [asked for asked in registry.asked if asked.span and not asked.is_look]
    assert sum((asked.span[1] or 0) - asked.span[0] + 1 for asked in weights if asked.span) == len(DATA)
    assert lying_about(root) == []


def test_the_disk_needs_room_for_it_once(
    registry: RegistryStandIn, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process still has to write of the same file is not asked for a second time."""
    digest = registry.add("library/tiny", "latest", [("model", DATA)])[0]
    free = len(DATA) * 3 // 2 + (64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    def tell(step: PullStep) -> None:
        if step.stage == "waiting":
            raise KeyboardInterrupt

    with ModelStore(root) as other, other.receive(digest, len(DATA)) as partial:
        partial.write_at(0, DATA[:1000])
        partial.record()
        with pytest.raises(KeyboardInterrupt):
            fetch(root, f"{registry.host}/library/tiny", tell)


def test_whoever_waits_is_told(registry: RegistryStandIn, root: Path) -> None:
    digest = registry.add("library/tiny", "latest", [("model", DATA)])[0]
    steps: list[PullStep] = []

    def tell(step: PullStep) -> None:
        steps.append(step)
        if len([each for each in steps if each.stage == "waiting"]) == 2:
            raise KeyboardInterrupt

    with ModelStore(root) as other, other.receive(digest, len(DATA)) as partial:
        partial.write_at(0, DATA[:1_000_000])
        partial.record()
        with pytest.raises(KeyboardInterrupt):
            fetch(root, f"{registry.host}/library/tiny", tell)
    waiting = [step.progress for step in steps if step.stage == "waiting"]
    assert waiting[-1] is not None
    assert (waiting[-1].done_bytes, waiting[-1].total_bytes) == (1_000_000, len(DATA))


# From an address


def test_an_address(web: WebStandIn, root: Path) -> None:
    pulled = fetch(root, web.put("/files/Tiny-Q8_0.gguf", DATA) + "?download=1&token=secret")
    assert str(pulled.manifest.name) == "url/Tiny-Q8_0:latest"
    assert pulled.manifest.files[0].quantization == "Q8_0"
    assert pulled.manifest.source == f"{web.url}/files/Tiny-Q8_0.gguf"
    assert "has no checksum" in pulled.notes[0]
    assert content(root, pulled) == DATA
    assert lying_about(root) == []


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="real.Q4_0.gguf"', "real.Q4_0.gguf"),
        ('attachment; filename="../../../../evil.gguf"', "evil.gguf"),
        ("attachment; filename*=UTF-8''%2Fetc%2Fevil%00%0A.rkllm", "evil__.rkllm"),
        ("attachment; filename=..\\..\\c.gguf", "c.gguf"),
    ],
)
def test_the_name_that_a_server_proposes_is_made_safe(web: WebStandIn, root: Path, disposition: str, name: str) -> None:
    pulled = fetch(root, web.put("/get", DATA, headers={"Content-Disposition": disposition}))
    assert pulled.manifest.files[0].name == name
    assert {path.parts[0] for path in (path.relative_to(root) for path in root.rglob("*"))} <= {
        *("blobs", "manifests", "partial", "locks")
    }


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page.html", "is page.html, not a GGUF or RKLLM file"),
        ("/a-00001-of-00002.gguf", "one shard of 2"),
        ("/", "is file"),
    ],
)
def test_addresses_of_no_model(web: WebStandIn, root: Path, path: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        fetch(root, web.put(path, DATA))
    assert not root.exists()


def test_an_address_whose_file_changes_meanwhile(web: WebStandIn, root: Path) -> None:
    url = web.put("/m.gguf", DATA[::-1])

    def fault(asked: Asked) -> None:
        if asked.number == 3:
            web.put("/m.gguf", DATA)

    web.fault = fault
    assert content(root, fetch(root, url)) == DATA
    assert lying_about(root) == []


def test_an_address_whose_file_never_stays_the_same(web: WebStandIn, root: Path) -> None:
    url = web.put("/m.gguf", DATA, etag="")
    web.fault = lambda asked: Fault(headers={"ETag": f'"{asked.number}"'})
    with pytest.raises(DownloadError, match="keeps changing while it is fetched; try again later"):
        fetch(root, url)
    assert lying_about(root) == []


def test_an_address_is_taken_up_where_it_stopped(web: WebStandIn, root: Path) -> None:
    url = web.put("/m.gguf", DATA)
    web.fault = lambda asked: None if asked.is_look else Fault(after=100_000 if asked.number < 5 else 0)
    with pytest.raises(DownloadError):
        fetch(root, url)
    web.fault = lambda _: None
    pulled = fetch(root, url)
    assert pulled.fetched_bytes < len(DATA)
    assert content(root, pulled) == DATA
    assert lying_about(root) == []


def test_an_address_that_is_denied_meanwhile_keeps_what_came(web: WebStandIn, root: Path) -> None:
    url = web.put("/m.gguf", DATA)
    web.fault = lambda asked: None if asked.is_look else Fault(after=100_000) if asked.number < 5 else Fault(status=403)
    with pytest.raises(ModelError, match="denies access"):
        fetch(root, url)
    web.fault = lambda _: None
    assert fetch(root, url).fetched_bytes < len(DATA)


def test_another_version_begins_anew(web: WebStandIn, root: Path) -> None:
    url = web.put("/m.gguf", DATA)
    web.fault = lambda asked: None if asked.is_look else Fault(after=100_000 if asked.number < 5 else 0)
    with pytest.raises(DownloadError):
        fetch(root, url)
    web.fault = lambda _: None
    web.put("/m.gguf", DATA[:4] + DATA[:3:-1])
    pulled = fetch(root, url)
    assert pulled.fetched_bytes == len(DATA)
    assert content(root, pulled) == DATA[:4] + DATA[:3:-1]


def test_two_processes_and_one_address(web: WebStandIn, root: Path) -> None:
    url = web.put("/m.gguf", DATA)
    web.fault = lambda asked: None if asked.is_look else Fault(pace=5_000_000)
    processes = [start(root), start(root)]
    for process in processes:
        ask(process, url)
    assert sorted(int(outcome(process).split()[1]) for process in processes) == [0, len(DATA)]
    for process in processes:
        end(process)
    assert lying_about(root) == []


def test_two_addresses_that_end_in_one_name(web: WebStandIn, root: Path) -> None:
    fetch(root, web.put("/a/m.gguf", DATA))
    with pytest.raises(ModelError, match=r"url/m:latest exists already, from http://.*/a/m.gguf; remove it first"):
        fetch(root, web.put("/b/m.gguf", DATA[::-1]))


def test_a_file_of_unknown_length(web: WebStandIn, root: Path, tiny: Path) -> None:
    model = tiny.read_bytes()
    url = web.put("/m.gguf", model, ranges=False, says_length=False)
    assert content(root, fetch(root, url)) == model
    web.put("/cut.gguf", model[:-1000], ranges=False, says_length=False)
    with pytest.raises(ModelError, match=r"^cut.gguf is truncated"):
        fetch(root, f"{web.url}/cut.gguf")
    assert lying_about(root) == []


def test_a_file_of_unknown_length_leaves_room_on_the_disk(
    web: WebStandIn, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = web.put("/m.gguf", DATA, ranges=False, says_length=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    with pytest.raises(ModelError, match=r"are needed in .*, 0 B are free; remove a model"):
        fetch(root, url)
    assert lying_about(root) == []


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("m.gguf", b"<!DOCTYPE html><title>log in</title>", "is a web page, not a model"),
        ("m.rkllm", b"\n<html>", "is a web page, not a model"),
        ("m.gguf", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not a model"),
        ("m.gguf", b'{"error": "no"}', "is not a GGUF: it starts with"),
        ("m.gguf", b"", "is not a GGUF"),
    ],
)
def test_a_page_under_the_name_of_a_model(web: WebStandIn, root: Path, name: str, data: bytes, words: str) -> None:
    url = web.put(f"/{name}", data)
    with pytest.raises(ModelError, match=rf"the response of {url} {words}"):
        fetch(root, f"{url}?signature=secret")
    assert lying_about(root) == []
    assert not list(root.rglob("blobs/*"))


@pytest.mark.parametrize("write", [write_adapter, write_projector, write_imatrix])
def test_a_file_that_is_no_model_is_not_kept(
    web: WebStandIn, registry: RegistryStandIn, root: Path, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    """From an address and from a registry, whatever its name says."""
    data = write(tmp_path / "x.gguf").read_bytes()
    registry.add("library/style", "latest", [("model", data)])
    for reference in (web.put("/m.gguf", data), f"{registry.host}/library/style"):
        with pytest.raises(NotAModel, match=r"\.gguf is an? .*no engine runs it alone"):
            fetch(root, reference)
        assert lying_about(root) == []
        assert not list(root.rglob("blobs/*"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("style-lora.gguf", "is an adapter by its name"),
        ("mtp-Qwen3.6-27B-Q8_0.gguf", "is a draft head by its name, and no engine runs it alone"),
        ("mmproj-F16.gguf", "is a projector by its name"),
    ],
)
def test_an_address_of_what_is_no_model(web: WebStandIn, root: Path, name: str, words: str) -> None:
    with pytest.raises(NotAModel, match=words):
        fetch(root, web.put(f"/{name}", DATA))
    assert lying_about(root) == []


def test_what_cannot_be_gone_on_with_is_not_kept(web: WebStandIn, root: Path) -> None:
    """A server without ranges begins anew each time, and one that never ends would leave the disk full."""
    url = web.put("/m.gguf", DATA, ranges=False)
    web.fault = lambda asked: None if asked.is_look else Fault(after=300_000)
    with pytest.raises(DownloadError):
        fetch(root, url)
    assert lying_about(root) == []


def test_a_path_needs_no_pull(root: Path) -> None:
    with pytest.raises(ModelError, match=r"/srv/m.gguf is a local file and needs no pull"):
        fetch(root, "/srv/m.gguf")
