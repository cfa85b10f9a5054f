"""Real transfers from a server on loopback that cuts, hangs, changes its mind and lies."""

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin_web import Asked, Fault, WebStandIn

from trilithon.errors import DownloadError, ModelError
from trilithon.models.fetch.download import Download, FileChanged, Remote, download, probe, segments
from trilithon.models.fetch.http_client import DownloadSource, RetryPolicy, redacted_url
from trilithon.models.fetch.transfer_rate import TransferProgress
from trilithon.models.store.model_store import ModelStore

QUICK = RetryPolicy(attempts=4, first_wait_seconds=0.01, longest_wait_seconds=0.05, silence_seconds=1.0)
TRANSFER = Download(retry=QUICK)
DATA = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def web() -> Iterator[WebStandIn]:
    with WebStandIn() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    with ModelStore(tmp_path / "models") as opened:
        yield opened


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def silent(_: TransferProgress) -> None:
    pass


def fetch(
    store: ModelStore,
    url: str,
    data: bytes = DATA,
    *,
    transfer: Download = TRANSFER,
    tell: Callable[[TransferProgress], None] = silent,
    size: int | None = None,
    **source: object,
) -> bytes:
    """By its sum, as the hub and registries do; what the store then holds."""
    with store.receive(sha256(data), len(data) if size is None else size) as partial:
        download(DownloadSource(url=url, **source), partial, transfer=transfer, report=tell)  # type: ignore[arg-type]
        return store.blob_path(partial.finish()).read_bytes()


def debris(store: ModelStore) -> list[str]:
    """What lies about beside blobs."""
    root = store.local.root
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.parent.name != "blobs"]


def test_a_file_comes_in_several_ranges_at_once(web: WebStandIn, store: ModelStore) -> None:
    url = web.put("/m.gguf", DATA)
    assert fetch(store, url) == DATA
    spans = {asked.span for asked in web.asked if not asked.is_look}
    assert len(spans) == 3
    store.close()
    assert debris(store) == []


@pytest.mark.parametrize("data", [b"", b"x", DATA[: 1 << 20], DATA[: (1 << 20) + 1]])
def test_any_length(web: WebStandIn, store: ModelStore, data: bytes) -> None:
    assert fetch(store, web.put("/m", data), data) == data


@pytest.mark.parametrize("says_length", [True, False])
def test_a_server_without_ranges(web: WebStandIn, store: ModelStore, says_length: bool) -> None:
    url = web.put("/m", DATA, ranges=False, says_length=says_length)
    cut = iter([500_000])
    web.fault = lambda asked: Fault(after=next(cut, None)) if asked.span is None else None
    assert fetch(store, url) == DATA


def test_what_came_before_a_failure_is_not_fetched_again(web: WebStandIn, store: ModelStore) -> None:
    url = web.put("/m", DATA)
    web.fault = lambda asked: Fault(after=100_000) if not asked.is_look and asked.number < 8 else None
    with pytest.raises(DownloadError):
        web.fault = lambda asked: None if asked.is_look else Fault(after=0 if asked.number > 4 else 300_000)
        fetch(store, url)
    came, web.fault, before = web.sent_bytes, lambda _: None, len(web.asked)
    assert came >= 300_000
    assert fetch(store, url) == DATA
    assert (
        sum((s[1] or 0) - s[0] + 1 for a in web.asked[before:] if not a.is_look and (s := a.span))
        == len(DATA) - came + 1
    )
    assert debris(store) != []  # the locks, which the store holds until `put`
    store.close()
    assert debris(store) == []


