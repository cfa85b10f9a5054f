"""Models of Hugging Face (or a mirror of it): what a repository holds, and which of it is fetched.

The library of the hub answers what is there, finds the token and builds addresses; it takes half a second to import and
is loaded only here. Files come through `download`, like all others.
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from trilithon.errors import DownloadError, ModelError
from trilithon.models.fetch.choose import FileChoice, Offer, choose_files
from trilithon.models.fetch.download_list import DownloadItem, DownloadList, PullOptions
from trilithon.models.fetch.http_client import AccessDenied, DownloadSource, redacted_url
from trilithon.models.files.file_names import FileName
from trilithon.models.names import Repository
from trilithon.models.store.manifest import Role, safe_file_name
from trilithon.units import format_duration

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

__all__ = ["plan_from_hub"]

_DEFAULT_ENDPOINT = "https://huggingface.co"
# What an RKLLM file needs beside it: the tokenizer and its template, and the tokens that end an answer.
_TEXT_FILES: Mapping[str, Role] = {
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "chat_template.jinja": "template",
    "generation_config.json": "tokenizer",
    "config.json": "tokenizer",
}
_NEEDED = "tokenizer.json"
_WITHOUT = "without its tokenizer, chat uses the runtime's own template"
_MOST_BASES = 3  # a conversion of a fine-tune of a model; beyond that the card goes in a circle
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_ROLES: Mapping[str, Role] = {"weights": "weights", "projector": "projector", "vision": "vision"}

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 1 << 62

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Listed:
    """A file of a repository, as the hub lists it."""

    path: str
    size_bytes: int | None
    digest: str
    git_blob: str


def plan_from_hub(repository: Repository, options: PullOptions) -> DownloadList:
    """Raises ModelError when there is no such repository or nothing in it suits, DownloadError when the hub fails."""
    hub = _Hub(options)
    found = hub.files(f"{repository.user}/{repository.name}")
    choice = choose_files(
        [Offer(each.path, each.size_bytes or 0) for each in found.files],
        options.target,
        repository=f"{repository.user}/{repository.name}",
    )
    items = [hub.item(found, _listed(found.files, name.path), name) for name in (*choice.weights, *choice.others)]
    notes: tuple[str, ...] = ()
    if choice.converted:
        texts, notes = _texts(hub, found)
        items += texts
    return DownloadList(
        name=repository.local_name,
        items=_with_own_names(items),
        origin=f"{repository} at {found.revision[:12]}",
        why=choice.why,
        notes=notes + _notes_on(choice),
    )


@dataclass(frozen=True, slots=True)
class _Contents:
    """Of one repository at one revision; `bases` are the models that its card names as what it was made from."""

    name: str
    revision: str
    files: tuple[_Listed, ...]
    bases: tuple[str, ...]


class _Hub:
    """What is asked of the hub's library. Raises Denied and DownloadError."""

    def __init__(self, options: PullOptions):
        self._patience = options.transfer.retry
        self._insecure = options.insecure
        self._endpoint = _endpoint(insecure=options.insecure)  # first: a broken one ends the library's import

        from huggingface_hub import HfApi, get_token

        self._token = _usable(get_token())
        self._api = HfApi(endpoint=self._endpoint, token=self._token or False, library_name="trilithon")

    def files(self, name: str) -> _Contents:
        """What the hub says is compared with what it can be: a mirror may be anything."""
        info = self._asked(name, lambda: self._api.model_info(name, files_metadata=True, timeout=self._timeout))
        listed = tuple(map(_read_sibling, info.siblings or ()))
        revision: object = info.sha or "main"
        if None in listed or not isinstance(revision, str) or not _REVISION.fullmatch(revision):
            raise DownloadError(self._no_list())
        return _Contents(name, revision, tuple(each for each in listed if each is not None), _bases(info))

    def item(self, contents: _Contents, listed: _Listed, name: FileName) -> DownloadItem:
        return DownloadItem(
            source=self.source(contents, listed.path),
            name=safe_file_name(name.name),
            role=_ROLES[name.kind],
            format=name.format or "text",
            size_bytes=listed.size_bytes,
            digest=listed.digest,
            git_blob=listed.git_blob,
            quantization=name.quantization,
            target_platform=name.chip,
        )

    def source(self, contents: _Contents, path: str) -> DownloadSource:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(contents.name, path, revision=contents.revision, endpoint=self._endpoint)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        denied = self._denied(contents.name)
        return DownloadSource(url=url, headers=headers, words={401: denied, 403: denied}, insecure=self._insecure)

    @property
    def _timeout(self) -> float:
        return min(self._patience.silence_seconds, 30.0)

    def _denied(self, name: str) -> str:
        return (
            f"{name} is not for everyone: accept its terms at {redacted_url(self._endpoint)}/{name}, "
            f"then {'check your token' if self._token else 'log in (hf auth login)'} or set HF_TOKEN"
        )

    def _asked(self, name: str, ask: Callable[[], T]) -> T:
        from huggingface_hub import errors
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of the HTTP library that it uses

        failures = 0
        while True:
            try:
                return ask()
            except errors.GatedRepoError as error:
                raise AccessDenied(self._denied(name)) from error
            except errors.RepositoryNotFoundError as error:
                hint = "check your token" if self._token else "if it is private, set HF_TOKEN"
                raise AccessDenied(f"there is no repository {name} on {self._host}; check its name, {hint}") from error
            except errors.HFValidationError as error:
                raise AccessDenied(f"{name[:80]} is no name of a repository; write hf.co/user/repo") from error
            except errors.OfflineModeIsEnabled as error:
                raise DownloadError("HF_HUB_OFFLINE is set, so that nothing is fetched; unset it") from error
            except errors.HfHubHTTPError as error:
                failures += 1
                self._wait(error, error.response.status_code, failures, error.response.headers.get("Retry-After", ""))
            except HTTPError as error:  # no connection, no answer
                failures += 1
                self._wait(error, None, failures, "")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise DownloadError(self._no_list()) from error

    def _no_list(self) -> str:
        return f"{self._host} answers with no list of files; check HF_ENDPOINT"

    def _wait(self, error: Exception, status: int | None, failures: int, retry_after: str) -> None:
        what = f"status {status}" if status else (str(error).splitlines() or ["no answer"])[0][:120]
        if (status is not None and status not in _AGAIN) or failures >= self._patience.attempts:
            tries = "" if failures == 1 else f" in {failures} tries"
            raise DownloadError(
                f"{self._host} does not answer{tries}: {what}; try again, or set HF_ENDPOINT"
            ) from error
        asked = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 9 else 0.0
        if asked > self._patience.longest_asked_seconds:
            raise DownloadError(
                f"{self._host} asks to wait {format_duration(asked)} ({what}); run the same command again then"
            ) from error
        time.sleep(self._patience.wait_seconds(failures, asked))

    @property
    def _host(self) -> str:
        return self._endpoint.partition("://")[2].rpartition("@")[2]


