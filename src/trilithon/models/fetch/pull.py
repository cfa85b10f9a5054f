"""Fetching a model into the store: what it is made of, each file once, and its manifest when all are there."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, TypeVar
from urllib.parse import unquote, urlsplit

from trilithon.errors import DownloadError, ModelError
from trilithon.models.fetch.download import FileChanged, Remote, download, probe
from trilithon.models.fetch.download_list import DownloadItem, DownloadList, PullOptions
from trilithon.models.fetch.http_client import AccessDenied, DownloadSource, fetch_small, redacted_url
from trilithon.models.fetch.hub import plan_from_hub
from trilithon.models.fetch.registry import plan_from_registry
from trilithon.models.fetch.transfer_rate import TransferProgress, TransferRate
from trilithon.models.files.file_names import read_file_name
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.gguf_header import describe_content
from trilithon.models.names import ModelName, ModelPath, ModelUrl, Reference, Repository, name_part
from trilithon.models.store.manifest import Manifest, StoredFile, now, safe_file_name
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.partial import Partial, recorded_state
from trilithon.models.store.safe_dir import translated
from trilithon.models.store.targets import with_other_targets

__all__ = ["PullStep", "Pulled", "ReportStep", "Stage", "pull"]

Stage = Literal["looking", "chosen", "waiting", "fetching", "checking", "keeping"]

_MOST_SMALL_BYTES = 64 << 20
_MOST_VERSIONS = 3
_HEAD_BYTES = 512
_NEXT_BYTES = 16 << 20  # that much more may come of a file of unknown length before it is asked again

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PullStep:
    """Where a pull is. `text` is a sentence while looking and choosing, afterwards the name of the file; `number` of
    `count` files. "waiting": another process fetches that file, and this is how far it was when it last noted it."""

    stage: Stage
    text: str
    number: int = 0
    count: int = 0
    digest: str = ""
    progress: TransferProgress | None = None


ReportStep = Callable[[PullStep], None]
"""Called some times a second; it may raise to give up, which keeps what came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """`fetched_bytes` leaves out what was there already."""

    manifest: Manifest
    why: str
    notes: tuple[str, ...]
    fetched_bytes: int


def pull(reference: Reference, store: ModelStore, options: PullOptions, tell: ReportStep) -> Pulled:
    """Raises ModelError for what there is not or does not fit, DownloadError when servers or the network fail. What
    came by then is kept, and the next pull of the same goes on there."""
    match reference:
        case ModelPath():
            raise ModelError(f"{reference.path} is a file of this machine, which needs no pull; name it as it is")
        case ModelUrl():
            tell(PullStep("looking", redacted_url(reference.url)))
            return _pull_url(reference, store, options, tell)
        case Repository():
            tell(PullStep("looking", str(reference)))
            plan = plan_from_hub(reference, options)
            tell(PullStep("chosen", plan.why))
            return _carried_out(plan, store, options, tell)
        case ModelName():
            tell(PullStep("looking", str(reference)))
            return _carried_out(plan_from_registry(reference, options), store, options, tell)


def _carried_out(plan: DownloadList, store: ModelStore, options: PullOptions, tell: ReportStep) -> Pulled:
    store.room_for_all({item.digest: item.size_bytes or 0 for item in plan.items if item.digest})
    files, fetched, denied = [], 0, ""
    for number, item in enumerate(plan.items, start=1):
        if item.without and denied:
            continue
        one = _One(item, store, options, tell, number, len(plan.items))
        try:
            digest, size = one.fetch()
        except AccessDenied as error:
            if not item.without:
                raise
            denied = f"{item.without}: {error}"
            continue
        files.append(_stored(item, digest, size))
        fetched += one.fetched_bytes
    notes = (*plan.notes, denied) if denied else plan.notes
    return _kept(replace(plan, notes=notes), files, store, tell, fetched)


def _kept(
    plan: DownloadList, files: Sequence[StoredFile], store: ModelStore, tell: ReportStep, fetched_bytes: int
) -> Pulled:
    tell(PullStep("keeping", str(plan.name)))
    manifest = Manifest(
        name=plan.name,
        files=tuple(files),
        source=plan.origin,
        created=now(),
        parameters=plan.parameters,
        system=plan.system,
        messages=plan.messages,
    )
    kept = store.put(manifest, merge=with_other_targets)
    came = {file.name for file in files}
    notes = tuple(
        f"{file.name} stays beside it, for {file.target_platform or 'any machine'}"
        for file in kept.of_role("weights")
        if file.name not in came
    )
    return Pulled(manifest=kept, why=plan.why, notes=(*plan.notes, *notes), fetched_bytes=fetched_bytes)


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


