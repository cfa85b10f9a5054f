"""How rk-llama.cpp is compiled: with shared libraries, because the forks are told apart by that of the back end."""

from pathlib import PurePosixPath

from trilithon.engines.llamacpp.source import SourcePackage

__all__ = ["RK_LLAMA_CPP"]

RK_LLAMA_CPP = SourcePackage(
    name="",
    program="rk-llama.cpp",
    version="",
    sha256={},
    carried=PurePosixPath("vendor/rk-llama.cpp"),
    prefix="rk",
    targets=("llama-server", "llama-bench", "llama-quantize", "llama-perplexity"),
    flags={
        "CMAKE_BUILD_TYPE": "Release",
        "GGML_RKNPU2": "ON",
        "LLAMA_RKNPU2": "ON",  # its name in the older forks
        "GGML_NATIVE": "ON",
        "BUILD_SHARED_LIBS": "ON",
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
        "CMAKE_INSTALL_RPATH": "$ORIGIN",  # the libraries are installed beside the programs
        "LLAMA_BUILD_UI": "OFF",
        "LLAMA_USE_PREBUILT_UI": "OFF",
        "LLAMA_CURL": "OFF",
        "LLAMA_OPENSSL": "OFF",
        "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_EXAMPLES": "OFF",
    },
    instructions=("GGML_CPU_ARM_ARCH", "$MARCH"),
    libraries="lib*.so*",
    bundled=("ggml/src/ggml-rknpu2/libs/librknnrt.so",),
    options=False,
)
