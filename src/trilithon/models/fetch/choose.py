"""Which files of a repository suit this board, and why: thirty of one model, and one that is right.

Pure: what is offered and what the board is come in, the choice and a sentence go out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from trilithon.board.chips import platform_of, platforms, target_names
from trilithon.errors import ModelError
from trilithon.models.files.file_names import FileName, chip_of, quantization_of, read_file_name
from trilithon.models.files.quantizations import PREFERRED, projector_rank, quantization_rank
from trilithon.units import format_bytes

__all__ = ["FileChoice", "Offer", "Target", "choose_files"]

_NPU_GGUF = "Q8_0"
_MEMORY_SHARE = 0.7  # the rest is for the KV cache, and for what else runs there
_NPU_COPIES = 2  # the file in memory, and its matrices once more in the NPU's own layout
_MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class Offer:
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`chip` as the board has it ("RK3588S", "unknown"); `npu_gguf`: an engine here computes GGUF files on the NPU.
    `quantization` (or the name of a file) and `chip_by_name` are the user's word."""

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
    """`weights` are all shards of one model, in order. `why` is one sentence."""

    weights: tuple[FileName, ...]
    others: tuple[FileName, ...]
    why: str

    @property
    def converted(self) -> bool:
        return self.weights[0].converted


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One model: a file, or all its shards."""

    files: tuple[FileName, ...]
    size_bytes: int

    @property
    def first(self) -> FileName:
        return self.files[0]


def choose_files(offers: Sequence[Offer], wanted: Target, *, repository: str = "") -> FileChoice:
    """`repository` is its name, which may say the chip that all files are for. Raises ModelError when none suits,
    naming what there is."""
    names = [_with_chip(read_file_name(offer.path), repository) for offer in sorted(offers, key=lambda each: each.path)]
    sizes = {offer.path: offer.size_bytes for offer in offers}
    candidates = _candidates(names, sizes)
    if not candidates:
        raise ModelError(_nothing(names, repository))
    best, why = _best(candidates, wanted, repository)
    return FileChoice(weights=best.files, others=_companions(names, best.first), why=why)


def _with_chip(name: FileName, repository: str) -> FileName:
    if name.chip or not name.converted:
        return name
    return replace(name, chip=chip_of(repository))


def _candidates(names: Sequence[FileName], sizes: dict[str, int]) -> list[_Candidate]:
    """Models of which every shard is there."""
    groups: dict[tuple[str, int], list[FileName]] = {}
    for name in names:
        if name.kind == "weights":
            groups.setdefault((name.stem, name.shard[1] if name.shard else 0), []).append(name)
    whole = []
    for (_, count), files in groups.items():
        numbers = sorted(name.shard[0] for name in files if name.shard)
        if count == 0:
            whole += [_Candidate((name,), sizes[name.path]) for name in files]
        elif numbers == list(range(1, count + 1)):
            ordered = sorted(files, key=lambda name: name.shard or (0, 0))
            whole.append(_Candidate(tuple(ordered), sum(sizes[name.path] for name in files)))
    return whole


def _best(candidates: Sequence[_Candidate], wanted: Target, repository: str) -> tuple[_Candidate, str]:
    if by_name := _named(candidates, wanted.quantization):
        return by_name, f"{by_name.first.name}: you named it"
    if wanted.chip_by_name and not wanted.platform:
        raise ModelError(f"unknown chip {wanted.chip[:40]}; there are {', '.join(target_names())}")
    suitable = _of_quantization(candidates, wanted)
    suitable = _of_platform(suitable, wanted, repository)
    converted = any(each.first.converted for each in suitable)
    suitable = [each for each in suitable if each.first.converted == converted]
    fitting = [each for each in suitable if each.size_bytes <= wanted.room_bytes]
    rank = _converted_rank if converted else _gguf_rank
    chosen = min(fitting or suitable, key=lambda each: (0 if fitting else each.size_bytes, *rank(each, wanted)))
    return chosen, _sentence(chosen, suitable, wanted, fits=bool(fitting))


def _named(candidates: Sequence[_Candidate], text: str) -> _Candidate | None:
    """The one whose file has that name, with or without its folder and suffix, in any case."""
    for candidate in candidates:
        path = candidate.first.path.casefold()
        stem = PurePosixPath(candidate.first.stem).name.casefold()
        if text.casefold() in (path, PurePosixPath(path).name, PurePosixPath(path).stem, stem):
            return candidate
    return None


def _of_quantization(candidates: Sequence[_Candidate], wanted: Target) -> Sequence[_Candidate]:
    if not wanted.quantization:
        return candidates
    asked = quantization_of(wanted.quantization) or wanted.quantization
    found = [each for each in candidates if asked.casefold() == each.first.quantization.casefold()]
    if not found:  # Q4_K for any Q4_K_…, w4a16 for any w4a16_g…
        found = [each for each in candidates if each.first.quantization.casefold().startswith(f"{asked.casefold()}_")]
    if not found and asked == "F16":  # which RKLLM's converter calls fp16
        found = [each for each in candidates if each.first.quantization == "fp16"]
    if not found:
        raise ModelError(f"there is no {wanted.quantization[:80]} among its files; there are {_listed(candidates)}")
    return found


def _of_platform(candidates: Sequence[_Candidate], wanted: Target, repository: str) -> Sequence[_Candidate]:
    """RKLLM files for the board's chip where there are any, otherwise GGUF files, which run anywhere."""
    platform = wanted.platform
    converted = [each for each in candidates if each.first.converted]
    own = [each for each in converted if each.first.chip in (platform, "")] if platform in platforms() else []
    sure = [each for each in own if each.first.chip] or own
    anywhere = [each for each in candidates if not each.first.converted]
    if sure or anywhere:
        return sure or anywhere
    made_for = ", ".join(sorted({each.first.chip for each in converted} - {""})) or "chips that their names do not say"
    here = wanted.platform or "a machine without such an NPU"
    raise ModelError(
        f"{repository or 'it'} has files for {made_for} alone, and this is {here}; "
        "look for a GGUF repository, or fetch one for another board: --chip rk3588"
    )


