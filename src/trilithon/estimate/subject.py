"""What a user means by MODEL: a file or a model of the store (exact, from the tensor table), or a name."""

from pathlib import Path

from trilithon.errors import ModelError, UserError
from trilithon.estimate.answer import Subject
from trilithon.estimate.recommend import candidates
from trilithon.estimate.sizes import ModelSize, known_sizes, size_named, weights_of_file
from trilithon.models.files.gguf import GgufFacts, kv_bytes_per_position, read_gguf
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import find_reference, openable_path, weights_of

__all__ = ["subject_of"]

_KV_BYTES = 2


def subject_of(reference: str, store: ModelStore) -> Subject:
    """Raises UserError for a name of which no number of parameters is known, and ModelError for a broken file."""
    path, converted = _path(reference, store)
    if path is not None and _is_gguf(path):
        return _of_file(reference, read_gguf(path))
    size = size_named(reference)
    if size is None:
        raise UserError(
            f"nothing is known of {reference[:80]!r}; write its size in the name (my-model-3b), a GGUF file, "
            f"or one of: {', '.join(sorted({size.key for size in known_sizes().values()}))}"
        )
    names = (row.pull for row in candidates().values() if reference.lower() in (row.name, row.pull))
    return Subject(reference=reference if converted else next(names, reference), size=size, converted=converted)


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        raise ModelError(f"there is no file {path}; check the name, or name a model with its size")
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _path(reference: str, store: ModelStore) -> tuple[Path | None, bool]:
    """The file to read sizes from, and whether the model is only there as a file for RKLLM."""
    try:
        model = find_reference(reference, store)
    except ModelError:
        if Path(reference).suffix in (".gguf", ".rkllm"):
            raise
        return None, False
    if isinstance(model, Path):
        return model, model.suffix.lower() == ".rkllm"
    files = [file for file in weights_of(model) if file.format == "gguf" and file not in store.missing(model)]
    if not files:
        return None, any(file.format != "gguf" for file in weights_of(model))
    return openable_path(model, files[0], store), False


def _of_file(reference: str, facts: GgufFacts) -> Subject:
    """The sizes of a GGUF, where its header is exact and the table of models is not needed."""
    weights = weights_of_file(facts)
    if weights.body <= 0:
        raise ModelError(f"{reference} holds no layers; name the file with the model's weights")
    named = size_named(facts.name) if facts.name else None
    head = (facts.vocabulary or 0) * (facts.embedding or 0)
    tied = all(tensor.name != "output.weight" for tensor in facts.tensors)
    body = facts.parameters - head * (1 if tied else 2)
    read = weights.body / max(weights.held - weights.head * (1 if tied else 2), 1.0)
    same = named is not None and abs(named.parameters / facts.parameters - 1) < 0.05
    size = ModelSize(
        key=named.key if named is not None and same else facts.name.lower() or Path(reference).stem,
        parameters=float(facts.parameters),
        layers=max(facts.layers, 1),
        embedding=facts.embedding or 1,
        vocabulary=facts.vocabulary or 1,
        kv=kv_bytes_per_position(facts) // _KV_BYTES // max(facts.layers, 1),
        active=body * read if facts.experts else None,
        tied=tied,
        form=named.form if named is not None and same else "",
        window=facts.sliding_window,
        window_layers=sum(facts.windowed),
    )
    return Subject(reference=reference, size=size, weights=weights, quantization=facts.quantization)
