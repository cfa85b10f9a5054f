"""What the file name of a model says: chip, quantisation and shard, which people write in many ways."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from trilithon.board.chips import platform_of
from trilithon.models.files.quantizations import gguf_quantization

__all__ = ["FileName", "Kind", "Shard", "chip_of", "quantization_of", "read_file_name", "shard_of"]

Kind = Literal["weights", "projector", "vision", "adapter", "draft", "other"]


_CONVERTED = "rkllm"
_FORMATS = ("gguf", _CONVERTED, "rknn")
_EDGE, _END = r"(?<![a-z0-9])", r"(?![a-z0-9])"
# Also chips that are not in the table: a file for one is not for this board.
_CHIP = re.compile(rf"{_EDGE}(r[kv]\d{{4}}(?:[a-z]\d?)?){_END}")
_RKLLM = re.compile(rf"{_EDGE}w(\d{{1,2}})_?a(\d{{1,2}})(?:_?g(\d{{2,3}}))?{_END}")
_SHARD = re.compile(r"(?P<base>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.DOTALL)
_SEPARATOR = re.compile(r"[-._ ]+")
_OPTIMISATION = re.compile(rf"{_EDGE}opt_?(?:level_?)?([01]){_END}")
_HYBRID = re.compile(r"(?<![a-z0-9])hybrid[_-]?(?:ratio|rate)?[_-]?(\d\.\d+|\d)(?![0-9])")
_PROJECTOR = re.compile(rf"{_EDGE}mm_?proj{_END}|{_EDGE}mmproj")
_ADAPTER = re.compile(rf"{_EDGE}(?:(?:q|rs|a|x)?loras?|dora|adapters?){_END}")
# llama.cpp looks for these beside a model (common/download.cpp); a model that includes its own layers for it has the
# word later in its name.
_DRAFT = re.compile(rf"(?:mtp|eagle_?3|dflash|dspark)_|.*{_EDGE}(?:eagle3|dflash|dspark){_END}")
_NO_MODEL = re.compile(rf"{_EDGE}(?:imatrix|calibration|vocab(?:_only)?|control_?vectors?|cvectors?){_END}")


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of a model, as llama.cpp names them: BASE-00001-of-00003.gguf."""

    base: str
    number: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileName:
    """`quantization` as its format writes it ("Q4_K_M", "w8a8_g128"); `chip` is the platform; both are empty where the
    name does not say them. `shard` is (1, 3) for the first of three. `stem` is the path without suffix and shard.
    `hybrid` and `optimisation` are the converter's options of an RKLLM file."""

    path: str
    kind: Kind
    format: Literal["gguf", "rkllm", "rknn", ""]
    quantization: str = ""
    chip: str = ""
    shard: tuple[int, int] | None = None
    stem: str = ""
    hybrid: float = 0.0
    optimisation: int = 0

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def converted(self) -> bool:
        """Whether it is for one chip; a GGUF runs anywhere."""
        return self.format not in ("gguf", "")

    @property
    def base(self) -> str:
        """The model's name: the part before quantisation and chip."""
        stem = PurePosixPath(self.stem).name
        starts = [0, *(separator.end() for separator in _SEPARATOR.finditer(stem))]
        kinds = [start for start in starts if self.quantization and quantization_of(stem[start:], self.format)]
        chips = [start for start in starts if self.chip and chip_of(stem[start:]) == self.chip]
        return stem[: min([*kinds[-1:], *chips[-1:], len(stem)])].strip("-._ ") or stem


def read_file_name(path: str) -> FileName:
    """`path` is the path in a repository: its folders may say what the name does not."""
    name = PurePosixPath(path).name
    stem, _, suffix = name.rpartition(".")
    form = suffix.lower()
    if form not in _FORMATS:
        return FileName(path=path, kind="other", format="")
    shard = shard_of(name)
    base = shard.base if shard else stem
    folders = str(PurePosixPath(path).parent)
    words = base.lower()
    hybrid = _HYBRID.search(words)
    optimisation = _OPTIMISATION.search(_flat(base))
    return FileName(
        path=path,
        kind=_kind(_flat(base), form) if base and not base.startswith(".") else "other",
        format=form,  # type: ignore[arg-type] # one of the three
        quantization=quantization_of(base, form) or quantization_of(folders, form),
        chip=chip_of(base) or chip_of(folders),
        shard=(shard.number, shard.count) if shard else None,
        stem=str(PurePosixPath(path).parent / base),
        hybrid=float(hybrid[1]) if hybrid else 0.0,
        optimisation=int(optimisation[1]) if optimisation else 0,
    )


def shard_of(name: str) -> Shard | None:
    """The shard that a file name says (without a folder); None for a file that is not a shard."""
    match = _SHARD.fullmatch(name.rpartition(".")[0])
    return Shard(match["base"], int(match["number"]), int(match["count"])) if match else None


def chip_of(text: str) -> str:
    """The platform that a text names; empty where it names none, or several."""
    names = {platform_of(name) or name.upper() for name in _CHIP.findall(_flat(text))}
    return names.pop() if len(names) == 1 else ""


def quantization_of(text: str, form: str = "") -> str:
    """The last quantisation that a text names, for a GGUF, an RKLLM file or (without `form`) either; else empty."""
    flat = _flat(text)
    if form != "gguf" and (matches := list(_RKLLM.finditer(flat))):
        bits, activations, group = matches[-1].groups()
        return f"w{bits}a{activations}" + (f"_g{group}" if group else "")
    if form == _CONVERTED:
        return "fp16" if re.search(rf"{_EDGE}fp?16{_END}", flat) else ""
    return gguf_quantization(flat)


def _flat(text: str) -> str:
    """Lower case, with one `_` for every run of other characters, as the patterns expect it."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def _kind(flat: str, form: str) -> Kind:
    if _NO_MODEL.search(flat):
        return "other"
    if form == "rknn":
        return "vision"
    if form == "gguf" and _PROJECTOR.search(flat):
        return "projector"
    if form == "gguf" and _DRAFT.match(flat):
        return "draft"
    return "adapter" if _ADAPTER.search(flat) else "weights"
