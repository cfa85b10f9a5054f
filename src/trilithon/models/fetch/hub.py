"""Models of Hugging Face (or a mirror): lists a repository, and chooses what to fetch.

The library of the hub lists files, finds the token and builds URLs. It takes half a second to import, and is imported
only here. Files are fetched by `download`, like all others."""

import asyncio
import json
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
from trilithon.models.fetch.http_client import AccessDenied, DownloadSource, fetch_small, redacted_url
from trilithon.models.files.file_names import FileName
from trilithon.models.names import Repository
from trilithon.models.store.manifest import Role, safe_file_name
from trilithon.units import format_duration

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

__all__ = ["configuration_from_hub", "hub_address", "plan_from_hub"]

_DEFAULT_ENDPOINT = "https://huggingface.co"
# Companions of an RKLLM file: the tokenizer and its template, and the tokens that end an answer.
_TEXT_FILES: Mapping[str, Role] = {
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "chat_template.jinja": "template",
    "generation_config.json": "tokenizer",
    "config.json": "tokenizer",
}
_NEEDED = "tokenizer.json"
_CONFIGURATION = "config.json"
_MOST_CONFIGURATION_BYTES = 4 << 20
_WITHOUT = "without its tokenizer, chat uses the runtime's own template"
_MOST_BASES = 3  # a conversion of a fine-tune of a model; longer chains are circles
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_ROLES: Mapping[str, Role] = {"weights": "weights", "projector": "projector", "vision": "vision"}

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 1 << 62

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Listed:
    """A file of a repository, as the hub lists it. `size_bytes` is None, and checksums are empty, if unknown."""

    path: str
    size_bytes: int | None
    digest: str
    git_blob: str


def plan_from_hub(repository: Repository, options: PullOptions) -> DownloadList:
    """Raises ModelError for a repository that does not exist or has no suitable file, DownloadError when the hub
    fails."""
    hub = _Hub(options)
    contents = hub.files(f"{repository.user}/{repository.name}")
    choice = choose_files(
        [Offer(file.path, file.size_bytes or 0) for file in contents.files],
        options.target,
        repository=f"{repository.user}/{repository.name}",
    )
    items = [
        hub.item(contents, _find_listed(contents.files, name.path), name) for name in (*choice.weights, *choice.others)
    ]
    notes: tuple[str, ...] = ()
    if choice.converted:
        texts, notes = _texts(hub, contents)
        items += texts
    return DownloadList(
        name=repository.local_name,
        items=_with_unique_names(items),
        origin=f"{repository} at {contents.revision[:12]}",
        why=choice.why,
        notes=notes + _notes_on(choice),
    )


def configuration_from_hub(repository: Repository, options: PullOptions) -> dict[str, Any]:
    """config.json of the repository or of the model that it was made from. Raises ModelError where there is none, and
    DownloadError when the hub fails."""
    hub = _Hub(options)
    name = f"{repository.user}/{repository.name}"
    contents, tried = _with_file(hub, hub.files(name), _CONFIGURATION)
    if contents is None:
        raise ModelError(
            "there is no {configuration} in {names}; name the original model's repository",
            configuration=_CONFIGURATION,
            names=", ".join(tried),
        )
    source = hub.source(contents, _CONFIGURATION)
    content = asyncio.run(fetch_small(source, most_bytes=_MOST_CONFIGURATION_BYTES, retry=options.transfer.retry))
    try:
        configuration = json.loads(content)
    except (ValueError, RecursionError):
        configuration = None
    if not isinstance(configuration, dict):
        raise ModelError(
            "{configuration} of {name} is not a JSON object; name another repository",
            configuration=_CONFIGURATION,
            name=contents.name,
        )
    return configuration


def hub_address() -> str:
    """The URL of the hub that is asked. Raises ModelError for a broken HF_ENDPOINT."""
    return _endpoint(insecure=False)


@dataclass(frozen=True, slots=True)
class _Contents:
    """A repository at one revision; `bases` are the models that it was made from, by its card."""

    name: str
    revision: str
    files: tuple[_Listed, ...]
    bases: tuple[str, ...]