@pytest.mark.parametrize("seed", range(12))
def test_random_cuts_end_with_the_right_bytes(web: WebStandIn, store: ModelStore, seed: int) -> None:
    luck = random.Random(seed)
    data = DATA[: luck.randrange(1, len(DATA))]
    url = web.put("/m", data)
    web.fault = lambda _: Fault(after=luck.randrange(0, 400_000)) if luck.random() < 0.5 else None
    patient = RetryPolicy(attempts=50, first_wait_seconds=0.001, longest_wait_seconds=0.002, silence_seconds=1)
    assert fetch(store, url, data, transfer=Download(retry=patient)) == data
    store.close()
    assert debris(store) == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_a_busy_server_is_asked_again(web: WebStandIn, store: ModelStore, status: int) -> None:
    url = web.put("/m", DATA)
    web.fault = lambda asked: Fault(status=status) if asked.number in (1, 3, 4, 6) else None
    assert fetch(store, url) == DATA


def test_retry_after_is_obeyed_by_all_connections(web: WebStandIn, store: ModelStore) -> None:
    url = web.put("/m", DATA)
    times: list[float] = []

    def fault(asked: Asked) -> Fault | None:
        times.append(time.monotonic())
        return Fault(status=429, headers={"Retry-After": "1"}) if asked.number == 1 else None

    web.fault = fault
    assert fetch(store, url) == DATA
    assert times[1] - times[0] >= 0.99


def test_a_wait_of_hours_is_refused(web: WebStandIn, store: ModelStore) -> None:
    url = web.put("/m", DATA)
    web.fault = lambda _: Fault(status=429, headers={"Retry-After": "7200"})
    with pytest.raises(DownloadError, match=r"asks to wait 2:00:00 .*run the same command again then"):
        fetch(store, url)
    web.fault = lambda _: Fault(status=503, headers={"Retry-After": "Fri, 31 Dec 2999 23:59:59 GMT"})
    with pytest.raises(DownloadError, match="asks to wait"):
        fetch(store, url)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(status=503), "failed 4 times, the last time: status 503 Service Unavailable; run the command again"),
        (Fault(after=0), "failed 4 times, the last time: the connection was cut"),
        (Fault(after=0, silent_seconds=5), "the last time: no data came in time"),
    ],
)
def test_patience_ends(web: WebStandIn, store: ModelStore, fault: Fault, words: str) -> None:
    url = web.put("/m", DATA)
    web.fault = lambda asked: None if asked.is_look else fault
    with pytest.raises(DownloadError, match=words):
        fetch(store, url)


def test_no_server(web: WebStandIn, store: ModelStore) -> None:
    with WebStandIn() as gone:
        url = gone.url
    with pytest.raises(DownloadError, match=r"127.0.0.1 failed 4 times, the last time: no connection"):
        fetch(store, f"{url}/m")


def test_one_connection_only(web: WebStandIn, store: ModelStore) -> None:
    """Servers that let one address have one connection: the others wait, however long the file takes."""
    url, busy = web.put("/m", DATA), threading.Lock()

    def fault(asked: Asked) -> Fault | None:
        if asked.is_look:
            return None
        if not busy.acquire(blocking=False):
            return Fault(status=429)
        threading.Timer(0.2, busy.release).start()
        return Fault(pace=8_000_000)

    web.fault = fault
    retry = RetryPolicy(attempts=6, first_wait_seconds=0.02, longest_wait_seconds=0.1)
    assert fetch(store, url, transfer=Download(retry=retry)) == DATA


def test_a_trickle_is_not_waited_for(web: WebStandIn, store: ModelStore) -> None:
    url = web.put("/m", DATA)
    web.fault = lambda asked: Fault(pace=20) if asked.number == 2 else None
    began = time.monotonic()
    assert fetch(store, url) == DATA
    assert time.monotonic() - began < 60


def test_a_file_that_changes_is_not_glued(web: WebStandIn, store: ModelStore) -> None:
    other = DATA[::-1]
    url = web.put("/m", other)

    def fault(asked: Asked) -> Fault | None:
        if asked.number == 4:
            web.put("/m", DATA)
        return None

    web.fault = fault
    assert fetch(store, url) == DATA


def test_a_changed_file_without_a_sum_is_the_callers_to_begin_anew(web: WebStandIn, store: ModelStore) -> None:
    source = DownloadSource(url=web.put("/m", DATA))
    remote = probe(source, TRANSFER)
    web.put("/m", DATA[::-1])
    with store.receive(None, remote.size_bytes, key="k") as partial, pytest.raises(FileChanged):
        download(source, partial, transfer=TRANSFER, report=silent, remote=remote)


