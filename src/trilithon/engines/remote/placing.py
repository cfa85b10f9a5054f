"""The placement of a server's model: which of its models is meant, and what is known of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import PurePath
from urllib.parse import urlsplit

from trilithon.engines.base import Build, Feature, Placement, Settings
from trilithon.engines.remote.asking import RemoteModel, RemoteServer, api_key, ask_server
from trilithon.errors import PlacementError
from trilithon.models.files.model_file import ModelFile

__all__ = ["is_elsewhere", "place_server", "writes_tokens"]

# The number of models that an error names.
_MOST_NAMES = 12
# Ollama's context is at least so many tokens (docs/faq of Ollama); another one makes it load the model again.
_USUAL_CONTEXT = 4096


def place_server(
    text: str, options: Mapping[str, str], names: Sequence[str], file: ModelFile, context: int
) -> Placement:
    """The placement `text` with `options` (address, model, key). `names` are what the measured model is called here,
    and `file` is its file here. `context` is in tokens. Raises PlacementError."""
    address = options["address"]
    server = ask_server(address, api_key(options.get("key")))
    model = _meant(text, server, options.get("model", ""), names)
    features: frozenset[Feature] = frozenset({"logprobs"} if server.api == "llama-server" else ())
    build = Build(
        engine="http",
        name=server.api.replace(" ", "-"),
        version=server.version,
        units=("server",),
        features=features,
        where=address,
        fingerprint=model.digest[:12],
    )
    words = {**options, "model": model.name, **({"context": str(context)} if context > _USUAL_CONTEXT else {})}
    settings = Settings(context=context, options=tuple(words.items()))
    return Placement(name=text, file=_file_there(file, model), build=build, unit="server", settings=settings)


def is_elsewhere(placement: Placement) -> bool:
    """Whether it computes on another machine, whose sensors are not these: a server at no address of this one."""
    if placement.unit != "server":
        return False
    host = urlsplit(placement.build.where).hostname or ""
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def writes_tokens(placement: Placement) -> bool:
    """Whether prompts can be given as token ids, and distributions read. Of a server that takes text only, False."""
    return placement.unit != "server" or "logprobs" in placement.build.features


def _meant(text: str, server: RemoteServer, wanted: str, names: Sequence[str]) -> RemoteModel:
    """The model that the user named, else the one that is called as the measured one, else the only one of a server
    that has one model by design."""
    for name in [wanted] if wanted else names:
        for model in server.models:
            if _plain(name) in (_plain(model.name), _plain(model.name.removesuffix(":latest"))):
                return model
    if not wanted and len(server.models) == 1 and server.api in ("llama-server", "OpenAI API"):
        return server.models[0]
    there = [model.name for model in server.models]
    if not there:
        raise PlacementError("placement {text}: the server has no model; load one there", text=text)
    raise PlacementError(
        "placement {text}: the server has no model {model}; write #MODEL after the address; it has {names}",
        text=text,
        model=wanted or names[0],
        names=", ".join([*there[:_MOST_NAMES], *(["…"] if len(there) > _MOST_NAMES else [])]),
    )


def _plain(name: str) -> str:
    """Names of one model differ in case and punctuation, and a file's name has a suffix."""
    name = PurePath(name).name.removesuffix(".gguf").removesuffix(".rkllm")
    return "".join(char for char in name.casefold() if char.isalnum())


def _file_there(file: ModelFile, model: RemoteModel) -> ModelFile:
    """The server's file: the same model as `file` by the user's word, as far as the server does not contradict. It
    keeps the path of `file`, by which references and names of placements are found."""
    return replace(
        file,
        quantization=model.quantization or "unknown quantization",
        size_bytes=model.size_bytes,
        sha256=model.digest,
        parameters=model.parameters or file.parameters,
        bytes_per_token=None,
        prompt_form=None,
        tokenizer=None,
        vision_encoder=None,
        adapters=(),
        parts=(),
    )
