"""Pull a model into the store: find its files, fetch each once, and write its manifest when all are complete."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, TypeVar
from urllib.parse import unquote, urlsplit

from trilithon.errors import DownloadError, ModelError, NotAModel
from trilithon.models.fetch.demo import DEMO, DEMO_NOTES, add_demo
from trilithon.models.fetch.download import FileChanged, Remote, download, probe
from trilithon.models.fetch.download_list import DownloadItem, DownloadList, PullOptions
from trilithon.models.fetch.http_client import AccessDenied, DownloadSource, fetch_small, redacted_url
from trilithon.models.fetch.hub import plan_from_hub
from trilithon.models.fetch.registry import plan_from_registry
from trilithon.models.fetch.transfer_rate import TransferProgress, TransferRate
from trilithon.models.files.file_names import read_file_name
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.gguf_header import describe_content
from trilithon.models.files.kinds import read_kind
from trilithon.models.names import ModelName, ModelPath, ModelUrl, Reference, Repository, name_part
from trilithon.models.store.manifest import Manifest, StoredFile, now, safe_file_name
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.partial import Partial, recorded_state
from trilithon.models.store.safe_dir import translated
from trilithon.models.store.targets import with_other_targets

__all__ = ["PullStep", "Pulled", "ReportStep", "Stage", "pull"]

Stage = Literal["looking", "chosen", "retrying", "waiting", "fetching", "checking", "keeping"]

_MOST_SMALL_BYTES = 64 << 20
_MOST_VERSIONS = 3
_HEAD_BYTES = 512
_NEXT_BYTES = 16 << 20  # a file of unknown length may grow by this much between two checks of the free space

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PullStep:
    """The state of a pull. `text` is a sentence while looking, choosing and retrying, otherwise the name of the file
    `number` of `count`. "waiting" means that another process fetches this file; then `progress` is what that process
    recorded."""

    stage: Stage
    text: str
    number: int = 0
    count: int = 0
    digest: str = ""
    progress: TransferProgress | None = None


ReportStep = Callable[[PullStep], None]
"""Called a few times a second; it may raise to stop, which keeps the received bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """The result of a pull. `fetched_bytes` does not count what the store had already."""

    manifest: Manifest
    why: str
    notes: tuple[str, ...]
    fetched_bytes: int


def pull(reference: Reference, store: ModelStore, options: PullOptions, report: ReportStep) -> Pulled:
    """Raises ModelError for a model that does not exist or does not fit, DownloadError when servers or the network
    fail. The received bytes are kept then, and the next pull of the same model resumes."""
    options = _telling(options, report)
    match reference:
        case ModelPath():
            raise ModelError("{path} is a local file and needs no pull; use its path", path=reference.path)
        case ModelUrl():
            report(PullStep("looking", redacted_url(reference.url)))
            return _pull_url(reference, store, options, report)
        case Repository():
            report(PullStep("looking", str(reference)))
            downloads = plan_from_hub(reference, options)
            report(PullStep("chosen", downloads.why))
            return _fetch_all(downloads, store, options, report)
        case ModelName() if reference.same_as(DEMO):
            return _add_demo(store, report)
        case ModelName():
            report(PullStep("looking", str(reference)))
            return _fetch_all(plan_from_registry(reference, options), store, options, report)


def _telling(options: PullOptions, report: ReportStep) -> PullOptions:
    """The same, with each retry reported."""
    retry = replace(options.transfer.retry, tell=lambda text: report(PullStep("retrying", text)))
    return replace(options, transfer=replace(options.transfer, retry=retry))


def _fetch_all(downloads: DownloadList, store: ModelStore, options: PullOptions, report: ReportStep) -> Pulled:
    store.room_for_all({item.digest: item.size_bytes or 0 for item in downloads.items if item.digest})
    files, fetched, missing = [], 0, ""
    for number, item in enumerate(downloads.items, start=1):
        if item.without and missing:
            continue
        file_download = _FileDownload(item, store, options, report, number, len(downloads.items))
        try:
            digest, size = file_download.fetch()
        except AccessDenied as error:
            if not item.without:
                raise
            missing = f"{item.without}: {error}"
            continue
        files.append(_stored(item, digest, size))
        fetched += file_download.fetched_bytes
    notes = (*downloads.notes, missing) if missing else downloads.notes
    return _store_manifest(replace(downloads, notes=notes), files, store, report, fetched)


