"""The output of `trilithon show` for a model or a file."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trilithon.board.snapshot import read_board
from trilithon.cli.models.fit import fit_json, fit_lines
from trilithon.cli.models.rows import aligned, day, model_row, place_of
from trilithon.cli.output import shown
from trilithon.errors import ModelError
from trilithon.language import Message
from trilithon.models.create.modelfile import to_modelfile
from trilithon.models.files.gguf_header import HeaderReader
from trilithon.models.files.hashing import known_sha256
from trilithon.models.files.kinds import FileKind, read_kind
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.models.store.manifest import Manifest, StoredFile
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import read_weights, weights_of
from trilithon.results.plan_list import KnownPlan, known_plan
from trilithon.settings import Configuration
from trilithon.units import format_bytes

__all__ = ["modelfile", "show_json", "show_lines"]

_NOTE, _MISSING = Message("note"), Message("missing")
_KINDS = {
    "chat": Message("chat model"),
    "base": Message("base model (completes text): it has no chat template"),
    "embedding": Message("embedding model (makes vectors of texts)"),
    "reranker": Message("reranking model (ranks texts)"),
}


def show_lines(reference: Manifest | Path, store: ModelStore, configuration: Configuration) -> list[str]:
    """Properties, files, settings, memory and placements. Raises ModelError for a file that is not a model."""
    return (
        _file_lines(reference, configuration)
        if isinstance(reference, Path)
        else _lines(reference, store, configuration)
    )


def show_json(reference: Manifest | Path, store: ModelStore, configuration: Configuration) -> dict[str, Any]:
    """The same for `--json`. Weights have `facts` from their header and `fit` (memory and placements), or a `problem`
    if they cannot be read. Raises ModelError for a file that is not a model."""
    return (
        _file_json(reference, configuration) if isinstance(reference, Path) else _json(reference, store, configuration)
    )


def modelfile(reference: Manifest | Path) -> str:
    """A Modelfile for `trilithon create`. Raises ModelError for a file that is not a model."""
    return f"FROM {read_model_file(reference, None).path}\n" if isinstance(reference, Path) else to_modelfile(reference)


def _lines(manifest: Manifest, store: ModelStore, configuration: Configuration) -> list[str]:
    lines = [str(manifest.name), *_about(manifest, store), "", shown(Message("files"))]
    lines += [f"  {line}" for line in aligned([_file_cells(file, store) for file in manifest.files])]
    settings = [(name, str(value)) for name, value in sorted(manifest.parameters.items())]
    settings += sorted(manifest.placement_options.items())
    settings += [
        (shown(name), _first_line(text))
        for name, text in ((Message("system"), manifest.system), (Message("template"), manifest.template))
    ]
    settings += [(shown(Message("messages")), str(len(manifest.messages)))] * bool(manifest.messages)
    if any(value for _, value in settings):
        lines += [
            "",
            shown(Message("settings")),
            *(f"  {line}" for line in aligned([pair for pair in settings if pair[1]])),
        ]
    present = [file for file in weights_of(manifest) if file not in store.missing(manifest)]
    for file in present:
        lines += ["", *([file.name, ""] if len(present) > 1 else [])]
        lines += _fit(manifest, file, store, configuration)
    return lines


def _json(manifest: Manifest, store: ModelStore, configuration: Configuration) -> dict[str, Any]:
    files = []
    for file in manifest.files:
        row = asdict(file) | {"path": str(file.path) if file.path else None, "place": place_of(file, store)}
        if file in weights_of(manifest):
            try:
                read = _read(manifest, file, store)
                known = _plan(store.file_path(file), file.digest, str(manifest.name), configuration)
                row |= {"facts": dict(_facts(read)), "fit": fit_json(read, configuration)}
                row["plan"] = known.as_json() if known else None
            except ModelError as error:
                row["problem"] = str(error)
        files.append(row)
    content = asdict(manifest) | {"name": str(manifest.name), "files": files, "parameters": dict(manifest.parameters)}
    return asdict(model_row(manifest, store.root_of(manifest.name), store)) | content


def _file_lines(path: Path, configuration: Configuration) -> list[str]:
    if (kind := _other_kind(path)) is not None:
        size = format_bytes(path.stat().st_size)
        lines = _in_columns([(Message("kind"), kind.label), *_own_facts(path), (Message("size"), size)])
        return [str(path), *lines, "", shown(Message("runs nowhere: {reason}", reason=kind.problem))]
    file = read_model_file(path, None)
    pairs = [*_facts(file), (Message("size"), format_bytes(file.size_bytes))]
    known = _plan(file.path, "", str(path), configuration)
    return [str(file.path), *_in_columns(pairs), "", *fit_lines(file, configuration), *_plan_lines(known)]


def _file_json(path: Path, configuration: Configuration) -> dict[str, Any]:
    if (kind := _other_kind(path)) is not None:
        facts = {"kind": kind.label, **dict(_own_facts(path))}
        size = path.stat().st_size
        return {"path": str(path), "kind": kind.name, "size_bytes": size, "facts": facts, "problem": kind.problem}
    file = read_model_file(path, None)
    about = {"path": str(file.path), "kind": file.kind, "size_bytes": file.size_bytes, "facts": dict(_facts(file))}
    known = _plan(file.path, "", str(path), configuration)
    return about | {"fit": fit_json(file, configuration), "plan": known.as_json() if known else None}


def _plan_lines(known: KnownPlan | None) -> list[str]:
    return ["", shown(Message("plan: {text}", text=known.text))] if known else []


def _in_columns(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"  {line}" for line in aligned([(shown(name), shown(text)) for name, text in pairs])]


def _plan(path: Path, digest: str, name: str, configuration: Configuration) -> KnownPlan | None:
    """The plan of a file; without a known digest it has none that would be used yet."""
    return known_plan(digest or known_sha256(path, configuration.cache), name, read_board(), configuration)


def _other_kind(path: Path) -> FileKind | None:
    """What a GGUF is that is no model; None for a model, and for other files."""
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except OSError:  # reported when it is read as a model
        return None
    kind = read_kind(path) if is_gguf else None
    return kind if kind is not None and kind.problem else None


def _own_facts(path: Path) -> list[tuple[str, str]]:
    """What the header of such a file says of itself and of the model that it belongs to."""
    with HeaderReader(path) as header:
        values = header.values()
    keys = ("general.name", "general.architecture", "adapter.type", "clip.projector_type", "controlvector.model_hint")
    stated = [(key.rpartition(".")[2].replace("_", " "), values.get(key)) for key in keys]
    return [(name, text) for name, text in stated if isinstance(text, str) and text]


def _read(manifest: Manifest, file: StoredFile, store: ModelStore) -> ModelFile:
    return read_weights(manifest, file, store, None)


def _fit(manifest: Manifest, file: StoredFile, store: ModelStore, configuration: Configuration) -> list[str]:
    try:
        lines = fit_lines(_read(manifest, file, store), configuration)
    except ModelError as error:
        return [shown(Message("cannot run: {error}", error=error))]
    known = _plan(store.file_path(file), file.digest, str(manifest.name), configuration)
    return [*lines, *_plan_lines(known)]


def _about(manifest: Manifest, store: ModelStore) -> list[str]:
    complete = not store.missing(manifest)
    try:
        facts = [fact for file in weights_of(manifest)[:1] for fact in _facts(_read(manifest, file, store))]
    except ModelError as error:
        facts = [(Message("problem"), error.args[0])]
    pairs = [
        *facts,
        (Message("size"), format_bytes(manifest.size_bytes)),
        (Message("from"), manifest.source),
        (Message("since"), day(manifest.created)),
    ]
    if manifest.synthetic:
        pairs.append((_NOTE, Message("synthetic: random weights, for measuring speed and nothing else")))
    if manifest.adopted:
        theirs = Message("belongs to another program: used in place, never changed")
        ours = Message("has files outside the store: used in place, never changed")
        pairs.append((_NOTE, theirs if store.root_of(manifest.name) is None else ours))
    if not complete:
        missing = ", ".join(file.name for file in store.missing(manifest))
        note = Message("incomplete, {files} is missing: trilithon pull {name}", files=missing, name=manifest.name)
        pairs.append((_NOTE, note))
    return _in_columns(pairs)


def _facts(file: ModelFile) -> list[tuple[str, str]]:
    """The properties in the header, as text for people."""
    context = ""
    if file.context_train and file.context_limit:
        context = Message("{count} tokens at most", count=file.context_train)
    elif file.context_train:
        context = _tokens(file.context_train)
    draft = Message("for speculative decoding: spec=draft-mtp")
    pairs: list[tuple[str, str]] = [
        (Message("architecture"), file.architecture),
        (Message("kind"), _KINDS[file.kind]),
        (Message("parameters"), _count(file.parameters) if file.parameters else ""),
        (Message("quantisation"), file.quantization),
        (Message("context"), context),
        (Message("vocabulary"), _tokens(file.vocabulary) if file.vocabulary else ""),
        (Message("draft layers"), draft if file.draft_layers else ""),
        (Message("can"), ", ".join(sorted(file.capabilities))),
        (Message("made for"), file.target_platform or ""),
        (Message("NPU cores"), str(file.target_cores or "")),
        (Message("converted by"), f"rkllm-toolkit {file.toolkit}" if file.toolkit else ""),
    ]
    return [pair for pair in pairs if pair[1]]


def _file_cells(file: StoredFile, store: ModelStore) -> tuple[str, ...]:
    place = place_of(file, store)
    where = place and (place if file.path else "")
    kind = " ".join(filter(None, (file.quantization, file.target_platform)))
    return file.role, file.name, shown(format_bytes(file.size_bytes)), kind, where if place else shown(_MISSING)


def _first_line(text: str) -> str:
    first, _, rest = text.strip().partition("\n")
    return first[:70] + " …" if rest or len(first) > 70 else first


def _tokens(count: int) -> Message:
    return Message("{count} token", plural="{count} tokens", count=count)


def _count(number: int) -> str:
    """ "0.494 billion", "268 million"."""
    if number >= 1e9:
        return Message("{count:.3g} billion", count=number / 1e9)
    return Message("{count:.3g} million", count=number / 1e6)
