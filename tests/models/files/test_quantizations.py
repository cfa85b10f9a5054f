"""One table of quantisations: its parts agree with each other, and no other module lists them."""

import ast
from pathlib import Path

import gguf
import pytest
from parsed_source import parsed

import trilithon
from trilithon.models.files.file_names import quantization_of
from trilithon.models.files.quantizations import (
    FILE_TYPES,
    PREFERRED,
    PROJECTOR_PREFERRED,
    TENSOR_TYPES,
    UNQUANTISED,
    quantization_rank,
)

ROOT = Path(trilithon.__file__).parent
NAMES = {*PREFERRED, *(row.name for row in TENSOR_TYPES.values())}
# Values of an option of another program, which takes just these.
OPTIONS = {
    "engines/ik_llamacpp/argv.py": "--cache-type-k of ik_llama.cpp's server",
    "engines/llamacpp/convert.py": "--outtype of llama.cpp's converter",
    "engines/llamacpp/engine.py": "--cache-type-k of llama-server",
    "models/synthetic/architectures.py": "what this module can write",
}


def test_every_type_of_a_file_has_a_place_in_the_order() -> None:
    assert {name for name, _ in FILE_TYPES.values()} <= set(PREFERRED)
    assert len(PREFERRED) == len(set(PREFERRED))
    assert set(PROJECTOR_PREFERRED) | set(UNQUANTISED) <= set(PREFERRED)


def test_every_type_of_a_tensor_has_a_place_in_the_order() -> None:
    plain = {"I8", "I16", "I32", "I64", "F64"}
    assert {row.name for row in TENSOR_TYPES.values()} - plain <= set(PREFERRED)


def test_file_types_agree_with_the_library() -> None:
    library = {
        int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        for kind in gguf.LlamaFileType
        if "GUESSED" not in kind.name
    }
    ours = {number: name for number, (name, _) in FILE_TYPES.items()}
    assert {number: ours[number] for number in ours.keys() & library.keys()} == {
        number: library[number] for number in ours.keys() & library.keys()
    }


@pytest.mark.parametrize("name", PREFERRED)
def test_every_name_is_read_as_people_write_it(name: str) -> None:
    expected = "MXFP4" if name == "MXFP4_MOE" else name
    for written in (name, name.lower(), name.replace("_", ""), name.replace("_", "-")):
        assert quantization_of(f"model-{written}-of-someone", "gguf") == expected


@pytest.mark.parametrize("text", ["qwen2", "q9_0", "iq5_xs", "xq4_k_m", "f64", "i8", "q2.5-14b", "q8-7b", "q4x", "k_m"])
def test_what_is_no_name_is_not_read_as_one(text: str) -> None:
    assert quantization_of(text, "gguf") == ""


def test_the_last_name_counts_and_the_longest_one() -> None:
    assert quantization_of("f16-to-q4_k_m", "gguf") == "Q4_K_M"
    assert quantization_of("q4_0_4_4", "gguf") == "Q4_0_4_4"


def test_unknown_names_come_last() -> None:
    assert quantization_rank(PREFERRED[0]) == 0
    assert quantization_rank("Q9_9") > quantization_rank(PREFERRED[-1])


def test_no_other_module_lists_quantisations() -> None:
    listing = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
                items = node.keys if isinstance(node, ast.Dict) else node.elts
                names = {str(item.value).upper() for item in items if isinstance(item, ast.Constant)} & NAMES
                if len(names) > 3:
                    listing[str(path.relative_to(ROOT))] = sorted(names)
    assert listing.keys() == {"models/files/quantizations.py", *OPTIONS}