def _add_demo(store: ModelStore, report: ReportStep) -> Pulled:
    """From its package, without a network."""

    def fetching(done: int, total: int) -> None:
        report(PullStep("fetching", DEMO.model, 1, 1, progress=TransferProgress(done, total)))

    report(PullStep("looking", str(DEMO)))
    manifest, written = add_demo(store, fetching)
    return Pulled(manifest=manifest, why="", notes=DEMO_NOTES, fetched_bytes=written)


def _store_manifest(
    downloads: DownloadList, files: Sequence[StoredFile], store: ModelStore, report: ReportStep, fetched_bytes: int
) -> Pulled:
    report(PullStep("keeping", str(downloads.name)))
    manifest = Manifest(
        name=downloads.name,
        files=tuple(files),
        source=downloads.origin,
        created=now(),
        parameters=downloads.parameters,
        system=downloads.system,
        messages=downloads.messages,
    )
    stored = store.put(manifest, merge=with_other_targets)
    fetched = {file.name for file in files}
    notes = tuple(
        f"{file.name} is kept too, for {file.target_platform or 'any machine'}"
        for file in stored.of_role("weights")
        if file.name not in fetched
    )
    return Pulled(manifest=stored, why=downloads.why, notes=(*downloads.notes, *notes), fetched_bytes=fetched_bytes)


def _stored(item: DownloadItem, digest: str, size_bytes: int) -> StoredFile:
    return StoredFile(
        role=item.role,
        digest=digest,
        size_bytes=size_bytes,
        name=item.name,
        format=item.format,
        quantization=item.quantization,
        target_platform=item.target_platform,
    )


def _recorded_bytes(store: ModelStore, digest: str) -> int:
    """The bytes that another process has recorded of a file."""
    return sum(end - start for start, end in recorded_state(store.local, f"sha256-{digest}")[1])