def _noted(store: ModelStore, digest: str) -> int:
    """How much of a file had come when its process last noted it."""
    return sum(end - start for start, end in recorded_state(store.local, f"sha256-{digest}")[1])


class _One:
    """One file of a plan on its way into the store."""

    def __init__(
        self, item: DownloadItem, store: ModelStore, options: PullOptions, tell: ReportStep, number: int, count: int
    ):
        self._item, self._store, self._options = item, store, options
        self._tell_step, self._number, self._count = tell, number, count
        self._waiting_pace = TransferRate()
        self._told_at = 0.0
        self.fetched_bytes = 0

    def fetch(self) -> tuple[str, int]:
        """Its digest and its size."""
        if self._item.digest:
            return self._by_digest()
        if self._item.git_blob:
            return self._small()
        return self._with_unknown_sum()

    def _by_digest(self) -> tuple[str, int]:
        item = self._item
        with self._store.receive(item.digest, item.size_bytes, on_wait=self._wait) as partial:
            if not partial.present:
                before = partial.bytes_done
                download(item.source, partial, transfer=self._options.transfer, tell=self._fetching)
                self.fetched_bytes = max(partial.bytes_done - before, 0)
            digest = self._finished(partial)
        return digest, self._store.blob_path(digest).stat().st_size

    def _small(self) -> tuple[str, int]:
        """A text of the hub, known by git's sum: taken from another model of the store where that has the same."""
        item = self._item
        for file in {file for manifest in self._store.list() for file in manifest.files if file.name == item.name}:
            if file.size_bytes == item.size_bytes and file.path is None and self._is_same(file):
                return file.digest, file.size_bytes
        self._tell("fetching", TransferProgress(0, item.size_bytes))
        retry = self._options.transfer.retry
        content = asyncio.run(fetch_small(item.source, most_bytes=_MOST_SMALL_BYTES, retry=retry))
        if _git_blob(content) != item.git_blob:
            raise DownloadError(f"{item.name} from {redacted_url(item.source.url)} has a wrong checksum; pull it again")
        self.fetched_bytes = len(content)
        return self._store.add_bytes(content), len(content)

    def _is_same(self, file: StoredFile) -> bool:
        if file.size_bytes > _MOST_SMALL_BYTES:
            return False
        with self._store.locked(file.digest):
            there = self._store.has(file.digest)
            return there and _git_blob(self._store.blob_path(file.digest).read_bytes()) == self._item.git_blob

    def _with_unknown_sum(self) -> tuple[str, int]:
        def fetch(remote: Remote) -> tuple[str, int]:
            with self.receiving(remote) as partial:
                return self.fill(partial, remote)

        return _of_one_version(self._item.source, self._options, fetch)

    def receiving(self, remote: Remote) -> AbstractContextManager[Partial]:
        """A place for a file of which only the version is known; without one, nothing unfinished is kept."""
        key = f"{self._item.source.url}\n{remote.version}\n{remote.size_bytes}" if remote.version else ""
        return self._store.receive(None, remote.size_bytes, key=key, on_wait=self._wait)

    def fill(self, partial: Partial, remote: Remote) -> tuple[str, int]:
        """Its digest and its size. Raises Changed."""
        before = partial.bytes_done
        try:
            download(self._item.source, partial, transfer=self._options.transfer, tell=self._fetching, remote=remote)
        except BaseException as error:
            if isinstance(error, FileChanged) or not remote.ranges:  # nothing that could be gone on with
                partial.discard()
            raise
        try:
            _require_model(partial, self._item, remote)
        except ModelError:
            partial.discard()
            raise
        size = partial.bytes_done
        self.fetched_bytes = max(size - before, 0)
        return self._finished(partial), size

    def _finished(self, partial: Partial) -> str:
        """Its digest; what is wrong is said of the file."""
        try:
            return partial.finish(self._checking)
        except ModelError as error:
            raise ModelError(f"{self._item.name}: {error}") from error

    # What is told

    def _tell(self, stage: Stage, progress: TransferProgress) -> None:
        step = PullStep(stage, self._item.name, self._number, self._count, self._item.digest, progress)
        self._tell_step(step)

    def _fetching(self, progress: TransferProgress) -> None:
        if progress.total_bytes is None:  # nobody asked yet whether it fits
            self._store.room_for(_NEXT_BYTES)
        self._tell("fetching", progress)

    def _checking(self, done: int, total: int) -> None:
        self._tell("checking", TransferProgress(done, total))

    def _wait(self) -> None:
        if time.monotonic() - self._told_at < 0.2:
            return
        self._told_at = time.monotonic()
        done = _noted(self._store, self._item.digest) if self._item.digest else 0
        self._tell("waiting", self._waiting_pace.at(done, self._item.size_bytes))


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _require_model(partial: Partial, item: DownloadItem, remote: Remote) -> None:
    """What no sum vouches for shall at least begin like a model, and not end early where no length was told. Raises
    ModelError for a page that asks for a login, and the like."""
    if item.role != "weights":
        return
    with translated(partial.path), partial.path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    instead = describe_content(head)
    if head[:4] != b"GGUF" and (item.format == "gguf" or not instead.startswith("is not a GGUF")):
        raise ModelError(f"what {redacted_url(item.source.url)} gives {instead}")
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
    raise DownloadError(f"{redacted_url(source.url)} keeps changing while it is fetched; try again later")


