"""Which of the known interfaces a librkllmrt.so has, told by its file before anything of it runs."""

from pathlib import Path

from trilithon.board.libraries import RKLLM, stated_version
from trilithon.board.sysfs import THIS_MACHINE
from trilithon.engines.rkllm.child.binding import ABIS, Abi, UnknownAbi, known_versions

__all__ = ["embedded_version", "find_abi"]


def embedded_version(path: Path) -> str:
    """The version that the library's file states, such as "1.2.1". Raises UnknownAbi when it states none, OSError when
    it cannot be read."""
    path.stat()
    version = stated_version(THIS_MACHINE, str(path.absolute()), RKLLM)
    if version is None:
        raise UnknownAbi(
            f"{path} states no RKLLM version: it is another library; take librkllmrt.so of {known_versions()}"
        )
    return version


def find_abi(version: str) -> Abi:
    """Raises UnknownAbi, naming the versions that are known."""
    for abi in ABIS:
        if version in abi.versions:
            return abi
    raise UnknownAbi(
        f"the interface of RKLLM runtime {version} is not known here; take librkllmrt.so of {known_versions()}, "
        "or name the one that it follows with the option abi"
    )