def _converted_rank(candidate: _Candidate, wanted: Target) -> tuple[object, ...]:
    """Plain conversions first: a hybrid ratio mixes in slower groups, and optimisation may slow decoding."""
    name = candidate.first
    return (
        _place(platforms()[wanted.platform].quantizations, name.quantization),
        name.hybrid,
        name.optimisation,
        *_last_ranks(name),
    )


def _gguf_rank(candidate: _Candidate, wanted: Target) -> tuple[object, ...]:
    name = candidate.first
    on_npu = wanted.npu_gguf and name.quantization == _NPU_GGUF
    fits_npu = candidate.size_bytes * _NPU_COPIES <= wanted.room_bytes
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


def _sentence(chosen: _Candidate, suitable: Sequence[_Candidate], wanted: Target, *, fits: bool) -> str:
    name = chosen.first
    what = name.quantization or name.name
    if not fits:
        memory = format_bytes(wanted.memory_bytes or 0)
        return (
            f"{what}: the smallest there is, but {format_bytes(chosen.size_bytes)} leave no room in {memory} of memory"
        )
    if wanted.quantization:
        return f"{what}: you asked for it"
    if len(suitable) == 1:
        return f"{what}: the only one" + (f" for {wanted.platform}" if name.converted else "")
    if name.converted:
        order = platforms()[wanted.platform].quantizations
        best = what == order[0]
        reason = (
            f"what {wanted.platform} computes best" if best else f"the best for {wanted.platform} among {len(suitable)}"
        )
        return f"{what}: {reason}"
    if wanted.npu_gguf and what == _NPU_GGUF:
        return f"{what}: the NPU takes it, and would leave smaller ones mostly to the CPU"
    if what == PREFERRED[0]:
        return f"{what}: small, and near the original in quality"
    reason = f"the nearest to {PREFERRED[0]}" + ("" if wanted.memory_bytes is None else " that fits the memory")
    return f"{what}: {reason} among {len(suitable)}"


def _listed(candidates: Sequence[_Candidate]) -> str:
    names = list(dict.fromkeys(_label(each.first) for each in candidates))
    return ", ".join(names[:_MOST_NAMED]) + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )


def _label(name: FileName) -> str:
    return " ".join(part for part in (name.quantization or name.name, f"for {name.chip}" if name.chip else "") if part)


def _nothing(names: Sequence[FileName], repository: str) -> str:
    where = repository or "it"
    if any(name.kind == "weights" for name in names):
        return f"{where} lacks shards of its model; take another repository, or a single file of it"
    if any(name.path.endswith(".safetensors") for name in names):
        return f"{where} has no GGUF or RKLLM file, only safetensors; look for a GGUF conversion of it"
    return f"{where} has no GGUF or RKLLM file; look for a conversion of it"
