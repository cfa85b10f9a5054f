"""A model made after a Modelfile: the files that FROM names, where they lie, and what the other commands say."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.adopt.bundles import bundles, files_below
from trilithon.models.adopt.scan_root import ScanRoot, stored
from trilithon.models.create.modelfile import Modelfile
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.gguf_header import HeaderReader
from trilithon.models.files.hashing import Progress
from trilithon.models.files.prompt_form import GO_TEMPLATE, JINJA_TEMPLATE, is_go_template
from trilithon.models.files.rkllm import read_rkllm
from trilithon.models.names import ModelName, ModelPath, ModelUrl, parse_reference
from trilithon.models.store.manifest import FileFormat, Manifest, Role, StoredFile, now
from trilithon.models.store.model_store import ModelStore

__all__ = ["Created", "create"]

_TENSORS = (".safetensors", ".bin", ".pth")


@dataclass(frozen=True, slots=True)
class Created:
    """The manifest, not yet in the store; `remarks` are what the user should know, one line each."""

    manifest: Manifest
    remarks: tuple[str, ...]


def create(
    name: ModelName,
    said: Modelfile,
    folder: Path,
    store: ModelStore,
    find: Callable[[str], Manifest],
    *,
    copy: bool = False,
    progress: Progress | None = None,
) -> Created:
    """`folder` is where the Modelfile lies, for paths in it; `find` gives a model by its name, or raises ModelError.

    Files of this machine are used where they lie, unless `copy`. What FROM names passes on all that the Modelfile
    leaves unsaid. Raises ModelError for what is not there or does not go together.
    """
    bases = [_base(source, folder, find) for source in said.sources]
    adapters = [_adapter(_path(each, folder)) for each in said.adapters]
    files = [*(file for base in bases for file in base.files), *adapters]
    if copy:
        files = [_copied(file, store, progress) for file in files]
    template, files = _with_template(said, bases, files, store)
    licenses = [_text_file("license", "license.txt", text, store) for text in said.licenses]
    manifest = Manifest(
        name=name,
        files=_with_own_names([*files, *licenses]),
        source=f"created from {', '.join(said.sources)}",
        created=now(),
        parameters={key: value for base in bases for key, value in base.parameters.items()} | dict(said.parameters),
        system=_said(said.system, [base.system for base in bases]),
        template=template,
        messages=said.messages or next((base.messages for base in bases if base.messages), ()),
        synthetic=any(base.synthetic for base in bases),
    )
    if not manifest.of_role("weights"):
        raise ModelError(f"FROM {', '.join(said.sources)} brings no weights; name the model itself too")
    return Created(manifest, tuple(_remarks(said, manifest, store)))


# FROM


def _base(source: str, folder: Path, find: Callable[[str], Manifest]) -> Manifest:
    path = _path(source, folder)
    if os.path.lexists(path):
        return _local(path)
    reference = parse_reference(source)
    if isinstance(reference, ModelPath):
        raise ModelError(f"FROM {source[:80]}: there is no {path}; correct the path")
    if isinstance(reference, ModelUrl):
        raise ModelError(f"FROM {source[:80]}: fetch it first, and name it then: trilithon pull {source[:80]}")
    return find(source)


def _path(text: str, folder: Path) -> Path:
    """Relative to the Modelfile, as for Ollama; without `..`, for the folder that it goes through may be gone one
    day."""
    try:
        path = folder / Path(text).expanduser()
    except RuntimeError:
        raise ModelError(f"{text[:80]}: no such user's home; write the path in full") from None
    return Path(os.path.realpath(path)) if path.name == ".." else Path(os.path.realpath(path.parent)) / path.name


def _local(path: Path) -> Manifest:
    """A file with what belongs to it, or the one model in a folder, as a model without a name yet."""
    folder = path if path.is_dir() else path.parent
    scan_root = _anywhere(folder)
    paths = [Path(entry.path) for entry in scan_root.entries(folder) if not entry.is_dir(follow_symlinks=False)]
    files = [file for each in paths if (file := scan_root.file(each))]
    stems = [each.path.stem for each in files if each.path.suffix.lower() == ".rkllm"]
    found = list(bundles(scan_root, files, files_below(scan_root, folder, ["tokenizer", *stems]) if stems else ()))
    if path.is_file():
        own = next((each for each in found if path in [file.path for file in each.files]), None)
        return _nameless(own.files if own else (_single(path),), path)
    if len(found) == 1:
        return _nameless(found[0].files, path)
    if not found and any(each.suffix in _TENSORS for each in paths):
        raise ModelError(f"{path} holds no GGUF; make one of it: trilithon convert {path} --to gguf")
    what = "holds no model" if not found else f"holds {len(found)} models"
    raise ModelError(f"{path} {what}; name one file")


def _anywhere(folder: Path) -> ScanRoot:
    """The user named it, so that links in it may lead where they do."""
    return ScanRoot(folder, "folder", within=Path("/"))


def _single(path: Path) -> StoredFile:
    """A file whose name says nothing, or says that it is no weights: its header tells what it is."""
    with HeaderReader(path) as header:
        values = header.values()
    if values.get("general.type") == "adapter":
        raise ModelError(f"{path} is an adapter; name it with ADAPTER, and the model with FROM")
    return _file(path, "projector" if values.get("general.architecture") == "clip" else "weights", "gguf")


def _file(path: Path, role: Role, form: FileFormat) -> StoredFile:
    scan_root = _anywhere(path.parent)
    found = scan_root.file(path)
    if found is None:
        raise ModelError(f"{path} {scan_root.skipped[0].reason}")
    name = path.name if path.suffix.lower() == f".{form}" else f"{path.name}.{form}"
    return stored(found, role, form, name=name)


def _nameless(files: tuple[StoredFile, ...], path: Path) -> Manifest:
    """Raises ModelError for weights that are none, or not whole."""
    host, namespace, tag = ModelName.DEFAULTS
    manifest = Manifest(name=ModelName(host, namespace, "model", tag), files=files, source=str(path), created=now())
    first = next(iter(manifest.of_role("weights")), None)
    if first is None or first.path is None:
        return manifest
    if first.format != "gguf":
        read_rkllm(first.path)
        return manifest
    facts = read_gguf(first.path)
    known = [replace(each, quantization=facts.quantization) if each.role == "weights" else each for each in files]
    return replace(manifest, files=tuple(known), synthetic=facts.synthetic)


def _adapter(path: Path) -> StoredFile:
    if path.suffix.lower() in _TENSORS or path.is_dir():
        raise ModelError(f"ADAPTER {path} is no GGUF; make one of it with convert_lora_to_gguf.py of llama.cpp")
    file = _file(path, "adapter", "rkllm" if path.suffix.lower() == ".rkllm" else "gguf")
    if file.format == "gguf":
        with HeaderReader(path) as header:
            kind = header.values().get("general.type", "adapter")
        if kind != "adapter":
            raise ModelError(f"ADAPTER {path} is no adapter but a {str(kind)[:40]!r}; name it with FROM")
    return file


def _copied(file: StoredFile, store: ModelStore, progress: Progress | None) -> StoredFile:
    return file if file.path is None else replace(file, digest=store.add(file.path, progress), path=None)


# The rest


def _said(text: str | None, inherited: Iterable[str]) -> str:
    return text if text is not None else next(filter(None, inherited), "")


def _with_template(
    said: Modelfile, bases: Sequence[Manifest], files: Sequence[StoredFile], store: ModelStore
) -> tuple[str, list[StoredFile]]:
    """The Jinja template, and the files with it, for engines read it beside the weights; or with Ollama's."""
    if said.template is None:
        return _said(None, [base.template for base in bases]), list(files)
    kept = [file for file in files if file.role != "template"]
    if not said.template.strip():
        return "", kept
    if is_go_template(said.template):
        return "", [*kept, _text_file("template", GO_TEMPLATE, said.template, store)]
    return said.template, [*kept, _text_file("template", JINJA_TEMPLATE, said.template, store)]


