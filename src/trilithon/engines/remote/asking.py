"""What a server says about itself: which API it has, and which models.

The APIs are told apart by their own addresses: GET /props is llama-server's (tools/server/README.md of llama.cpp), GET
/api/version Ollama's (docs/api.md of Ollama), which RKLLAMA has too, and GET /v1/models everybody's."""

import json
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from trilithon.errors import PlacementError

if TYPE_CHECKING:
    import httpx

__all__ = ["KEY_VARIABLE", "Api", "RemoteModel", "RemoteServer", "api_key", "ask_server"]

KEY_VARIABLE: Final = "TRILITHON_SERVER_KEY"
Api = Literal["llama-server", "Ollama", "RKLLAMA", "OpenAI API"]

_SECONDS = 10.0
_MOST_BYTES = 16 << 20  # a list of thousands of models has 1 MB
_NO_ROUTE = (404, 405, 501)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """A model as the server describes it; what it does not say is empty or None. `vocabulary` counts token ids."""

    name: str
    quantization: str = ""
    size_bytes: int = 0
    digest: str = ""
    parameters: int | None = None
    vocabulary: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteServer:
    """`round_trip_seconds` is the time that a small answer took."""

    api: Api
    version: str
    models: tuple[RemoteModel, ...]
    round_trip_seconds: float = field(compare=False)


def api_key(variable: str | None) -> str:
    """The key in an environment variable, by default TRILITHON_SERVER_KEY; empty where there is none. Raises
    PlacementError for a variable that was named and is not set."""
    if variable is None:
        return os.environ.get(KEY_VARIABLE, "")
    if variable not in os.environ:
        raise PlacementError(
            "key={name}: this environment variable is not set; set it to the key of the server", name=variable
        )
    return os.environ[variable]


def ask_server(address: str, key: str = "") -> RemoteServer:
    """Raises PlacementError where no server answers, where it wants a key, and for an API that is none of these."""
    import httpx  # takes 0.1 s

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Made for https alone: it reads the certificates of all authorities, which takes 50 ms.
    verify = ssl.create_default_context() if address.startswith("https:") else False
    with httpx.Client(timeout=_SECONDS, trust_env=False, headers=headers, verify=verify) as client:
        return _server(_Asking(address, client))


def _server(asking: "_Asking") -> RemoteServer:
    props = asking.get("/props")
    if "default_generation_settings" in props:
        models = [_llama_model(entry, props) for entry in _entries(asking.get("/v1/models"), "data")]
        return asking.server("llama-server", str(props.get("build_info", "")), models)
    version = asking.get("/api/version").get("version")
    if version is not None:
        models = [_ollama_model(entry) for entry in _entries(asking.get("/api/tags"), "models")]
        # RKLLAMA 0.0.74 gives every model the digest "" (its server.py); Ollama's digests are never empty.
        is_rkllama = bool(models) and not any(model.digest for model in models)
        return asking.server("RKLLAMA" if is_rkllama else "Ollama", str(version), models)
    body = asking.get("/v1/models")
    if not isinstance(body.get("data"), list):
        raise PlacementError(
            "{address}: a server answers, but with the API of neither llama-server, Ollama nor OpenAI; "
            "name the address without the path of a request",
            address=asking.address,
        )
    return asking.server("OpenAI API", "", [RemoteModel(name=str(entry.get("id"))) for entry in _entries(body, "data")])


class _Asking:
    def __init__(self, address: str, client: "httpx.Client") -> None:
        self.address = address
        self._client = client
        self._fastest = float("inf")

    def get(self, path: str) -> Mapping[str, Any]:
        """The answer's object; an empty one where the server has no such path."""
        import httpx

        started = time.monotonic()
        try:
            with self._client.stream("GET", self.address + path) as answer:
                content = b""
                for piece in answer.iter_bytes():
                    content += piece
                    if len(content) > _MOST_BYTES:
                        raise PlacementError(
                            "{address}: the answer does not end; name another address", address=self.address
                        )
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise PlacementError(
                "no server answers at {address}: {reason}; start it, or leave this placement out",
                address=self.address,
                reason=str(error) or type(error).__name__,
            ) from error
        self._fastest = min(self._fastest, time.monotonic() - started)
        return self._read(path, answer.status_code, content)

    def _read(self, path: str, status: int, content: bytes) -> Mapping[str, Any]:
        if status in (401, 403):
            raise PlacementError(
                "{address} refuses the request ({status}): {reason}; "
                "if it wants a key, put it into the environment variable {name}",
                address=self.address,
                status=status,
                reason=_words(content),
                name=KEY_VARIABLE,
            )
        if status >= 500 and status not in _NO_ROUTE:
            raise PlacementError(
                "{address} is not ready ({status}): {reason}; try again when it is",
                address=self.address,
                status=status,
                reason=_words(content),
            )
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            return {}
        return body if status == 200 and isinstance(body, dict) else {}

    def server(self, api: Api, version: str, models: list[RemoteModel]) -> RemoteServer:
        return RemoteServer(api=api, version=version, models=tuple(models), round_trip_seconds=self._fastest)


def _words(content: bytes) -> str:
    try:
        error = json.loads(content)["error"]
        content = str(error.get("message", error) if isinstance(error, dict) else error).encode()
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    words = " ".join(content.decode(errors="replace").split())[:200]
    return "".join(char for char in words if char.isprintable()) or "no reason given"


def _entries(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    entries = body.get(name)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _llama_model(entry: Mapping[str, Any], props: Mapping[str, Any]) -> RemoteModel:
    meta = entry.get("meta") if isinstance(entry.get("meta"), dict) else {}
    assert isinstance(meta, dict)
    return RemoteModel(
        name=str(entry.get("id", "")),
        quantization=str(meta.get("ftype") or props.get("model_ftype") or "").removeprefix("all ").strip(),
        size_bytes=_number(meta.get("size")) or 0,
        parameters=_number(meta.get("n_params")),
        vocabulary=_number(meta.get("n_vocab")),
    )


def _ollama_model(entry: Mapping[str, Any]) -> RemoteModel:
    details = entry.get("details") if isinstance(entry.get("details"), dict) else {}
    assert isinstance(details, dict)
    return RemoteModel(
        name=str(entry.get("name") or entry.get("model") or ""),
        quantization=str(details.get("quantization_level") or ""),
        size_bytes=_number(entry.get("size")) or 0,
        digest=str(entry.get("digest") or ""),
    )


def _number(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
