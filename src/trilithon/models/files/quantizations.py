"""The quantisations of GGUF files: types of tensors, types of files, and the names that files carry, best first.

No other module lists them: a test compares the tables with each other, with the gguf library and with all sources."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from trilithon.tables import table_beside

__all__ = [
    "FILE_TYPES",
    "FORK_ONLY",
    "PREFERRED",
    "PROJECTOR_PREFERRED",
    "TENSOR_TYPES",
    "UNQUANTISED",
    "TensorType",
    "gguf_quantization",
    "projector_rank",
    "quantization_rank",
    "tensor_type",
]


class TensorType(NamedTuple):
    """`number` is ggml's; a block holds `elements` numbers of one row in `size_bytes` bytes."""

    number: int
    name: str
    elements: int
    size_bytes: int


_TABLE = table_beside(__file__, "quantizations.toml")

TENSOR_TYPES: Mapping[int, TensorType] = {
    number: TensorType(number, name, elements, size_bytes)
    for name, (number, elements, size_bytes) in _TABLE["tensor_types"].items()
}
"""By number."""

FILE_TYPES: Mapping[int, tuple[str, str]] = {int(number): (a, b) for number, (a, b) in _TABLE["file_types"].items()}
"""general.file_type → the name that files carry, and the name that llama-bench prints."""

FORK_ONLY = frozenset(TENSOR_TYPES[number].name for number in TENSOR_TYPES if number > 100)
"""Quantisations of ik_llama.cpp that llama.cpp does not have. That fork numbers them apart."""

PREFERRED = (
    # The smallest of good quality first, and what is near it; then what is more exact, then what is less so.
    *("Q4_K_M", "Q4_K_S", "Q4_K", "IQ4_NL", "IQ4_XS", "Q4_K_XL", "Q4_K_L", "Q4_1", "Q4_0"),
    *("MXFP4", "MXFP4_MOE", "NVFP4"),
    *("Q5_K_M", "Q5_K_S", "Q5_K", "Q5_K_XL", "Q5_K_L", "Q5_1", "Q5_0"),
    *("Q6_K", "Q6_K_L", "Q6_K_XL", "Q8_0", "Q8_K_XL", "Q8_K", "Q8_1"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_XL", "IQ3_M", "Q3_K_S", "Q3_K", "IQ3_S", "IQ3_XS", "IQ3_XXS"),
    *("F16", "BF16", "F32", "Q2_K_L", "Q2_K_XL", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS"),
    *("TQ2_0", "Q2_0", "TQ1_0", "IQ1_M", "IQ1_S", "Q1_0"),
    # Layouts for one kind of CPU, which current llama.cpp refuses.
    *("Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8"),
    *_TABLE["other_programs"],
    # What people write where they do not say which.
    *("Q4", "Q5", "Q6", "Q8"),
)
"""Every name that the weights of a model carry, the best for a pull first."""

PROJECTOR_PREFERRED = ("F16", "Q8_0", "BF16", "F32")
UNQUANTISED = ("F32", "F16", "BF16")
"""What loses nothing by being quantised once."""

# As people write them: with or without each `_`, and these.
_WRITTEN = {name.replace("_", "").lower(): name for name in PREFERRED}
_WRITTEN |= {"fp16": "F16", "fp32": "F32", "mxfp4moe": "MXFP4"}
_SPELLINGS = sorted([*PREFERRED, "FP16", "FP32"], key=len, reverse=True)
# A bare "q8" before a number is part of another name.
_PATTERNS = [name.lower().replace("_", "_?") + r"(?!_\d)" * (len(name) == 2) for name in _SPELLINGS]
_NAME = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(_PATTERNS)})(?![a-z0-9])")
_BY_NAME = {row.name: row for row in TENSOR_TYPES.values()}


def tensor_type(name: str) -> TensorType:
    """Raises KeyError for a name that is no tensor's type."""
    return _BY_NAME[name]


def gguf_quantization(text: str) -> str:
    """The last quantisation that a text names; empty when it names none. The text is in lower case and has `_` for
    every separator."""
    names = _NAME.findall(text)
    return _WRITTEN[names[-1].replace("_", "")] if names else ""


def quantization_rank(name: str) -> int:
    """The place of a model's weights in the order of preference, 0 for the best; unknown ones come last."""
    return PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)


def projector_rank(name: str) -> int:
    """The same for the projector of a model."""
    return PROJECTOR_PREFERRED.index(name) if name in PROJECTOR_PREFERRED else len(PROJECTOR_PREFERRED)
