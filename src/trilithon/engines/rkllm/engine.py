"""RKLLM: Rockchip's runtime for language models on the NPU (librkllmrt.so), behind Trilithon's server for it."""

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path

from trilithon.board.libraries import RKLLM, find_runtimes, followed_release
from trilithon.board.snapshot import Board, read_board
from trilithon.board.sysfs import THIS_MACHINE, Machine
from trilithon.engines.base import Build, FallbackStep, Feature, Launch, Placement, Settings, Unit
from trilithon.engines.registry import registered
from trilithon.engines.rkllm.rules import (
    fallback_changes,
    load_options,
    refusal_of_board,
    refusal_of_build,
    refusal_of_file,
    refusal_of_settings,
    remarks_before,
    remarks_on_log,
)
from trilithon.engines.variables import Variable, cpu_masks, variable
from trilithon.errors import PlacementError, UserError
from trilithon.language import Message
from trilithon.models.files.model_file import ModelFile
from trilithon.settings import Configuration

__all__ = ["Rkllm"]

_STATED = b"RKLLM SDK (version: "
_MISSING = Message("librkllmrt.so is missing")
_VERSION = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}", re.ASCII)  # without the suffix of a test release: 1.2.1b1
_STAND_IN = "| build: stand-in"  # in the place of the vendor's date: the library of this project's tests
# Logits came with 1.2.0, and the size of pictures, which is needed for positions, with 1.2.1 (structs of rkllm.h).
_WITHOUT_LOGITS, _WITHOUT_PICTURES = ("1.1.4",), ("1.1.4", "1.2.0")
_OPEN_FILES = 102400  # the vendor's advice for "Too many open files" (ulimit -n 102400)


class Rkllm:
    name = "rkllm"
    only_when_named = False

    def __init__(self, configuration: Configuration, machine: Machine = THIS_MACHINE):
        self._configuration = configuration
        self._machine = machine

    def builds(self) -> list[Build]:
        builds: dict[str, Build] = {}
        for path, name in self._libraries().items():
            fingerprint = _fingerprint(path)
            statement = _statement(path, fingerprint)
            version = _version(statement)
            unique = _unique(name or version or "unknown", builds)
            builds[unique] = Build(
                engine=self.name,
                name=unique,
                version=version or "unknown",
                fingerprint=fingerprint,
                units=("npu",),
                features=_features(version),
                where=str(path),
                simulated=_STAND_IN in statement,
            )
        return list(builds.values())

    def _libraries(self) -> Mapping[Path, str]:
        """Each library once, with its registered name: registered ones, folders of the settings, the system's."""
        named = {(entry.folder / RKLLM).resolve(): entry.name for entry in registered(self._configuration)}
        system = [runtime.path for runtime in find_runtimes(self._machine) if runtime.library == RKLLM]
        paths = [
            *named,
            *((folder / RKLLM).resolve() for folder in self._configuration.builds),
            *((self._machine.root / path.lstrip("/")).resolve() for path in system),
        ]
        return {path: named.get(path, "") for path in paths if path.is_file() and os.access(path, os.R_OK)}

    def missing(self) -> str:
        if self.builds():
            return ""
        return f"{_MISSING}; run: trilithon engines install rkllm"

    def problems(self) -> tuple[str, ...]:
        return ()

    def refusal(self, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        if unit not in build.units:
            return f"{self.name} runs on the NPU only; use {self.name}/npu"
        board = read_board(self._machine)
        try:
            options = load_options(file, settings, board)
        except UserError as error:
            return str(error)
        return (
            refusal_of_file(file)
            or refusal_of_board(file, board)
            or refusal_of_build(build, options)
            or refusal_of_settings(file, settings, options, board)
        )

    def launch(self, placement: Placement, folder: Path) -> Launch:
        file, build, settings = placement.file, placement.build, placement.settings
        if refused := self.refusal(file, build, placement.unit, settings):
            raise PlacementError(f"placement {placement.name}: {refused}")
        socket, slots = folder / "wire.sock", folder / "slots"
        slots.mkdir(exist_ok=True)
        options = replace(load_options(file, settings, read_board(self._machine)), slots=str(slots))
        arguments = {"--socket": socket, "--library": build.where, "--model": file.path, "--options": options.json()}
        flags = tuple(str(word) for pair in arguments.items() for word in pair)
        return Launch(
            argv=(sys.executable, "-P", "-m", "trilithon.engines.rkllm.child.server", *flags),
            socket=socket,
            environment={"RKLLM_LOG_LEVEL": "1"},  # prints the figures of each run; 2 would print every prompt
            hidden=("RKLLM_",),
            cpus=settings.cpus,
            open_files=_OPEN_FILES,
            exclusive="npu",
            reports_errors=True,
        )

    def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
        settings, steps = placement.settings, []
        for name, safer in fallback_changes(placement, read_board(self._machine)):
            settings = safer(settings)
            steps.append(FallbackStep(name=name, settings=settings))
        return tuple(steps)

    def variables(self, placement: Placement, board: Board, depth: int) -> tuple[Variable, ...]:
        """The CPUs beside the NPU, and where the embeddings are: neither changes an answer."""
        del placement, depth
        masks = ({"cpus": mask} for mask, _ in cpu_masks(board))
        return (variable("CPUs", 0.15, *masks), variable("embeddings", 0.05, {"embed_flash": "on"}))

    def remarks(self, placement: Placement, log: str) -> tuple[str, ...]:
        return (*remarks_before(placement, read_board(self._machine)), *remarks_on_log(log))


def _unique(base: str, taken: Mapping[str, Build]) -> str:
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}.{number}"
    return name


def _features(version: str) -> frozenset[Feature]:
    release = followed_release(version)
    features: set[Feature] = {"embeddings"}
    if release not in _WITHOUT_LOGITS:
        features.add("logprobs")
    # Another runtime encodes pictures, rknn-toolkit-lite2.
    if release not in _WITHOUT_PICTURES and importlib.util.find_spec("rknnlite") is not None:
        features.add("vision")
    return frozenset(features) if release else frozenset()


def _fingerprint(library: Path) -> str:
    status = library.stat()
    return sha256(repr((str(library), status.st_size, status.st_mtime_ns)).encode()).hexdigest()[:8]


@cache
def _statement(library: Path, fingerprint: str) -> str:  # cached: needed often, and read from megabytes
    """What the bytes of the library, which is not loaded, say of its version; empty where they state none."""
    return next(filter(_VERSION.match, THIS_MACHINE.texts_after(str(library), _STATED)), "")


def _version(statement: str) -> str:
    match = _VERSION.match(statement)
    return match[0] if match else ""