class _Hub:
    """Requests by the library of the hub. Raises Denied and DownloadError."""

    def __init__(self, options: PullOptions):
        self._patience = options.transfer.retry
        self._insecure, self._hosts = options.insecure, options.hosts
        self._endpoint = _endpoint(insecure=options.insecure)  # first: a broken one ends the library's import

        from huggingface_hub import HfApi, get_token

        self._token = _checked_token(get_token())
        self._api = HfApi(endpoint=self._endpoint, token=self._token or False, library_name="trilithon")

    def files(self, name: str) -> _Contents:
        """List a repository. The answer is checked, because a mirror may send anything."""
        info = self._request(name, lambda: self._api.model_info(name, files_metadata=True, timeout=self._timeout))
        listed = tuple(map(_read_sibling, info.siblings or ()))
        revision: object = info.sha or "main"
        if None in listed or not isinstance(revision, str) or not _REVISION.fullmatch(revision):
            raise DownloadError(self._no_list())
        return _Contents(name, revision, tuple(file for file in listed if file is not None), _bases(info))

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
        return DownloadSource(
            url=url,
            headers=headers,
            messages={401: denied, 403: denied},
            insecure=self._insecure,
            hosts=self._hosts and self._hosts.and_host_of(self._endpoint),  # the owner named it
        )

    @property
    def _timeout(self) -> Any:
        """For connecting, reading, writing and the pool, as the HTTP library of the hub's takes it."""
        silence_seconds = min(self._patience.silence_seconds, 30.0)
        return (self._patience.connect_limit_seconds, silence_seconds, silence_seconds, None)

    def _denied(self, name: str) -> str:
        return (
            f"{name} has restricted access: accept its terms at {redacted_url(self._endpoint)}/{name}, "
            f"then {'check your token' if self._token else 'log in (hf auth login)'} or set HF_TOKEN"
        )

    def _request(self, name: str, ask: Callable[[], T]) -> T:
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
                raise AccessDenied(
                    "there is no repository {name} on {host}; check its name, {hint}",
                    name=name,
                    host=self._host,
                    hint=hint,
                ) from error
            except errors.HFValidationError as error:
                raise AccessDenied(
                    "{name} is not the name of a repository; write hf.co/user/repo", name=name[:80]
                ) from error
            except errors.OfflineModeIsEnabled as error:
                raise DownloadError("HF_HUB_OFFLINE is set, and nothing is fetched; unset it") from error
            except errors.HfHubHTTPError as error:
                failures += 1
                self._wait(error, error.response.status_code, failures, error.response.headers.get("Retry-After", ""))
            except HTTPError as error:  # no connection, or no answer
                failures += 1
                self._wait(error, None, failures, "")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise DownloadError(self._no_list()) from error

    def _no_list(self) -> str:
        return f"{self._host} does not answer with a list of files; check HF_ENDPOINT"

    def _wait(self, error: Exception, status: int | None, failures: int, retry_after: str) -> None:
        what = f"status {status}" if status else (str(error).splitlines() or ["no answer"])[0][:120]
        if (status is not None and status not in _AGAIN) or failures >= self._patience.attempts:
            tries = "" if failures == 1 else f" in {failures} tries"
            raise DownloadError(
                "{host} does not answer{tries}: {what}; try again, or set HF_ENDPOINT",
                host=self._host,
                tries=tries,
                what=what,
            ) from error
        asked = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 9 else 0.0
        if asked > self._patience.longest_asked_seconds:
            raise DownloadError(
                "{host} asks to wait {wait} ({what}); run the same command again then",
                host=self._host,
                wait=format_duration(asked),
                what=what,
            ) from error
        wait_seconds = self._patience.wait_seconds(failures, asked)
        self._patience.announce(self._host, what, failures, wait_seconds)
        time.sleep(wait_seconds)

    @property
    def _host(self) -> str:
        return self._endpoint.partition("://")[2].rpartition("@")[2]