def test_servers_that_disagree_on_the_version_are_borne_with_where_the_sum_decides(
    web: WebStandIn, store: ModelStore
) -> None:
    url = web.put("/m", DATA, etag="")
    web.fault = lambda asked: Fault(headers={"ETag": f'"{asked.number}"'})
    assert fetch(store, url) == DATA


def test_without_version_and_sum_the_whole_is_fetched_in_one_go(web: WebStandIn, store: ModelStore) -> None:
    source = DownloadSource(url=web.put("/m", DATA, etag=""))
    remote = probe(source, TRANSFER)
    assert (remote.version, remote.ranges) == ("", True)
    with store.receive(None, remote.size_bytes) as partial:
        download(source, partial, transfer=TRANSFER, report=silent, remote=remote)
        assert partial.finish() == sha256(DATA)
    assert [asked.span for asked in web.asked] == [(0, 0), None]


def test_a_wrong_length_is_told_before_the_transfer(web: WebStandIn, store: ModelStore) -> None:
    url = web.put("/m", DATA)
    with pytest.raises(ModelError, match=r"/m has 3000000 bytes and should have 2999999: it is not the announced file"):
        fetch(store, url, size=len(DATA) - 1)
    assert web.sent_bytes <= 1
    assert not store.has(sha256(DATA))


def test_a_wrong_sum_leaves_nothing(web: WebStandIn, store: ModelStore) -> None:
    url = web.put("/m", DATA)
    web.fault = lambda asked: Fault(spoil=True)
    with pytest.raises(ModelError, match=r"its SHA-256 is [0-9a-f]{64} and should be [0-9a-f]{64}; pull it again"):
        fetch(store, url)
    store.close()
    assert debris(store) == []
    assert list(store.local.root.rglob("sha256-*")) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes 5-10/3000000", "Content-Length": "6"},
        {"Content-Range": "bytes 0-2999999/3000000", "Content-Length": "3000000"},
    ],
)
def test_other_bytes_than_asked_for(web: WebStandIn, store: ModelStore, headers: dict[str, str]) -> None:
    url = web.put("/m", DATA)
    web.fault = lambda asked: (
        None if asked.is_look else Fault(status=206, headers={"ETag": web.files["/m"].version} | headers, body=b"")
    )
    with pytest.raises(DownloadError, match="sends a wrong range"):
        fetch(store, url)


def test_packed_content_is_refused(web: WebStandIn, store: ModelStore) -> None:
    with pytest.raises(DownloadError, match="sends compressed data"):
        fetch(store, web.put("/m", DATA, headers={"Content-Encoding": "gzip"}))


def test_secrets_stay_with_their_host(web: WebStandIn, store: ModelStore) -> None:
    with WebStandIn() as storage:
        target = storage.put("/signed", DATA)
        web.fault = lambda asked: Fault(status=307, headers={"Location": f"{target}?signature=1"})
        assert fetch(store, f"{web.url}/m", headers={"Authorization": "Bearer secret"}) == DATA
        assert {asked.headers.get("authorization") for asked in web.asked} == {"Bearer secret"}
        assert {asked.headers.get("authorization") for asked in storage.asked} == {None}


def test_a_relative_redirect_keeps_them(web: WebStandIn, store: ModelStore) -> None:
    web.put("/b", DATA)
    web.fault = lambda asked: Fault(status=302, headers={"Location": "b"}) if asked.path == "/a" else None
    assert fetch(store, f"{web.url}/a", headers={"Authorization": "Bearer secret"}) == DATA
    assert {asked.headers.get("authorization") for asked in web.asked} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/a", "redirects too often"),
        ("file:///etc/passwd", "redirects to file:, which is not followed"),
        ("", "redirects without a target"),
    ],
)
def test_redirects_that_are_not_followed(web: WebStandIn, store: ModelStore, location: str, words: str) -> None:
    web.fault = lambda _: Fault(status=302, headers={"Location": location})
    with pytest.raises((DownloadError, ModelError), match=words):
        fetch(store, f"{web.url}/a")