def _endpoint(*, insecure: bool) -> str:
    """Where the hub is. Refused before anything is asked there, for what is asked carries the token."""
    text = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or _DEFAULT_ENDPOINT
    try:
        return DownloadSource(url=text, insecure=insecure).url
    except ModelError as error:
        raise ModelError(f"HF_ENDPOINT: {error}") from error


def _usable(token: str | None) -> str:
    """Raises ModelError for what no header can carry; it is not shown."""
    if token and not (token.isascii() and token.isprintable()):
        raise ModelError("the token of Hugging Face holds letters that no token has; check HF_TOKEN, or: hf auth login")
    return token or ""


def _read_sibling(row: Any) -> _Listed | None:
    """Of the library's RepoSibling, whose types nobody checked. None for what cannot be: names become paths, sizes are
    added up, and sums are names of files."""
    digest, size = (row.lfs.sha256, row.lfs.size) if row.lfs else ("", row.size)
    blob = "" if digest else row.blob_id or ""
    sized = size is None or (type(size) is int and 0 <= size < _MOST_BYTES)
    named = isinstance(row.rfilename, str) and isinstance(blob, str)
    if not sized or not named or not (digest == "" or _SHA256.fullmatch(str(digest))):
        return None
    return _Listed(row.rfilename, size, digest, blob)


def _texts(hub: _Hub, own: _Contents) -> tuple[list[DownloadItem], tuple[str, ...]]:
    """The text files of the repository itself, or else of the model that it was made from."""
    contents, seen = own, [own.name]
    for _ in range(_MOST_BASES + 1):
        if any(each.path == _NEEDED for each in contents.files):
            return _text_items(hub, contents), ()
        base = next((each for each in contents.bases if each not in seen), "")
        if not base:
            break
        seen.append(base)
        try:
            contents = hub.files(base)
        except AccessDenied as error:
            return [], (f"{_WITHOUT}: {error}",)
    made_from = f"in none of {', '.join(seen)}" if len(seen) > 1 else "and its card names no base_model"
    fix = "put tokenizer.json and tokenizer_config.json of the original model beside it"
    return [], (f"there is no {_NEEDED} {made_from}: chat uses the runtime's own template; {fix}",)


def _text_items(hub: _Hub, contents: _Contents) -> list[DownloadItem]:
    return [
        DownloadItem(
            source=hub.source(contents, each.path),
            name=each.path,
            role=_TEXT_FILES[each.path],
            format="json" if each.path.endswith(".json") else "text",
            size_bytes=each.size_bytes,
            digest=each.digest,
            git_blob=each.git_blob,
            without=_WITHOUT,
        )
        for each in contents.files
        if each.path in _TEXT_FILES
    ]


def _bases(info: "ModelInfo") -> tuple[str, ...]:
    """`base_model` of the card: a name or a list of names, written by people."""
    value: object = getattr(info.card_data, "base_model", None)
    names = value if isinstance(value, list) else [value]
    return tuple(name.strip() for name in names if isinstance(name, str) and name.count("/") == 1)


def _listed(files: Sequence[_Listed], path: str) -> _Listed:
    return next(each for each in files if each.path == path)


def _with_own_names(items: Sequence[DownloadItem]) -> tuple[DownloadItem, ...]:
    """Files of several folders may have one name; within a model each has its own."""
    found: dict[str, DownloadItem] = {}
    for item in items:
        name, number = item.name, 2
        while name.casefold() in found:
            path = PurePosixPath(item.name)
            name, number = f"{path.stem}-{number}{path.suffix}", number + 1
        found[name.casefold()] = replace(item, name=name)
    return tuple(found.values())


def _notes_on(choice: FileChoice) -> tuple[str, ...]:
    if choice.converted and not choice.weights[0].chip:
        return ("its name does not say which chip it was made for; another chip's runtime refuses it",)
    return ()
