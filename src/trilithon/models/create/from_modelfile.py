"""Creates a model from a Modelfile: the files that FROM names, and the settings of the other commands."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.errors import ModelError, NotAModel
from trilithon.models.adopt.bundles import bundles, files_below
from trilithon.models.adopt.scan_root import ScanRoot, stored
from trilithon.models.create.modelfile import Modelfile
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.hashing import Progress
from trilithon.models.files.kinds import PROJECTORS, read_kind
from trilithon.models.files.prompt_form import GO_TEMPLATE, JINJA_TEMPLATE, is_go_template
from trilithon.models.files.rkllm import read_rkllm
from trilithon.models.names import ModelName, ModelPath, ModelUrl, parse_reference
from trilithon.models.store.manifest import FileFormat, Manifest, Role, StoredFile, now
from trilithon.models.store.model_store import ModelStore

__all__ = ["Created", "create"]

_TENSORS = (".safetensors", ".bin", ".pth")


@dataclass(frozen=True, slots=True)
class Created:
    """The manifest, not yet in the store; `remarks` are for the user, one line each."""

    manifest: Manifest
    remarks: tuple[str, ...]


def create(
    name: ModelName,
    modelfile: Modelfile,
    folder: Path,
    store: ModelStore,
    find: Callable[[str], Manifest],
    *,
    copy: bool = False,
    progress: Progress | None = None,
) -> Created:
    """`folder` is the folder of the Modelfile, for relative paths; `find` returns a model by its name, or raises
    ModelError.

    Local files are used in place, unless `copy`. Settings that the Modelfile does not have are those of the model in
    FROM. Raises ModelError for files that are missing or do not fit together."""
    bases = [_base(source, folder, find) for source in modelfile.sources]
    adapters = [_adapter(_path(text, folder)) for text in modelfile.adapters]
    files = [*(file for base in bases for file in base.files), *adapters]
    if copy:
        files = [_copied(file, store, progress) for file in files]
    template, files = _with_template(modelfile, bases, files, store)
    licenses = [_text_file("license", "license.txt", text, store) for text in modelfile.licenses]
    manifest = Manifest(
        name=name,
        files=_with_unique_names([*files, *licenses]),
        source=f"created from {', '.join(modelfile.sources)}",
        created=now(),
        parameters={key: value for base in bases for key, value in base.parameters.items()}
        | dict(modelfile.parameters),
        system=_first_text(modelfile.system, [base.system for base in bases]),
        template=template,
        messages=modelfile.messages or next((base.messages for base in bases if base.messages), ()),
        synthetic=any(base.synthetic for base in bases),
        placement_options={key: value for base in bases for key, value in base.placement_options.items()},
    )
    if not manifest.of_role("weights"):
        raise ModelError("FROM {names} has no weights; name the model too", names=", ".join(modelfile.sources))
    return Created(manifest, tuple(_remarks(modelfile, manifest, store)))


# FROM


def _base(source: str, folder: Path, find: Callable[[str], Manifest]) -> Manifest:
    path = _path(source, folder)
    if os.path.lexists(path):
        return _local(path)
    reference = parse_reference(source)
    if isinstance(reference, ModelPath):
        raise ModelError("FROM {source}: {path} does not exist; correct the path", source=source[:80], path=path)
    if isinstance(reference, ModelUrl):
        raise ModelError(
            "FROM {source}: fetch it first, then use its name: trilithon pull {source}", source=source[:80]
        )
    return find(source)


def _path(text: str, folder: Path) -> Path:
    """The path relative to the Modelfile, as for Ollama; without `..`, which could lead through a folder that is
    removed later."""
    try:
        path = folder / Path(text).expanduser()
    except RuntimeError:
        raise ModelError("{text}: no such user's home; write the path in full", text=text[:80]) from None
    return Path(os.path.realpath(path)) if path.name == ".." else Path(os.path.realpath(path.parent)) / path.name


def _local(path: Path) -> Manifest:
    """A file with its companions, or the only model of a folder, as a manifest without a name."""
    folder = path if path.is_dir() else path.parent
    scan_root = _anywhere(folder)
    paths = [Path(entry.path) for entry in scan_root.entries(folder) if not entry.is_dir(follow_symlinks=False)]
    files = [file for entry in paths if (file := scan_root.file(entry))]
    stems = [file.path.stem for file in files if file.path.suffix.lower() == ".rkllm"]
    models = list(bundles(scan_root, files, files_below(scan_root, folder, ["tokenizer", *stems]) if stems else ()))
    if path.is_file():
        model = next((bundle for bundle in models if path in [file.path for file in bundle.files]), None)
        if model is not None and path.suffix.lower() == ".rkllm":
            return _nameless(model.files, path)
        role = _role(path)
        return _nameless(model.files if model else (_file(path, role, "gguf"),), path)
    if len(models) == 1:
        return _nameless(models[0].files, path)
    if not models and any(entry.suffix in _TENSORS for entry in paths):
        raise ModelError("{path} has no GGUF; convert it: trilithon convert {path} --to gguf", path=path)
    count = "no model" if not models else f"{len(models)} models"
    raise ModelError("{path} has {count}; name one file", path=path, count=count)


def _anywhere(folder: Path) -> ScanRoot:
    """A folder that the user named: links in it may lead to any place."""
    return ScanRoot(folder, "folder", within=Path("/"))


def _role(path: Path) -> Role:
    """What FROM names, by the header of a GGUF. Raises NotAModel for what is neither weights nor a projector."""
    kind = read_kind(path)
    if kind.name in PROJECTORS:
        return "projector"
    if kind.problem:
        raise NotAModel(kind.sentence(path))
    return "weights"


def _file(path: Path, role: Role, form: FileFormat) -> StoredFile:
    scan_root = _anywhere(path.parent)
    file = scan_root.file(path)
    if file is None:
        raise ModelError("{path} {reason}", path=path, reason=scan_root.skipped[0].reason)
    name = path.name if path.suffix.lower() == f".{form}" else f"{path.name}.{form}"
    return stored(file, role, form, name=name)


def _nameless(files: tuple[StoredFile, ...], path: Path) -> Manifest:
    """A manifest without a name. Raises ModelError for invalid or incomplete weights."""
    host, namespace, tag = ModelName.DEFAULTS
    manifest = Manifest(name=ModelName(host, namespace, "model", tag), files=files, source=str(path), created=now())
    first = next(iter(manifest.of_role("weights")), None)
    if first is None or first.path is None:
        return manifest
    if first.format != "gguf":
        read_rkllm(first.path)
        return manifest
    facts = read_gguf(first.path)
    named = [replace(file, quantization=facts.quantization) if file.role == "weights" else file for file in files]
    return replace(manifest, files=tuple(named), synthetic=facts.synthetic)


def _adapter(path: Path) -> StoredFile:
    if path.suffix.lower() in _TENSORS or path.is_dir():
        raise ModelError(
            "ADAPTER {path} is not a GGUF; convert it with convert_lora_to_gguf.py of llama.cpp", path=path
        )
    file = _file(path, "adapter", "rkllm" if path.suffix.lower() == ".rkllm" else "gguf")
    kind = read_kind(path) if file.format == "gguf" else None
    if kind is not None and kind.name != "adapter":
        if kind.problem and kind.name not in PROJECTORS:
            raise NotAModel("ADAPTER {sentence}", sentence=kind.sentence(path))
        label = kind.label or "a 'model'"
        raise ModelError("ADAPTER {path} is {label} and not an adapter; name it with FROM", path=path, label=label)
    return file


def _copied(file: StoredFile, store: ModelStore, progress: Progress | None) -> StoredFile:
    return file if file.path is None else replace(file, digest=store.add(file.path, progress), path=None)


# The other commands


def _first_text(text: str | None, inherited: Iterable[str]) -> str:
    return text if text is not None else next(filter(None, inherited), "")


def _with_template(
    modelfile: Modelfile, bases: Sequence[Manifest], files: Sequence[StoredFile], store: ModelStore
) -> tuple[str, list[StoredFile]]:
    """The Jinja template, and the files with the template in Jinja or Go: engines read it beside the weights."""
    if modelfile.template is None:
        return _first_text(None, [base.template for base in bases]), list(files)
    others = [file for file in files if file.role != "template"]
    if not modelfile.template.strip():
        return "", others
    if is_go_template(modelfile.template):
        return "", [*others, _text_file("template", GO_TEMPLATE, modelfile.template, store)]
    return modelfile.template, [*others, _text_file("template", JINJA_TEMPLATE, modelfile.template, store)]


def _text_file(role: Role, name: str, text: str, store: ModelStore) -> StoredFile:
    content = text.encode()
    return StoredFile(role=role, digest=store.add_bytes(content), size_bytes=len(content), name=name, format="text")


def _with_unique_names(files: Sequence[StoredFile]) -> tuple[StoredFile, ...]:
    """Every file once. Different files of the same name get a number."""
    unique: dict[str, StoredFile] = {}
    for file in files:
        name, number = file.name, 1
        while (other := unique.get(name.casefold())) is not None and not _same(file, other):
            number += 1
            stem, dot, suffix = file.name.rpartition(".")
            name = f"{stem}-{number}.{suffix}" if dot else f"{suffix}-{number}"
        unique.setdefault(name.casefold(), replace(file, name=name))
    return tuple(unique.values())


def _same(first: StoredFile, second: StoredFile) -> bool:
    return (first.digest, first.path) == (second.digest, second.path)


def _remarks(modelfile: Modelfile, manifest: Manifest, store: ModelStore) -> Iterable[str]:
    if modelfile.ignored:
        yield f"stored, but without effect: {', '.join(modelfile.ignored)}"
    if modelfile.template and is_go_template(modelfile.template):
        yield _on_go_template(manifest, store)
    for file in manifest.files:
        if file.path is not None and file.role == "weights":
            yield f"{file.path} is used in place; leave it there, or copy it into the store with --copy"


def _on_go_template(manifest: Manifest, store: ModelStore) -> str:
    weights = next((file for file in manifest.of_role("weights") if file.format == "gguf"), None)
    if weights is None or read_gguf(store.file_path(weights)).chat_template.strip():
        return "TEMPLATE in Go's language is stored and not used: the model's own template in Jinja is used"
    return (
        "TEMPLATE in Go's language is stored and not used, and the model has no template of its own: it answers like a "
        "base model; write TEMPLATE in Jinja"
    )
