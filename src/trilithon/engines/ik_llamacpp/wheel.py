"""The package ik-llama-cpp-python as a build: its wheels carry the library, and no server."""

import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trilithon.board.processors import cpu_features
from trilithon.board.sysfs import THIS_MACHINE
from trilithon.engines.base import Build, Feature, Launch, Placement, Settings
from trilithon.engines.ik_llamacpp.library_options import LibraryOptions
from trilithon.packages import install_line

__all__ = ["WHEEL", "refusal_of_wheel", "wheel_build", "wheel_launch", "wheel_trouble"]

WHEEL = "wheel"
_PACKAGE = "ik-llama-cpp-python"
_VERSIONS = ("0.1.5",)
"""Those whose private bindings were tried."""
# What the wheels of 0.1.5 are compiled for, as cpuinfo names it; without them they end in an illegal instruction.
_NEEDS = {"x86_64": ("avx2", "fma", "f16c"), "aarch64": ("asimddp",)}
_FEATURES: frozenset[Feature] = frozenset({"logprobs"})
_BUILD_FIX = "run: trilithon engines build --engine ik"


def wheel_build(engine: str) -> list[Build]:
    """None or one."""
    installed = _installed()
    if not installed or wheel_trouble():
        return []
    where = f"package {_PACKAGE}"
    return [
        Build(
            engine=engine,
            name=WHEEL,
            version=f"{_PACKAGE} {installed}",
            units=("cpu",),
            features=_FEATURES,
            where=where,
        )
    ]


def wheel_trouble() -> str:
    """Why the package is installed and not used; empty where it is used or absent."""
    installed = _installed()
    if not installed:
        return ""
    if installed not in _VERSIONS:
        return f"{_PACKAGE} {installed} was not tried; run: {install_line(f'{_PACKAGE}=={_VERSIONS[-1]}')}"
    features = cpu_features(THIS_MACHINE)
    absent = [name for name in _NEEDS.get(os.uname().machine, ()) if name not in features]
    if absent:
        return f"{_PACKAGE} was compiled for {' and '.join(absent)}, which this CPU lacks; {_BUILD_FIX}"
    return ""


def _installed() -> str:
    """Its version; empty where it is not installed."""
    if importlib.util.find_spec("ik_llama_cpp") is None:
        return ""
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return ""


def refusal_of_wheel(settings: Settings) -> str:
    if settings.slots > 1:
        return f"the library of {_PACKAGE} answers one request at a time here; leave slots at 1, or {_BUILD_FIX}"
    if settings.speculation:
        return f"the library of {_PACKAGE} does not speculate here; leave spec out, or {_BUILD_FIX}"
    return ""


def wheel_launch(placement: Placement, folder: Path) -> Launch:
    settings, file, socket = placement.settings, placement.file, folder / "wire.sock"
    options = LibraryOptions(
        context=settings.context or 4096,
        threads=settings.threads or len(settings.cpus or os.sched_getaffinity(0)),
        batch=settings.micro_batch,
        kv_type_k=settings.kv_type_k,
        kv_type_v=settings.kv_type_v,
        flash_attention=settings.flash_attention != "off",
        switches=tuple(name for name, value in settings.options if value == "on"),
        adapters=tuple((str(path), scale) for path, scale in file.adapters),
        template=file.prompt_form.template if file.prompt_form else None,
    )
    arguments = {"--socket": socket, "--model": file.path, "--options": options.json()}
    flags = tuple(str(word) for pair in arguments.items() for word in pair)
    return Launch(
        argv=(sys.executable, "-P", "-m", "trilithon.engines.ik_llamacpp.child.server", *flags),
        socket=socket,
        cpus=settings.cpus,
    )
