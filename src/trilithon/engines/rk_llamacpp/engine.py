"""rk-llama.cpp: forks of llama.cpp that multiply matrices on Rockchip's NPU.

facts.toml has the facts about pipelines and forks. No setting is left to the forks' defaults: they assume an RK3588,
and run a small 4-bit model in a pipeline that ruins its answers."""

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from trilithon.board.chips import chips, find_chip, is_unknown_rockchip
from trilithon.board.snapshot import Board, read_board
from trilithon.engines.base import Build, FallbackStep, Feature, Launch, Placement, Settings, Unit
from trilithon.engines.llamacpp.argv import hand_argv, server_argv
from trilithon.engines.llamacpp.programs import Program, programs
from trilithon.engines.npu_board import refusal_of_driver
from trilithon.engines.rk_llamacpp.backend import Backend, facts, read_backend
from trilithon.engines.rk_llamacpp.options import RkOptions, choice, refusal_of_options, with_option
from trilithon.engines.rk_llamacpp.remarks import remarks_before, remarks_on_log
from trilithon.engines.rk_llamacpp.variables import npu_variables
from trilithon.engines.variables import Variable, shell_line
from trilithon.errors import PlacementError
from trilithon.language import Message
from trilithon.models.files.model_file import ModelFile
from trilithon.settings import Configuration

__all__ = ["RkLlamaCpp"]

# Without vision: pictures would be encoded on the CPU, 12.5 s each on an RK3588, and plain llama.cpp does that too.
_FEATURES: frozenset[Feature] = frozenset({"logprobs", "handover", "grammar", "embeddings", "speculation"})
_DEVICE = "RKNPU"
_MISSING = Message("no llama-server with libggml-rknpu2.so beside it")
# Variables of the user would change settings without a record, and some have an effect when they are set at all.
_HIDDEN = ("RKNPU_", "GGML_RKNPU", "LLAMA_ARG_", "LLAMA_API_KEY")
_PLAIN_V_TYPES = ("f32", "f16", "bf16")
_CPU_DECODE_ROWS = "32"  # decode runs on the CPU and prefill on the NPU (the fork's advice)
_PROBE_SECONDS = 10.0