def _text_file(role: Role, name: str, text: str, store: ModelStore) -> StoredFile:
    content = text.encode()
    return StoredFile(role=role, digest=store.add_bytes(content), size_bytes=len(content), name=name, format="text")


def _with_own_names(files: Sequence[StoredFile]) -> tuple[StoredFile, ...]:
    """The same file once; others that are called the same get a number."""
    kept: dict[str, StoredFile] = {}
    for file in files:
        name, number = file.name, 1
        while (other := kept.get(name.casefold())) is not None and not _same(file, other):
            number += 1
            stem, dot, suffix = file.name.rpartition(".")
            name = f"{stem}-{number}.{suffix}" if dot else f"{suffix}-{number}"
        kept.setdefault(name.casefold(), replace(file, name=name))
    return tuple(kept.values())


def _same(one: StoredFile, other: StoredFile) -> bool:
    return (one.digest, one.path) == (other.digest, other.path)


def _remarks(said: Modelfile, manifest: Manifest, store: ModelStore) -> Iterable[str]:
    if said.not_honoured:
        yield f"kept, but nothing here obeys it yet: {', '.join(said.not_honoured)}"
    if said.template and is_go_template(said.template):
        yield _on_go_template(manifest, store)
    for file in manifest.files:
        if file.path is not None and file.role == "weights":
            yield f"{file.path} is used where it lies; leave it there, or copy it into the store with --copy"


def _on_go_template(manifest: Manifest, store: ModelStore) -> str:
    weights = next((file for file in manifest.of_role("weights") if file.format == "gguf"), None)
    if weights is None or read_gguf(store.file_path(weights)).chat_template.strip():
        return "TEMPLATE is in Go's language, which is kept and not run: the model's own template in Jinja is used"
    return (
        "TEMPLATE is in Go's language, which is kept and not run, and the model has no template of its own: it "
        "answers like a base model; write TEMPLATE in Jinja"
    )