def _endpoint(*, insecure: bool) -> str:
    """The URL of the hub. It is checked before the first request, because requests contain the token."""
    text = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or _DEFAULT_ENDPOINT
    try:
        return DownloadSource(url=text, insecure=insecure).url
    except ModelError as error:
        raise ModelError("HF_ENDPOINT: {reason}", reason=error) from error


def _checked_token(token: str | None) -> str:
    """Raises ModelError for a token that cannot be sent in a header. The message does not show it."""
    if token and not (token.isascii() and token.isprintable()):
        raise ModelError("the token of Hugging Face has invalid characters; check HF_TOKEN, or run: hf auth login")
    return token or ""


def _read_sibling(row: Any) -> _Listed | None:
    """A row of the library's RepoSibling, whose types are not checked. None for invalid values: names become paths,
    sizes are added, and checksums become names of files."""
    digest, size = (row.lfs.sha256, row.lfs.size) if row.lfs else ("", row.size)
    blob = "" if digest else row.blob_id or ""
    sized = size is None or (type(size) is int and 0 <= size < _MOST_BYTES)
    named = isinstance(row.rfilename, str) and isinstance(blob, str)
    if not sized or not named or not (digest == "" or _SHA256.fullmatch(str(digest))):
        return None
    return _Listed(row.rfilename, size, digest, blob)


def _texts(hub: _Hub, repository: _Contents) -> tuple[list[DownloadItem], tuple[str, ...]]:
    """The tokenizer and its companions, of the repository or of the model that it was made from; else a note."""
    try:
        contents, tried = _with_file(hub, repository, _NEEDED)
    except AccessDenied as error:
        return [], (f"{_WITHOUT}: {error}",)
    if contents is not None:
        return _text_items(hub, contents), ()
    made_from = f"in none of {', '.join(tried)}" if len(tried) > 1 else "and its card names no base_model"
    fix = "put tokenizer.json and tokenizer_config.json of the original model beside it"
    return [], (f"there is no {_NEEDED} {made_from}: chat uses the runtime's own template; {fix}",)


def _with_file(hub: _Hub, repository: _Contents, path: str) -> tuple[_Contents | None, list[str]]:
    """The repository, or the nearest model that it was made from, with that file, and the names of all that were
    tried. Raises AccessDenied."""
    contents, tried = repository, [repository.name]
    for _ in range(_MOST_BASES + 1):
        if any(file.path == path for file in contents.files):
            return contents, tried
        base = next((name for name in contents.bases if name not in tried), "")
        if not base:
            break
        tried.append(base)
        contents = hub.files(base)
    return None, tried


def _text_items(hub: _Hub, contents: _Contents) -> list[DownloadItem]:
    return [
        DownloadItem(
            source=hub.source(contents, file.path),
            name=file.path,
            role=_TEXT_FILES[file.path],
            format="json" if file.path.endswith(".json") else "text",
            size_bytes=file.size_bytes,
            digest=file.digest,
            git_blob=file.git_blob,
            without=_WITHOUT,
        )
        for file in contents.files
        if file.path in _TEXT_FILES
    ]


def _bases(info: "ModelInfo") -> tuple[str, ...]:
    """`base_model` of the card: a name or a list of names."""
    value: object = getattr(info.card_data, "base_model", None)
    names = value if isinstance(value, list) else [value]
    return tuple(name.strip() for name in names if isinstance(name, str) and name.count("/") == 1)


def _find_listed(files: Sequence[_Listed], path: str) -> _Listed:
    return next(file for file in files if file.path == path)


def _with_unique_names(items: Sequence[DownloadItem]) -> tuple[DownloadItem, ...]:
    """Give every file of a model its own name: files of several folders may have the same."""
    unique: dict[str, DownloadItem] = {}
    for item in items:
        name, number = item.name, 2
        while name.casefold() in unique:
            path = PurePosixPath(item.name)
            name, number = f"{path.stem}-{number}{path.suffix}", number + 1
        unique[name.casefold()] = replace(item, name=name)
    return tuple(unique.values())


def _notes_on(choice: FileChoice) -> tuple[str, ...]:
    if choice.converted and not choice.weights[0].chip:
        return ("its name does not say its chip; the runtime of another chip refuses it",)
    return ()