class _FileDownload:
    """Fetches one file of the list into the store."""

    def __init__(
        self, item: DownloadItem, store: ModelStore, options: PullOptions, report: ReportStep, number: int, count: int
    ):
        self._item, self._store, self._options = item, store, options
        self._report, self._number, self._count = report, number, count
        self._waiting_rate = TransferRate()
        self._reported_at = 0.0
        self.fetched_bytes = 0

    def fetch(self) -> tuple[str, int]:
        """Fetch the file; returns its digest and its size in bytes."""
        if self._item.digest:
            return self._by_digest()
        if self._item.git_blob:
            return self._small()
        return self._with_unknown_sum()

    def _by_digest(self) -> tuple[str, int]:
        item = self._item
        with self._store.receive(item.digest, item.size_bytes, on_wait=self._report_waiting) as partial:
            if not partial.present:
                before = partial.bytes_done
                download(item.source, partial, transfer=self._options.transfer, report=self._report_fetching)
                self.fetched_bytes = max(partial.bytes_done - before, 0)
                self._require_kind(partial)
            digest = self._finished(partial)
        return digest, self._store.blob_path(digest).stat().st_size

    def _small(self) -> tuple[str, int]:
        """A small file of the hub, identified by git's checksum. It may be in the store already, in another model."""
        item = self._item
        for file in {file for manifest in self._store.list() for file in manifest.files if file.name == item.name}:
            if file.size_bytes == item.size_bytes and file.path is None and self._is_same(file):
                return file.digest, file.size_bytes
        self._report_stage("fetching", TransferProgress(0, item.size_bytes))
        retry = self._options.transfer.retry
        content = asyncio.run(fetch_small(item.source, most_bytes=_MOST_SMALL_BYTES, retry=retry))
        if _git_blob(content) != item.git_blob:
            raise DownloadError(
                "{name} from {address} has a wrong checksum; pull it again",
                name=item.name,
                address=redacted_url(item.source.url),
            )
        self.fetched_bytes = len(content)
        return self._store.add_bytes(content), len(content)

    def _is_same(self, file: StoredFile) -> bool:
        if file.size_bytes > _MOST_SMALL_BYTES:
            return False
        with self._store.locked(file.digest):
            exists = self._store.has(file.digest)
            return exists and _git_blob(self._store.blob_path(file.digest).read_bytes()) == self._item.git_blob

    def _with_unknown_sum(self) -> tuple[str, int]:
        def fetch(remote: Remote) -> tuple[str, int]:
            with self.receiving(remote) as partial:
                return self.fill(partial, remote)

        return _of_one_version(self._item.source, self._options, fetch)

    def receiving(self, remote: Remote) -> AbstractContextManager[Partial]:
        """A partial file that is identified by URL and version; without a version an unfinished file is dropped."""
        key = f"{self._item.source.url}\n{remote.version}\n{remote.size_bytes}" if remote.version else ""
        return self._store.receive(None, remote.size_bytes, key=key, on_wait=self._report_waiting)

    def fill(self, partial: Partial, remote: Remote) -> tuple[str, int]:
        """Fetch into `partial`; returns its digest and its size in bytes. Raises FileChanged."""
        before = partial.bytes_done
        try:
            download(
                self._item.source, partial, transfer=self._options.transfer, report=self._report_fetching, remote=remote
            )
        except BaseException as error:
            if isinstance(error, FileChanged) or not remote.ranges:  # it cannot be resumed
                partial.discard()
            raise
        try:
            _require_model(partial, self._item, remote)
        except ModelError:
            partial.discard()
            raise
        self._require_kind(partial)
        size = partial.bytes_done
        self.fetched_bytes = max(size - before, 0)
        return self._finished(partial), size

    def _require_kind(self, partial: Partial) -> None:
        """Raises NotAModel for weights that are an adapter or the like; the file is dropped then."""
        if self._item.role != "weights" or self._item.format != "gguf":
            return
        kind = None
        with suppress(ModelError):  # a damaged header: the checksum is checked next, and the header when it is used
            kind = read_kind(partial.path)
        if kind is not None and kind.problem:
            partial.discard()
            raise NotAModel(kind.sentence(self._item.name))

    def _finished(self, partial: Partial) -> str:
        """The digest of the finished file; errors name the file."""
        try:
            return partial.finish(self._report_checking)
        except ModelError as error:
            raise ModelError("{name}: {reason}", name=self._item.name, reason=error) from error

    # Progress

    def _report_stage(self, stage: Stage, progress: TransferProgress) -> None:
        step = PullStep(stage, self._item.name, self._number, self._count, self._item.digest, progress)
        self._report(step)

    def _report_fetching(self, progress: TransferProgress) -> None:
        if progress.total_bytes is None:  # whether it fits was not checked yet
            self._store.room_for(_NEXT_BYTES)
        self._report_stage("fetching", progress)

    def _report_checking(self, done: int, total: int) -> None:
        self._report_stage("checking", TransferProgress(done, total))

    def _report_waiting(self) -> None:
        if time.monotonic() - self._reported_at < 0.2:
            return
        self._reported_at = time.monotonic()
        done = _recorded_bytes(self._store, self._item.digest) if self._item.digest else 0
        self._report_stage("waiting", self._waiting_rate.at(done, self._item.size_bytes))


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _require_model(partial: Partial, item: DownloadItem, remote: Remote) -> None:
    """A file without a checksum has to begin like a model, and to be complete if its length was unknown. Raises
    ModelError, for example for the page of a login."""
    if item.role != "weights":
        return
    with translated(partial.path), partial.path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    description = describe_content(head)
    if head[:4] != b"GGUF" and (item.format == "gguf" or not description.startswith("is not a GGUF")):
        raise ModelError(
            "the response of {address} {description}", address=redacted_url(item.source.url), description=description
        )
    if item.format == "gguf" and remote.size_bytes is None:
        try:
            read_gguf(partial.path)
        except ModelError as error:
            raise ModelError(str(error).replace(str(partial.path), item.name)) from error


