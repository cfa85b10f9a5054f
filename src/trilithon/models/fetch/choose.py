"""Choose the files of a repository that suit a board best, and say why in one sentence. Nothing is fetched here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from trilithon.board.chips import platform_of, platforms, target_names
from trilithon.errors import ModelError
from trilithon.language import Message
from trilithon.models.files.file_names import FileName, chip_of, quantization_of, read_file_name
from trilithon.models.files.quantizations import PREFERRED, projector_rank, quantization_rank
from trilithon.suggestions import alternatives
from trilithon.units import format_bytes

__all__ = ["FileChoice", "Offer", "Target", "choose_files"]

_NPU_GGUF = "Q8_0"
_MEMORY_SHARE = 0.7  # the rest is for the KV cache and for other programs
_NPU_COPIES = 2  # the file in memory, and its matrices in the layout of the NPU
_MOST_NAMED = 8
_KINDS = {"adapter": "adapters", "draft": "draft heads", "projector": "projectors"}


@dataclass(frozen=True, slots=True)
class Offer:
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The board that a model is fetched for. `chip` is its name ("RK3588S", "unknown"), `memory_bytes` None if unknown;
    `npu_gguf` means that an installed engine runs GGUF files on the NPU. `quantization` is what the user asked for, or
    the name of a file; `chip_by_name` means that the user named the chip."""

    chip: str
    memory_bytes: int | None = None
    npu_gguf: bool = False
    quantization: str = ""
    chip_by_name: bool = False

    @property
    def platform(self) -> str:
        return platform_of(self.chip)

    @property
    def room_bytes(self) -> float:
        return float("inf") if self.memory_bytes is None else self.memory_bytes * _MEMORY_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChoice:
    """`weights` are all shards of one model, in order; `others` belong to them. `why` is one sentence."""

    weights: tuple[FileName, ...]
    others: tuple[FileName, ...]
    why: str

    @property
    def converted(self) -> bool:
        return self.weights[0].converted


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model: one file, or all its shards."""

    files: tuple[FileName, ...]
    size_bytes: int

    @property
    def first(self) -> FileName:
        return self.files[0]


def choose_files(offers: Sequence[Offer], target: Target, *, repository: str = "") -> FileChoice:
    """Choose among the files of a repository, whose name may say the chip that all files are for. Raises ModelError
    when none suits, with what there is."""
    paths = sorted(offer.path for offer in offers)
    names = [_with_chip(read_file_name(path), repository) for path in paths]
    sizes = {offer.path: offer.size_bytes for offer in offers}
    candidates = _candidates(names, sizes)
    if not candidates:
        raise ModelError(_nothing(names, repository))
    best, why = _best(candidates, target, repository)
    return FileChoice(weights=best.files, others=_companions(names, best.first), why=why)


def _with_chip(name: FileName, repository: str) -> FileName:
    if name.chip or not name.converted:
        return name
    return replace(name, chip=chip_of(repository))


def _candidates(names: Sequence[FileName], sizes: dict[str, int]) -> list[_Candidate]:
    """The models whose shards are complete."""
    groups: dict[tuple[str, int], list[FileName]] = {}
    for name in names:
        if name.kind == "weights":
            groups.setdefault((name.stem, name.shard[1] if name.shard else 0), []).append(name)
    complete = []
    for (_, count), files in groups.items():
        numbers = sorted(name.shard[0] for name in files if name.shard)
        if count == 0:
            complete += [_Candidate((name,), sizes[name.path]) for name in files]
        elif numbers == list(range(1, count + 1)):
            ordered = sorted(files, key=lambda name: name.shard or (0, 0))
            complete.append(_Candidate(tuple(ordered), sum(sizes[name.path] for name in files)))
    return complete


def _best(candidates: Sequence[_Candidate], target: Target, repository: str) -> tuple[_Candidate, str]:
    if by_name := _named(candidates, target.quantization):
        return by_name, f"{by_name.first.name}: as requested"
    if target.chip_by_name and not target.platform:
        fix = alternatives(target.chip, target_names())
        raise ModelError(Message("unknown chip {chip!r}; {fix}", chip=target.chip[:40], fix=fix))
    suitable = _of_quantization(candidates, target)
    suitable = _of_platform(suitable, target, repository)
    converted = any(candidate.first.converted for candidate in suitable)
    suitable = [candidate for candidate in suitable if candidate.first.converted == converted]
    fitting = [candidate for candidate in suitable if candidate.size_bytes <= target.room_bytes]
    rank = _converted_rank if converted else _gguf_rank
    if fitting:
        chosen = min(fitting, key=lambda candidate: rank(candidate, target))
    else:
        chosen = min(suitable, key=lambda candidate: (candidate.size_bytes, *rank(candidate, target)))
    return chosen, _sentence(chosen, suitable, target, fits=bool(fitting))


def _named(candidates: Sequence[_Candidate], text: str) -> _Candidate | None:
    """The candidate whose file has that name, with or without folder and suffix, in any case."""
    for candidate in candidates:
        path = candidate.first.path.casefold()
        stem = PurePosixPath(candidate.first.stem).name.casefold()
        if text.casefold() in (path, PurePosixPath(path).name, PurePosixPath(path).stem, stem):
            return candidate
    return None


def _of_quantization(candidates: Sequence[_Candidate], target: Target) -> Sequence[_Candidate]:
    if not target.quantization:
        return candidates
    asked = quantization_of(target.quantization) or target.quantization
    by_name = [(candidate.first.quantization.casefold(), candidate) for candidate in candidates]
    matching = [candidate for name, candidate in by_name if name == asked.casefold()]
    if not matching:  # Q4_K for any Q4_K_…, w4a16 for any w4a16_g…
        matching = [candidate for name, candidate in by_name if name.startswith(f"{asked.casefold()}_")]
    if not matching and asked == "F16":  # RKLLM's converter calls it fp16
        matching = [candidate for name, candidate in by_name if name == "fp16"]
    if not matching:
        raise ModelError(
            "there is no {quantization} among its files; there are {listed}",
            quantization=target.quantization[:80],
            listed=_listed(candidates),
        )
    return matching


def _of_platform(candidates: Sequence[_Candidate], target: Target, repository: str) -> Sequence[_Candidate]:
    """RKLLM files for the chip of the board if there are any, otherwise GGUF files, which run anywhere."""
    platform = target.platform
    converted = [candidate for candidate in candidates if candidate.first.converted]
    matching = [candidate for candidate in converted if candidate.first.chip in (platform, "")]
    matching = matching if platform in platforms() else []
    named = [candidate for candidate in matching if candidate.first.chip] or matching
    anywhere = [candidate for candidate in candidates if not candidate.first.converted]
    if named or anywhere:
        return named or anywhere
    chips = ", ".join(sorted({candidate.first.chip for candidate in converted} - {""})) or "unnamed chips"
    here = platform or "a machine without such an NPU"
    raise ModelError(
        "{repository} has files for {chips} only, and this is {here}; look for a GGUF repository, or "
        "fetch one for another board: --chip rk3588",
        repository=repository or "it",
        chips=chips,
        here=here,
    )


def _converted_rank(candidate: _Candidate, target: Target) -> tuple[object, ...]:
    """Plain conversions first: a hybrid ratio adds slower groups, and optimisation may slow down decode."""
    name = candidate.first
    return (
        _place(platforms()[target.platform].quantizations, name.quantization),
        name.hybrid,
        name.optimisation,
        *_last_ranks(name),
    )


def _gguf_rank(candidate: _Candidate, target: Target) -> tuple[object, ...]:
    name = candidate.first
    on_npu = target.npu_gguf and name.quantization == _NPU_GGUF
    fits_npu = candidate.size_bytes * _NPU_COPIES <= target.room_bytes
    return not (on_npu and fits_npu), quantization_rank(name.quantization), *_last_ranks(name)


def _last_ranks(name: FileName) -> tuple[object, ...]:
    return len(name.name), name.path


def _place(order: Sequence[str], quantization: str) -> int:
    return order.index(quantization) if quantization in order else len(order)


def _companions(names: Sequence[FileName], weights: FileName) -> tuple[FileName, ...]:
    """One projector for a GGUF; the vision encoder for the same chip for an RKLLM file."""
    if weights.format == "gguf":
        projectors = [name for name in names if name.kind == "projector" and not name.shard]
        projectors.sort(key=lambda name: (projector_rank(name.quantization), name.path))
        return tuple(projectors[:1])
    encoders = [name for name in names if name.kind == "vision" and name.chip in (weights.chip, "")]
    encoders.sort(key=lambda name: (not name.chip, *_last_ranks(name)))
    return tuple(encoders[:1])


def _sentence(chosen: _Candidate, suitable: Sequence[_Candidate], target: Target, *, fits: bool) -> str:
    name = chosen.first
    what = name.quantization or name.name
    if not fits:
        memory = format_bytes(target.memory_bytes or 0)
        return f"{what}: the smallest, but its {format_bytes(chosen.size_bytes)} leave no room in {memory} of memory"
    if target.quantization:
        return f"{what}: as requested"
    if len(suitable) == 1:
        return f"{what}: the only one" + (f" for {target.platform}" if name.converted else "")
    if name.converted:
        order = platforms()[target.platform].quantizations
        best = what == order[0]
        reason = (
            f"what {target.platform} computes best" if best else f"the best for {target.platform} among {len(suitable)}"
        )
        return f"{what}: {reason}"
    if target.npu_gguf and what == _NPU_GGUF:
        return f"{what}: the NPU runs it, and runs smaller ones mostly on the CPU"
    if what == PREFERRED[0]:
        return f"{what}: small, with a quality near the original"
    reason = f"the nearest to {PREFERRED[0]}" + ("" if target.memory_bytes is None else " that fits the memory")
    return f"{what}: {reason} among {len(suitable)}"


def _listed(candidates: Sequence[_Candidate]) -> str:
    names = list(dict.fromkeys(_label(candidate.first) for candidate in candidates))
    return ", ".join(names[:_MOST_NAMED]) + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )


def _label(name: FileName) -> str:
    return " ".join(part for part in (name.quantization or name.name, f"for {name.chip}" if name.chip else "") if part)


def _nothing(names: Sequence[FileName], repository: str) -> str:
    where = repository or "it"
    if any(name.kind == "weights" for name in names):
        return f"{where} lacks shards of its model; choose another repository, or name a single file"
    if any(name.path.endswith(".safetensors") for name in names):
        return f"{where} has no GGUF or RKLLM file, only safetensors; look for a GGUF conversion of it"
    if kinds := {_KINDS[name.kind] for name in names if name.kind in _KINDS and name.format == "gguf"}:
        return f"{where} has only {' and '.join(sorted(kinds))}, which no engine runs alone; pull the model of them"
    return f"{where} has no GGUF or RKLLM file; look for a conversion of it"
