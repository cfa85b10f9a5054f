"""The quantisations of GGUF files: types of tensors, types of files, and the names that files carry, best first.

No other module lists them: a test compares the tables with each other, with the gguf library and with all sources.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "FILE_TYPES",
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


TENSOR_TYPES: Mapping[int, TensorType] = {
    row[0]: TensorType(*row)
    for row in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
        (42, "Q2_0", 64, 18),
    )
}
"""By number (ggml.h and ggml-common.h of llama.cpp; the gguf library does not know the last one yet)."""

FILE_TYPES: Mapping[int, tuple[str, str]] = {
    0: ("F32", "all F32"),
    1: ("F16", "F16"),
    2: ("Q4_0", "Q4_0"),
    3: ("Q4_1", "Q4_1"),
    7: ("Q8_0", "Q8_0"),
    8: ("Q5_0", "Q5_0"),
    9: ("Q5_1", "Q5_1"),
    10: ("Q2_K", "Q2_K - Medium"),
    11: ("Q3_K_S", "Q3_K - Small"),
    12: ("Q3_K_M", "Q3_K - Medium"),
    13: ("Q3_K_L", "Q3_K - Large"),
    14: ("Q4_K_S", "Q4_K - Small"),
    15: ("Q4_K_M", "Q4_K - Medium"),
    16: ("Q5_K_S", "Q5_K - Small"),
    17: ("Q5_K_M", "Q5_K - Medium"),
    18: ("Q6_K", "Q6_K"),
    19: ("IQ2_XXS", "IQ2_XXS - 2.0625 bpw"),
    20: ("IQ2_XS", "IQ2_XS - 2.3125 bpw"),
    21: ("Q2_K_S", "Q2_K - Small"),
    22: ("IQ3_XS", "IQ3_XS - 3.3 bpw"),
    23: ("IQ3_XXS", "IQ3_XXS - 3.0625 bpw"),
    24: ("IQ1_S", "IQ1_S - 1.5625 bpw"),
    25: ("IQ4_NL", "IQ4_NL - 4.5 bpw"),
    26: ("IQ3_S", "IQ3_S - 3.4375 bpw"),
    27: ("IQ3_M", "IQ3_S mix - 3.66 bpw"),
    28: ("IQ2_S", "IQ2_S - 2.5 bpw"),
    29: ("IQ2_M", "IQ2_M - 2.7 bpw"),
    30: ("IQ4_XS", "IQ4_XS - 4.25 bpw"),
    31: ("IQ1_M", "IQ1_M - 1.75 bpw"),
    32: ("BF16", "BF16"),
    36: ("TQ1_0", "TQ1_0 - 1.69 bpw ternary"),
    37: ("TQ2_0", "TQ2_0 - 2.06 bpw ternary"),
    38: ("MXFP4_MOE", "MXFP4 MoE"),
    39: ("NVFP4", "NVFP4"),
    40: ("Q1_0", "Q1_0"),
    41: ("Q2_0", "Q2_0"),
}
"""general.file_type → the name that files carry, and the name that llama-bench prints (llama.cpp's loader)."""

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
)
"""Every name that the weights of a model carry, the best for a pull first."""

PROJECTOR_PREFERRED = ("F16", "Q8_0", "BF16", "F32")
UNQUANTISED = ("F32", "F16", "BF16")
"""What loses nothing by being quantised once."""

# As people write them: with or without each `_`, and these.
_WRITTEN = {name.replace("_", "").lower(): name for name in PREFERRED}
_WRITTEN |= {"fp16": "F16", "fp32": "F32", "mxfp4moe": "MXFP4"}
_SPELLINGS = sorted([*PREFERRED, "FP16", "FP32"], key=len, reverse=True)
_NAME = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(name.lower().replace('_', '_?') for name in _SPELLINGS)})(?![a-z0-9])")
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