def _of_one_version(source: DownloadSource, options: PullOptions, fetch: Callable[[Remote], T]) -> T:
    for _ in range(_MOST_VERSIONS):
        remote = probe(source, options.transfer)
        with suppress(FileChanged):
            return fetch(remote)
    raise DownloadError(
        "{address} keeps changing while it is fetched; try again later", address=redacted_url(source.url)
    )


def _pull_url(reference: ModelUrl, store: ModelStore, options: PullOptions, report: ReportStep) -> Pulled:
    """A file without a known checksum. A process that waited for another one uses the model that this one made."""
    source = DownloadSource(url=reference.url, insecure=options.insecure, hosts=options.hosts)
    started = datetime.now(UTC).replace(microsecond=0)

    def fetch(remote: Remote) -> Pulled:
        downloads = _url_plan(source, remote)
        _require_free(downloads, store)
        file_download = _FileDownload(downloads.items[0], store, options, report, 1, 1)
        with file_download.receiving(remote) as partial:
            manifest = _made_since(started, downloads, remote, store)
            if manifest is not None:
                partial.discard()
                return Pulled(manifest=manifest, why="", notes=(), fetched_bytes=0)
            digest, size = file_download.fill(partial, remote)
            return _store_manifest(
                downloads, [_stored(downloads.items[0], digest, size)], store, report, file_download.fetched_bytes
            )

    return _of_one_version(source, options, fetch)


def _url_plan(source: DownloadSource, remote: Remote) -> DownloadList:
    """Raises ModelError for a file that is not a model by its name."""
    name = safe_file_name(remote.file_name or unquote(urlsplit(source.url).path))
    file_name = read_file_name(name)
    if file_name.format and file_name.kind in ("adapter", "draft", "projector"):
        what = {"adapter": "an adapter", "draft": "a draft head", "projector": "a projector"}[file_name.kind]
        raise NotAModel(
            "{address} is {what} by its name, and no engine runs it alone; pull its model",
            address=redacted_url(source.url),
            what=what,
        )
    if file_name.kind != "weights" or file_name.format == "":
        raise ModelError(
            "{address} is {name}, not a GGUF or RKLLM file; name the URL of one",
            address=redacted_url(source.url),
            name=name,
        )
    if file_name.shard:
        raise ModelError(
            "{name} is one shard of {count}; pull the repository that has them all", name=name, count=file_name.shard[1]
        )
    tag = ModelName.DEFAULTS[2]
    item = DownloadItem(
        source=source,
        name=name,
        role="weights",
        format=file_name.format,
        size_bytes=remote.size_bytes,
        quantization=file_name.quantization,
        target_platform=file_name.chip,
    )
    return DownloadList(
        name=ModelName(ModelName.DEFAULTS[0], "url", name_part(file_name.stem), tag),
        items=(item,),
        origin=redacted_url(source.url),
        notes=("the server has no checksum for this file, so it could not be verified",),
    )


def _require_free(downloads: DownloadList, store: ModelStore) -> None:
    """Raises ModelError when a file of another URL has the same name."""
    existing = next((manifest for manifest in store.list() if manifest.name.same_as(downloads.name)), None)
    if existing is not None and existing.source != downloads.origin:
        raise ModelError(
            "{name} exists already, from {source}; remove it first: trilithon rm {name}",
            name=downloads.name,
            source=existing.source,
        )


def _made_since(started: datetime, downloads: DownloadList, remote: Remote, store: ModelStore) -> Manifest | None:
    for manifest in store.list():
        size = manifest.files[0].size_bytes if manifest.files else None
        if manifest.name.same_as(downloads.name) and size == remote.size_bytes and manifest.source == downloads.origin:
            return manifest if datetime.fromisoformat(manifest.created) >= started else None
    return None