@pytest.mark.parametrize(
    ("status", "words"), [(401, "requires a login"), (404, "has no such file"), (418, "unexpected")]
)
def test_what_no_second_try_fixes(web: WebStandIn, store: ModelStore, status: int, words: str) -> None:
    web.fault = lambda _: Fault(status=status)
    with pytest.raises((ModelError, DownloadError), match=rf"{words}.*status {status} for http://127.0.0.1:\d+/a\)"):
        fetch(store, f"{web.url}/a?token=secret")
    assert len(web.asked) == 1


def test_the_limit_is_kept(web: WebStandIn, store: ModelStore) -> None:
    url = web.put("/m", DATA[:1_000_000])
    began = time.monotonic()
    fetch(store, url, DATA[:1_000_000], transfer=Download(retry=QUICK, limit=2_000_000))
    assert 0.25 < time.monotonic() - began < 60


def test_progress_has_rate_and_time_left(web: WebStandIn, store: ModelStore) -> None:
    url, seen = web.put("/m", DATA), list[TransferProgress]()
    web.fault = lambda _: Fault(pace=1_500_000)
    fetch(store, url, tell=seen.append)
    assert seen[-1].done_bytes == seen[-1].total_bytes == len(DATA)
    assert [each.done_bytes for each in seen] == sorted(each.done_bytes for each in seen)
    middle = [each for each in seen if each.seconds_left and each.bytes_per_second]
    assert middle
    assert all(0 < (each.bytes_per_second or 0) < 20e6 for each in middle)


def test_whoever_is_told_may_give_up(web: WebStandIn, store: ModelStore) -> None:
    url = web.put("/m", DATA)
    web.fault = lambda asked: None if asked.is_look else Fault(pace=50_000)
    calls: list[TransferProgress] = []

    def tell(progress: TransferProgress) -> None:
        calls.append(progress)
        if len(calls) == 3:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch(store, url, tell=tell)
    assert time.monotonic() - began < 30
    web.fault = lambda _: None
    assert fetch(store, url) == DATA


def test_the_proposed_name(web: WebStandIn) -> None:
    for disposition, name in [
        ('attachment; filename="a b.gguf"', "a b.gguf"),
        ("attachment; filename=a.gguf; size=3", "a.gguf"),
        ("attachment; filename=x; filename*=UTF-8''%C3%A4.gguf", "ä.gguf"),
        ("inline", ""),
    ]:
        url = web.put("/m", DATA, headers={"Content-Disposition": disposition})
        assert probe(DownloadSource(url=url), TRANSFER) == Remote(
            size_bytes=len(DATA), version=web.files["/m"].version, ranges=True, file_name=name
        )


@pytest.mark.parametrize("url", ["ftp://host/x", "https://", "host/x", "http://example.org/x"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ModelError, match="write https"):
        DownloadSource(url=url)


def test_plain_http_has_to_be_wanted() -> None:
    assert DownloadSource(url="http://example.org/x", insecure=True)
    assert DownloadSource(url="http://localhost:1/x")


def test_secrets_in_an_address_are_not_shown() -> None:
    assert redacted_url("https://me:word@host:8/a/b.gguf?X-Signature=1#x") == "https://host:8/a/b.gguf"


@given(
    gaps=st.lists(st.tuples(st.integers(0, 10**11), st.integers(1, 10**9)), max_size=4), connections=st.integers(1, 8)
)
def test_segments_cover_what_is_missing(gaps: list[tuple[int, int]], connections: int) -> None:
    missing = tuple((start, start + length) for start, length in gaps)
    found = segments(missing, connections)
    assert all(0 < end - start <= 32 << 20 for start, end in found)
    assert sum(end - start for start, end in found) == sum(length for _, length in gaps)
    assert {start for start, _ in missing} <= {start for start, _ in found}