class RkLlamaCpp:
    name = "rk-llama.cpp"
    only_when_named = False

    def __init__(self, configuration: Configuration, board: Callable[[], Board] | None = None):
        self._configuration = configuration
        self._board = board or read_board

    def builds(self) -> list[Build]:
        builds: list[Build] = []
        lacking = set()
        for program in programs(self._configuration):
            if program.npu_backend:
                lineage = _backend(program.path, program.npu_backend, program.fingerprint).lineage or "unknown"
                count = sum(build.name.split(".")[0] == lineage for build in builds)
                name = program.name or f"{lineage}{f'.{count + 1}' if count else ''}"
                builds.append(self._build(program, name))
                if program.libraries_missing:
                    lacking.add(name)
        return [build for build in builds if build.name not in lacking]

    def _build(self, program: Program, name: str) -> Build:
        return Build(
            engine=self.name,
            name=name,
            version=program.version,
            fingerprint=program.fingerprint,
            units=("npu",),
            features=_FEATURES,
            where=str(program.path),
            devices=tuple(device for device in program.devices if device.id.startswith(_DEVICE)),
        )

    def missing(self) -> str:
        if self.builds():
            return ""
        return f"{_MISSING}; run: trilithon engines install rk-llama.cpp"

    def problems(self) -> tuple[str, ...]:
        return ()  # llama.cpp's engine reports on all llama-server programs

    def refusal(self, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        board = self._board()
        return (
            _refusal_of_file(file, build, unit, settings)
            or _refusal_of_build(build)
            or _refusal_of_board(board)
            or refusal_of_options(settings, _backend_of(build), _device(board))
            or _refusal_of_drafts(settings)
        )

    def launch(self, placement: Placement, folder: Path) -> Launch:
        board, settings = self._board(), placement.settings
        if refused := self.refusal(placement.file, placement.build, placement.unit, settings):
            raise PlacementError(f"placement {placement.name}: {refused}")
        slots, socket = folder / "slots", folder / "wire.sock"
        slots.mkdir(exist_ok=True)
        return Launch(
            argv=_argv(placement, choice(settings), socket, slots),
            socket=socket,
            environment={"RKNPU_DEVICE": _device(board), **choice(settings).environment},
            hidden=_HIDDEN,
            cpus=settings.cpus,
            open_files=facts()["open_files"],
            exclusive="npu",
            runs_template=True,
        )

    def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
        backend = _backend_of(placement.build)
        settings, steps = placement.settings, []
        for name, safer in _steps(placement, backend, self._board()):
            settings = safer(settings)
            steps.append(FallbackStep(name=name, settings=settings))
        return tuple(steps)

    def variables(self, placement: Placement, board: Board, depth: int) -> tuple[Variable, ...]:
        return npu_variables(placement, board, _device(board))

    def by_hand(self, placement: Placement) -> str:
        options = choice(placement.settings)
        more = () if options.repack else ("--no-repack",)
        environment = {"RKNPU_DEVICE": _device(self._board()), **options.environment}
        return shell_line((*hand_argv(placement, {}), *more), placement, environment)

    def remarks(self, placement: Placement, log: str) -> tuple[str, ...]:
        before = remarks_before(placement, _backend_of(placement.build), self._board())
        return (*before, *remarks_on_log(placement, log))


@cache
def _backend(program: Path, library: str, fingerprint: str) -> Backend:
    try:
        return read_backend(program.with_name(library), fingerprint)
    except OSError as error:
        return Backend(lineage="", stranger=f"{library}, which cannot be read ({error.strerror})")


def _backend_of(build: Build) -> Backend:
    program = Path(build.where)
    library = min((file.name for file in program.parent.glob("libggml-rknpu2.so*")), default="libggml-rknpu2.so")
    return _backend(program, library, build.fingerprint)


def _device(board: Board) -> str:
    """RKNPU_DEVICE for the board; empty for a chip that the forks have no configuration for."""
    chip = find_chip(board.chip)
    return str(chip.rk_llama_cpp or "") if chip else ""


def _refusal_of_file(file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
    if file.format != "gguf":
        return f"{build.engine} runs GGUF files, and {file.path.name} is {file.format}; use a GGUF file of this model"
    if unit != "npu":
        # Neither -ngl 0 nor --device none stops the use of an accelerator device.
        return f"{build.engine} always uses the NPU; use llama.cpp/cpu, or pipeline=CPU_STANDARD"
    if settings.kv_type_v not in _PLAIN_V_TYPES and settings.flash_attention == "off":
        return f"KV type {settings.kv_type_v} for V needs flash attention; use -fa on"
    return ""


def _refusal_of_drafts(settings: Settings) -> str:
    """With cpu_decode, drafted tokens are checked with an unpacked copy of the weights: 529 ms for four, not 224."""
    if settings.speculation == "draft-mtp" and choice(settings).cpu_decode is not None:
        return "cpu_decode is slow for speculative decoding; leave cpu_decode or spec=draft-mtp out"
    return ""


def _refusal_of_build(build: Build) -> str:
    backend = _backend_of(build)
    if not any(Path(build.where).parent.glob("libggml-rknpu2.so*")):
        return "this build uses mainline's rocket driver, which Trilithon does not support; use an rknpu2 build"
    if backend.stranger:
        return f"this build is not rk-llama.cpp but {backend.stranger}; compile a fork of rk-llama.cpp"
    if not build.devices:
        return f"{build.where} --list-devices shows no {_DEVICE}; run it by hand and read its messages"
    return ""


def _refusal_of_board(board: Board) -> str:
    npu = board.npu
    if board.device_tree_hidden:
        return "the device tree is hidden here, and the chip cannot be told; see trilithon doctor"
    if not _device(board) and (npu or is_unknown_rockchip(board.chip)):
        known = ", ".join(chip.name for chip in chips().values() if chip.rk_llama_cpp)
        return f"rk-llama.cpp has no configuration for the {board.chip}, only for {known}; use another engine"
    if npu is None:
        return "this machine has no Rockchip NPU; use another engine"
    return refusal_of_driver(npu)


def _argv(placement: Placement, options: RkOptions, socket: Path, slots: Path) -> tuple[str, ...]:
    """As for llama.cpp, and so never with --no-mmap (two forks need the mapped file for their packing), and always with
    a context (the default is the model's, and a long one runs out of memory without a message)."""
    verbosity = _verbosity(placement.build.where, placement.build.fingerprint)
    argv = server_argv(placement, socket, slots, {"verbosity": verbosity} if verbosity else {})
    return argv if options.repack else (*argv, "--no-repack")


@cache
def _verbosity(program: str, fingerprint: str) -> str:
    """4 where that is "trace", which prints how much of the model is on the NPU. In older servers 4 prints details of
    every token, and the default prints the sizes."""
    try:
        done = subprocess.run(
            [program, "--help"], capture_output=True, timeout=_PROBE_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "4" if re.search(rb"4: trace", done.stdout + done.stderr) else ""


def _steps(
    placement: Placement, backend: Backend, board: Board
) -> Iterator[tuple[str, Callable[[Settings], Settings]]]:
    """From the least to the greatest loss: names, and the change of the settings."""
    options = choice(placement.settings)
    if placement.settings.flash_attention != "off" and placement.settings.kv_type_v in _PLAIN_V_TYPES:
        yield "flash attention off", _without_flash_attention
    for pipeline in _safer(options.pipeline, placement.file, board):
        yield f"pipeline {pipeline}", partial(with_option, name="pipeline", value=pipeline)
    if len(options.cores) != 1:
        yield "one NPU core", partial(with_option, name="cores", value=str(min(options.cores, default=0)))
    can_route = "RKNPU_CPU_DECODE" in backend.variables and placement.settings.speculation != "draft-mtp"
    if can_route and options.cpu_decode is None:
        yield "decode on the CPU", partial(with_option, name="cpu_decode", value=_CPU_DECODE_ROWS)
    if options.pipeline != ("CPU_STANDARD",):
        yield "NPU not used", partial(with_option, name="pipeline", value="CPU_STANDARD")


def _without_flash_attention(settings: Settings) -> Settings:
    return replace(settings, flash_attention="off")


def _safer(pipeline: tuple[str, ...], file: ModelFile, board: Board) -> list[str]:
    """Pipelines to try instead. The exact one is last and only where memory allows it: it takes twice as much."""
    if pipeline == ("CPU_STANDARD",):
        return []
    eight = [] if pipeline[0].startswith("W16A16") else ["W8A8_HADAMARD", "W8A8_STANDARD"]
    fits = 2 * (file.parameters or 0) < (board.memory_available_bytes or 0)
    return [name for name in (*eight, *["W16A16_STANDARD"] * fits) if (name,) != pipeline]
