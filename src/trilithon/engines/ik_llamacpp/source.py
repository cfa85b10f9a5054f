"""The source of ik_llama.cpp: the sdist of `ik-llama-cpp-python` has all of it but one file of its CMake project."""

import re
from pathlib import PurePosixPath

from trilithon.engines.llamacpp.source import SourcePackage

__all__ = ["IK_LLAMA_CPP"]

# In place of a script that asks git for the commit; its variables are those of common/build-info.cpp.in.
_BUILD_INFO = """\
set(BUILD_NUMBER 0)
set(BUILD_COMMIT "$VERSION")
set(BUILD_COMPILER "${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION}")
set(BUILD_TARGET "this machine")
configure_file(common/build-info.cpp.in common/build-info.cpp)
"""
# At the end of an answer the server notes its last token as evaluated, which it was not (see `faults`).
_UNREAD_TOKEN = re.compile(
    r"\n *slot\.cache_tokens\.push_back\(slot\.sampled\);\n *slot\.n_past\+\+;(?=\n *send_final_response\(slot\);)"
)
# A whole answer with a part of a character fails ("type_error.316"); an event with one has U+FFFD in its place.
_STRICT_TEXT = re.compile(r"(?<=set_content\()data\.dump\(\)")

IK_LLAMA_CPP = SourcePackage(
    name="ik-llama-cpp-python",
    program="ik_llama.cpp",
    version="0.1.5",
    sha256={"0.1.5": "33c67eb99e4dcab5e611050433243815709b8b3067753f9ce18375013cf002ad"},
    carried=PurePosixPath("vendor/ik_llama.cpp"),
    prefix="ik",
    targets=("llama-server", "llama-bench", "llama-quantize", "llama-perplexity", "llama-sweep-bench"),
    flags={
        "CMAKE_BUILD_TYPE": "Release",
        "GGML_NATIVE": "ON",
        "BUILD_SHARED_LIBS": "OFF",
        "LLAMA_CURL": "OFF",
        "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_EXAMPLES": "ON",
        "LLAMA_BUILD_SERVER": "ON",
    },
    # On Arm its CMake project knows no native: without a -march none of the faster kernels is compiled (iqk_config.h).
    instructions=("GGML_ARCH_FLAGS", "-march=$MARCH"),
    generated={"common/cmake/build-info-gen-cpp.cmake": _BUILD_INFO},
    repairs=(
        ("examples/server/server-context.cpp", _UNREAD_TOKEN, ""),
        ("examples/server/server.cpp", _STRICT_TEXT, "safe_json_to_str(data)"),
    ),
    options=False,
)