def _pull_url(reference: ModelUrl, store: ModelStore, options: PullOptions, tell: ReportStep) -> Pulled:
    """One file, of which no sum is known. A second process that waited for the first one takes what that one made."""
    source = DownloadSource(url=reference.url, insecure=options.insecure)
    began = datetime.now(UTC).replace(microsecond=0)

    def fetch(remote: Remote) -> Pulled:
        plan = _url_plan(source, remote)
        _require_free(plan, store)
        one = _One(plan.items[0], store, options, tell, 1, 1)
        with one.receiving(remote) as partial:
            made = _made_since(began, plan, remote, store)
            if made is not None:
                partial.discard()
                return Pulled(manifest=made, why="", notes=(), fetched_bytes=0)
            digest, size = one.fill(partial, remote)
            return _kept(plan, [_stored(plan.items[0], digest, size)], store, tell, one.fetched_bytes)

    return _of_one_version(source, options, fetch)


def _url_plan(source: DownloadSource, remote: Remote) -> DownloadList:
    """Raises ModelError for what is no model by its name."""
    name = safe_file_name(remote.file_name or unquote(urlsplit(source.url).path))
    known = read_file_name(name)
    if known.kind != "weights" or known.format == "":
        raise ModelError(f"{redacted_url(source.url)} is {name}, not a GGUF or RKLLM file; name the URL of one")
    if known.shard:
        raise ModelError(f"{name} is one shard of {known.shard[1]}; pull the repository that has them all")
    tag = ModelName.DEFAULTS[2]
    item = DownloadItem(
        source=source,
        name=name,
        role="weights",
        format=known.format,
        size_bytes=remote.size_bytes,
        quantization=known.quantization,
        target_platform=known.chip,
    )
    return DownloadList(
        name=ModelName(ModelName.DEFAULTS[0], "url", name_part(known.stem), tag),
        items=(item,),
        origin=redacted_url(source.url),
        notes=("its server tells no sum to hold it against: whether it is what its maker made is not known",),
    )


def _require_free(plan: DownloadList, store: ModelStore) -> None:
    """Another address may end in the same name."""
    there = next((each for each in store.list() if each.name.same_as(plan.name)), None)
    if there is not None and there.source != plan.origin:
        raise ModelError(
            f"{plan.name} is there already, from {there.source}; remove it first: trilithon rm {plan.name}"
        )


def _made_since(began: datetime, plan: DownloadList, remote: Remote, store: ModelStore) -> Manifest | None:
    for manifest in store.list():
        size = manifest.files[0].size_bytes if manifest.files else None
        if manifest.name.same_as(plan.name) and size == remote.size_bytes and manifest.source == plan.origin:
            return manifest if datetime.fromisoformat(manifest.created) >= began else None
    return None
