"""What a user means by MODEL: a file or a model of the store (exact, from the tensor table), a model on a server, or a
name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trilithon.errors import DownloadError, ModelError, UserError
from trilithon.estimate.answer import Subject
from trilithon.estimate.recommend import candidates
from trilithon.estimate.sizes import known_sizes, short_name, size_named
from trilithon.estimate.subjects.file_sizes import subject_of_file
from trilithon.estimate.subjects.remote import remote_subject
from trilithon.language import Message
from trilithon.models.fetch.choose import Target
from trilithon.models.files.gguf import read_gguf
from trilithon.models.names import ModelPath, Reference, parse_reference
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import find_reference, openable_path, weights_of
from trilithon.suggestions import alternatives

__all__ = ["subject_named", "subject_of"]


def subject_of(reference: str, store: ModelStore, target: Callable[[], Target] | None = None) -> Subject:
    """`target` is the board that a file on a server is chosen for; without it, no server is asked. A name without tag
    and host that says its size is not asked for either. Raises UserError for a name of which no number of parameters is
    known, and ModelError for a broken file."""
    path, converted = _path(reference, store)
    if path is not None and _is_gguf(path):
        return subject_of_file(reference, read_gguf(path))
    size, remark, problem = size_named(reference), None, None
    wanted = None if path is not None or target is None else _on_a_server(reference, named=size is not None)
    if wanted is not None and target is not None:
        try:
            return remote_subject(wanted, target)
        except (ModelError, DownloadError) as error:
            remark = Message("{problem}: sizes by the name", problem=str(error))
            problem = error
    if size is None and isinstance(problem, ModelError):
        raise problem
    if size is None:
        raise _unknown(reference, problem) from problem
    if converted:
        return Subject(reference=reference, size=size, converted=True, sizes_from=remark)
    return replace(subject_named(reference), sizes_from=remark)


def subject_named(name: str) -> Subject:
    """By the name alone: no file is opened, and no server is asked. Raises UserError for one that says no size."""
    size = size_named(name)
    if size is None:
        raise _unknown(name)
    return Subject(reference=_pulled(name), size=size)


def _pulled(name: str) -> str:
    """What `pull` fetches by this name: itself, or the recommended model of that name in another spelling."""
    pulled = {row.pull for row in candidates().values()}
    if any(sign in name for sign in ":/"):
        return name.lower() if name.lower() in pulled else name
    spellings = {_spelling(row.name): row.pull for row in candidates().values()}
    return spellings.get(_spelling(name), "MODEL.gguf")


def _spelling(name: str) -> str:
    return short_name(name).replace("-", "")


def _unknown(name: str, problem: Exception | None = None) -> UserError:
    return UserError(
        "{problem}nothing is known of {model!r}; write its size in the name (my-model-3b), or a GGUF file; {fix}",
        problem=Message("{problem}; without it ", problem=problem) if problem else "",
        model=name[:80],
        fix=alternatives(name.replace(":", "-"), sorted({size.key for size in known_sizes().values()})),
    )


def _on_a_server(reference: str, *, named: bool) -> Reference | None:
    """What to ask a server about; None for a plain word such as qwen2.5-1.5b, unless it says nothing else."""
    if named and not any(sign in reference for sign in ":/"):
        return None
    try:
        parsed = parse_reference(reference)
    except ModelError:
        return None
    return None if isinstance(parsed, ModelPath) else parsed


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        raise ModelError("there is no file {path}; check the name, or name a model with its size", path=path)
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _path(reference: str, store: ModelStore) -> tuple[Path | None, bool]:
    """The file to read sizes from, and whether the model is only there as a file for RKLLM."""
    try:
        model = find_reference(reference, store)
    except ModelError:
        if Path(reference).suffix in (".gguf", ".rkllm") and _on_a_server(reference, named=False) is None:
            raise
        return None, False
    if isinstance(model, Path):
        return model, model.suffix.lower() == ".rkllm"
    files = [file for file in weights_of(model) if file.format == "gguf" and file not in store.missing(model)]
    if not files:
        return None, any(file.format != "gguf" for file in weights_of(model))
    return openable_path(model, files[0], store), False
