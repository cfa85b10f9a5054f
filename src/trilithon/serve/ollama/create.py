"""A request to create a model, as the Modelfile that it stands for, and its uploaded files by what they hold."""

from collections.abc import Mapping
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.create.modelfile import Modelfile
from trilithon.models.files.file_names import quantization_of
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.kinds import PROJECTORS, read_kind
from trilithon.models.store.manifest import FileFormat, PresetMessage, Role, StoredFile, safe_file_name
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.parameters import IGNORED_PARAMETERS, Parameter, check_parameter
from trilithon.serve.ollama.bodies import CreateBody
from trilithon.serve.validation import wrong

__all__ = ["modelfile_of", "uploaded_files"]

_UPLOADED = "uploaded"
_ROLES = ("system", "user", "assistant")
# Files beside an RKLLM's weights, which hold no header that says what they are.
_BY_NAME: Mapping[str, tuple[Role, FileFormat]] = {
    "tokenizer.json": ("tokenizer", "json"),
    "tokenizer_config.json": ("tokenizer", "json"),
    "chat_template.jinja": ("template", "text"),
}


def modelfile_of(body: CreateBody) -> Modelfile:
    """Raises Problem for a parameter that does not fit."""
    licenses = [body.license] if isinstance(body.license, str) else body.license or ()
    messages = []
    for at, message in enumerate(body.messages or ()):
        if message.role not in _ROLES:
            raise wrong(f"messages.{at}.role", f"messages.{at}.role {message.role!r} is none of {', '.join(_ROLES)}")
        messages.append(PresetMessage(message.role, message.content or ""))
    return Modelfile(
        sources=(body.base or _UPLOADED,),
        parameters=_parameters(body.parameters or {}),
        system=body.system,
        template=body.template,
        messages=tuple(messages),
        licenses=tuple(licenses),
        ignored=tuple(f"PARAMETER {name}" for name in body.parameters or {} if name in IGNORED_PARAMETERS),
    )


def _parameters(given: Mapping[str, object]) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    for name, value in given.items():
        if value is None or name in IGNORED_PARAMETERS:
            continue
        try:
            parameters[name] = check_parameter(name, value)
        except ModelError as error:
            raise wrong(f"parameters.{name}", str(error)) from error
    return parameters


def uploaded_files(named: Mapping[str, str], store: ModelStore, *, adapters: bool = False) -> tuple[StoredFile, ...]:
    """`named`: file name → sha256:digest. The store keeps them until its next `put`. Raises Problem for what was not
    uploaded, and for what is no model."""
    return tuple(_uploaded(name, digest, store, adapters) for name, digest in named.items())


def _uploaded(name: str, digest: str, store: ModelStore, adapter: bool) -> StoredFile:
    removeprefix = digest.removeprefix("sha256:")
    try:
        with store.locked(removeprefix):
            path = store.blob_path(removeprefix)
    except ModelError as error:
        raise wrong("files", f"{name[:80]!r}: there is no blob {digest[:80]!r}; send it to /api/blobs first") from error
    own = safe_file_name(name)
    if own in _BY_NAME:
        role, form = _BY_NAME[own]
    elif own.lower().endswith(".rkllm"):
        role, form = ("adapter" if adapter else "weights"), "rkllm"
    else:
        role, form = _gguf_role(own, path, adapter), "gguf"
        own = own if own.lower().endswith(".gguf") else f"{own}.gguf"
    quantization = ""
    if role == "weights":
        quantization = read_gguf(path).quantization if form == "gguf" else quantization_of(own)
    return StoredFile(
        role=role, digest=removeprefix, size_bytes=path.stat().st_size, name=own, format=form, quantization=quantization
    )


def _gguf_role(name: str, path: Path, adapter: bool) -> Role:
    """By its header. Raises Problem for what is no GGUF."""
    try:
        kind = read_kind(path)
    except ModelError as error:
        raise wrong("files", f"{name!r} is not a GGUF file; convert the model first: trilithon convert") from error
    if (kind.name == "adapter") != adapter:
        verb = "is no" if adapter else "is an"
        raise wrong("adapters", f"{name!r} {verb} adapter; name it in the other field")
    if kind.problem and kind.name not in ("adapter", *PROJECTORS):
        raise wrong("files", kind.sentence(name))
    return "adapter" if adapter else "projector" if kind.problem else "weights"
