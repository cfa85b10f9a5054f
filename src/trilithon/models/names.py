"""Parses what users call a model: Ollama's names, repositories of Hugging Face, paths and URLs.

Ollama's grammar is `[host/][namespace/]model[:tag][@digest]` (types/model/name.go of Ollama): host up to 350
characters of letters, digits and `_.:-`, namespace, model and tag up to 80, a namespace without dots. Parts become
names of files, so nothing else is accepted: no `..`, no control characters, no white space."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from trilithon.errors import ModelError
from trilithon.suggestions import similar_names

__all__ = ["ModelName", "ModelPath", "ModelUrl", "Repository", "name_part", "parse_reference", "similar_models"]

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_DIGEST = re.compile(r"sha256[-:]([0-9a-f]{64})")
_FILE_SUFFIXES = (".gguf", ".rkllm")
_HUB_HOSTS = ("hf.co", "huggingface.co")
_HUB_PAGE = re.compile(
    r"https?://(?:www\.)?(?:hf\.co|huggingface\.co)/([^/?#]+/[^/?#]+)"
    r"(?:/(tree|blob|resolve)/([^/?#]+)(?:/([^?#]+))?)?/?(?:\?download=true)?",
    re.IGNORECASE,
)
_LONGEST = 1024
_LONGEST_PART = 80
_LONGEST_URL = 8192  # signed addresses are long
_FIX = "write [host/][namespace/]model[:tag], hf.co/user/repo[:quant], a path or a URL"


@dataclass(frozen=True, slots=True)
class ModelName:
    """The full name of a model. Its text omits the default parts."""

    host: str
    namespace: str
    model: str
    tag: str
    digest: str = ""

    DEFAULTS: ClassVar[tuple[str, str, str]] = ("registry.ollama.ai", "library", "latest")

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """The folders and the file of its manifest, each safe as a file name."""
        return self.host.replace(":", "_port_"), self.namespace, self.model, self.tag

    def same_as(self, other: "ModelName") -> bool:
        """Whether the names differ by case at most, as for Ollama: some file systems do not distinguish case."""
        return tuple(map(str.casefold, self.parts)) == tuple(map(str.casefold, other.parts))

    def __str__(self) -> str:
        host, namespace, _ = self.DEFAULTS
        text = f"{self.model}:{self.tag}"
        if self.host != host or self.namespace != namespace:
            text = f"{self.namespace}/{text}"
        if self.host != host:
            text = f"{self.host}/{text}"
        return text


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on Hugging Face; `choice` is a quantisation or a file name in it, empty to choose by the board."""

    user: str
    name: str
    choice: str = ""

    def __str__(self) -> str:
        return f"hf.co/{self.user}/{self.name}" + (f":{self.choice}" if self.choice else "")

    @property
    def local_name(self) -> ModelName:
        """The name in the store of a model from this repository, as for Ollama."""
        return ModelName("hf.co", self.user.replace(".", "-"), self.name, self.choice or "latest")


@dataclass(frozen=True, slots=True)
class ModelPath:
    path: Path


@dataclass(frozen=True, slots=True)
class ModelUrl:
    url: str


Reference = ModelName | Repository | ModelPath | ModelUrl


def parse_reference(text: str) -> Reference:
    """Raises ModelError for any other text. A path begins with `/`, `./`, `../` or `~`, or ends with a known suffix;
    whether it exists is not checked."""
    web = re.match(r"https?://", text, re.IGNORECASE)
    longest = _LONGEST_URL if web else _LONGEST
    if not text or len(text) > longest or any(ord(char) < 33 or ord(char) == 127 for char in text):
        if text and _looks_like_path(text) and "\0" not in text and len(text) <= _LONGEST:
            return _parse_path(text)
        raise ModelError("model name {text!r} does not fit; {fix}", text=text[:80], fix=_FIX)
    if web:
        return _parse_url(text)
    host, slash, rest = text.partition("/")
    if slash and host.lower() in _HUB_HOSTS:  # before paths: what is chosen in it may be a file
        return _parse_repository(rest, text)
    if _looks_like_path(text):
        return _parse_path(text)
    return _parse_name(text)


def name_part(text: str) -> str:
    """The nearest text that can be the model or the tag of a name."""
    part = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
    part = re.sub(r"\.{2,}", ".", part).lstrip(".-")[:_LONGEST_PART].rstrip("-.")
    return part or "model"


def _looks_like_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or text.lower().endswith(_FILE_SUFFIXES)


def _parse_path(text: str) -> ModelPath:
    try:
        return ModelPath(Path(text).expanduser())
    except RuntimeError:
        raise ModelError("{text!r}: no such user's home; write the path in full", text=text[:80]) from None


def _parse_url(text: str) -> Reference:
    """The page of a repository, or of a file in its root, is the repository, which has a checksum for each file;
    anything else is a file to fetch."""
    hub = _HUB_PAGE.fullmatch(text)
    if hub is None:
        return ModelUrl(text)
    repository, view, revision, path = hub.groups()
    if not path and revision in (None, "main"):
        return _parse_repository(repository, text)
    if revision == "main" and _PART.fullmatch(path) and path.lower().endswith(_FILE_SUFFIXES):
        return _parse_repository(f"{repository}:{path}", text)
    start = hub.start(2)
    return ModelUrl(f"{text[:start]}resolve{text[start + 4 :]}" if view == "blob" else text)


def _parse_repository(rest: str, text: str) -> Repository:
    path, _, choice = rest.partition(":")
    user, _, name = path.partition("/")
    if not _PART.fullmatch(user) or not _PART.fullmatch(name) or (choice and not _PART.fullmatch(choice)):
        raise ModelError(
            "repository {text!r} does not fit; write hf.co/user/repo or hf.co/user/repo:quant", text=text[:80]
        )
    if ".." in path or ".." in choice:
        raise ModelError("repository {text!r} holds ..; write hf.co/user/repo", text=text[:80])
    return Repository(user, name, choice)


def _parse_name(text: str) -> ModelName:
    path, at, digest = text.partition("@")
    *front, last = path.split("/")
    model, colon, tag = last.partition(":")
    host, namespace, default_tag = ModelName.DEFAULTS
    if front:
        namespace = front[-1]
    if len(front) == 2:
        host = front[0]
    name = ModelName(host, namespace, model, tag if colon else default_tag)
    if at:
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise ModelError(
                "digest {digest!r} does not fit; write @sha256:… with 64 hexadecimal digits", digest=digest[:80]
            )
        name = replace(name, digest=match[1])
    fits = (
        len(front) <= 2
        and _HOST.fullmatch(name.host)
        and _NAMESPACE.fullmatch(name.namespace)
        and _PART.fullmatch(name.model)
        and _PART.fullmatch(name.tag)
        and ".." not in path
    )
    if not fits:
        raise ModelError("model name {text!r} does not fit; {fix}", text=text[:80], fix=_FIX)
    return name


def similar_models(name: ModelName, others: Iterable[ModelName]) -> list[str]:
    """The same model in other sizes; without any, those whose name is similar."""
    names = {str(other).removesuffix(":latest"): other for other in others}
    same = [str(other) for other in names.values() if other.model.casefold() == name.model.casefold()]
    return same[:5] or [str(names[near]) for near in similar_names(str(name).removesuffix(":latest"), names)]
