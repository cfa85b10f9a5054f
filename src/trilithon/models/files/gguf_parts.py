"""The header of a GGUF that may be split: llama.cpp writes NAME-00001-of-00003.gguf and so on, and the first part has
the metadata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trilithon.errors import ModelError
from trilithon.models.files.file_names import shard_of
from trilithon.models.files.gguf_header import HeaderReader, Tensor, Value

__all__ = ["GgufHeader", "count_of", "header_of", "joined", "part_paths", "read_header"]

_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """The header of a whole model. `parts` are its files in order, one for a model that is not split. `values` are of
    the first part, `size_bytes` and `tensors` of all. The offset of a tensor is relative to its own part."""

    parts: tuple[Path, ...]
    size_bytes: int
    version: int
    values: Mapping[str, Value]
    tensors: tuple[Tensor, ...]


def read_header(path: Path) -> GgufHeader:
    """`path` may be any part. Raises ModelError, naming a part that is missing or does not fit."""
    header = _read_one(path)
    count = count_of(header.values)
    if count <= 1:
        return header
    paths = part_paths(path)
    if len(paths) != count:
        raise ModelError(
            "{path} is one of {count} parts, and its name does not say which; name all parts like "
            "{stem}-00001-of-{count:05}.gguf, or join them with: llama-gguf-split --merge FIRST_PART "
            "MODEL",
            path=path,
            count=count,
            stem=path.stem[:40],
        )
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ModelError(
            "{path} is one of {count} parts: {missing}{others} is missing; download it too",
            path=path,
            count=count,
            missing=missing[0],
            others=others,
        )
    return joined([header if part == path else _read_one(part) for part in paths])


def part_paths(path: Path) -> tuple[Path, ...]:
    """The paths of all parts, by the name of one; the file alone if it is not named like a part."""
    shard = shard_of(path.name) if path.suffix.lower() == ".gguf" else None
    if shard is None or not 1 <= shard.number <= shard.count:
        return (path,)
    names = (f"{shard.base}-{number:05}-of-{shard.count:05}" for number in range(1, shard.count + 1))
    return tuple(path.with_name(name + path.suffix) for name in names)


def joined(parts: Sequence[GgufHeader]) -> GgufHeader:
    """Of all parts of a model, in order. Raises ModelError for parts that do not belong together."""
    first = parts[0]
    for number, part in enumerate(parts):
        if (count_of(part.values), part.values.get(_NUMBER)) != (len(parts), number):
            raise ModelError(
                "{path} is not part {number} of {count}; download it again",
                path=part.parts[0],
                number=number + 1,
                count=len(parts),
            )
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    expected = first.values.get(_TENSORS, len(tensors))
    if len(tensors) != expected or len({tensor.name for tensor in tensors}) < len(tensors):
        raise ModelError(
            "the {count} parts of {path} do not belong together: they have {tensors} tensors and not "
            "{expected} different ones; download them again",
            count=len(parts),
            path=first.parts[0],
            tensors=len(tensors),
            expected=expected,
        )
    return GgufHeader(
        parts=tuple(part.parts[0] for part in parts),
        size_bytes=sum(part.size_bytes for part in parts),
        version=first.version,
        values=first.values,
        tensors=tensors,
    )


def _read_one(path: Path) -> GgufHeader:
    with HeaderReader(path) as reader:
        return header_of(reader)


def header_of(reader: HeaderReader) -> GgufHeader:
    """The header of one part, from a reader that was started. Raises ModelError."""
    path, values = reader.path, reader.values()
    alignment = values.get("general.alignment")
    if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 1:
        alignment = 32
    if alignment & (alignment - 1) or alignment > 1 << 20:
        raise ModelError(
            "{path} is damaged: its alignment is {alignment}; download it again", path=path, alignment=alignment
        )
    tensors = reader.tensors(alignment)
    return GgufHeader(
        parts=(path,), size_bytes=reader.size_bytes, version=reader.version, values=values, tensors=tensors
    )


def count_of(values: Mapping[str, Value]) -> int:
    """Of how many parts the model is, by the header of one."""
    count = values.get(_COUNT, 1)
    return count if isinstance(count, int) and not isinstance(count, bool) else 1
