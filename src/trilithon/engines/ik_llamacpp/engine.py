"""ik_llama.cpp: a fork of llama.cpp with faster kernels for CPUs, whose server speaks a dialect of its own."""

import os
import secrets
from functools import cache
from pathlib import Path

from trilithon.engines.base import Build, FallbackStep, Feature, Launch, Placement, Settings, Unit
from trilithon.engines.ik_llamacpp.argv import KV_TYPES, hand_argv, refusal_of_options, server_argv
from trilithon.engines.ik_llamacpp.dialect import IkDialect
from trilithon.engines.ik_llamacpp.wheel import WHEEL, refusal_of_wheel, wheel_build, wheel_launch, wheel_trouble
from trilithon.engines.llamacpp.gpu import PLAIN_V_TYPES
from trilithon.engines.llamacpp.programs import IK, Program, programs
from trilithon.engines.variables import shell_line
from trilithon.language import Message
from trilithon.models.files.model_file import ModelFile
from trilithon.settings import Configuration
from trilithon.suggestions import alternatives

__all__ = ["IkLlamaCpp"]

# Without embeddings: a batch as long as the context needs gigabytes for its logits, which this server computes all the
# same (seen: 2 GiB at 4,096 tokens). Without handover: the answer to saving or restoring a slot gets lost where work
# is quick, since the server waits for it only once it has posted the task (handle_slots_save in server.cpp).
_FEATURES: frozenset[Feature] = frozenset({"logprobs", "grammar", "speculation"})
_PREDICTION_LAYERS = "draft-mtp"
_MISSING = Message("no ik_llama.cpp is installed")
# The server reads these variables of the user after its command line.
_HIDDEN = ("LLAMA_ARG_", "LLAMA_API_KEY")


class IkLlamaCpp:
    name = "ik_llama.cpp"
    only_when_named = False

    def __init__(self, configuration: Configuration):
        self._configuration = configuration

    def builds(self) -> list[Build]:
        usable = [program for program in programs(self._configuration) if program.fork == IK]
        named = [(program, number) for number, program in enumerate(usable, 1) if not program.libraries_missing]
        native = [
            self._build(program, program.name or f"ik{number if number > 1 else ''}") for program, number in named
        ]
        return [*native, *wheel_build(self.name)]

    def missing(self) -> str:
        if self.builds():
            return ""
        return wheel_trouble() or f"{_MISSING}; run: trilithon engines build --engine ik"

    def problems(self) -> tuple[str, ...]:
        """llama.cpp's engine reports on all llama-server programs."""
        return tuple(filter(None, [wheel_trouble()])) if self.builds() else ()  # without any build, `missing` says it

    def refusal(self, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        if file.format != "gguf":
            return f"{self.name} runs GGUF files, and {file.path.name} is {file.format}; use a GGUF file of this model"
        if unit not in build.units:
            return f"build {build.name} has no {unit}; it has {', '.join(build.units)}"
        if settings.task != "generate":
            return f"{self.name} is for generating only; use llama.cpp/cpu"
        for kind in (settings.kv_type_k, settings.kv_type_v):
            if kind not in KV_TYPES:
                return Message("unknown KV type {kind}; {fix}", kind=kind, fix=alternatives(kind, KV_TYPES))
        if settings.kv_type_v not in PLAIN_V_TYPES and settings.flash_attention == "off":
            return f"KV type {settings.kv_type_v} for V needs flash attention; use -fa on"
        if build.name == WHEEL and (refused := refusal_of_wheel(settings)):
            return refused
        if settings.speculation == _PREDICTION_LAYERS:
            return f"{self.name} has no {_PREDICTION_LAYERS}; take spec=ngram-mod"
        return refusal_of_options(settings)

    def launch(self, placement: Placement, folder: Path) -> Launch:
        if placement.build.name == WHEEL:
            return wheel_launch(placement, folder)
        slots, key_file, key = folder / "slots", folder / "key", secrets.token_hex(16)
        slots.mkdir(exist_ok=True)
        # In a file of its own: other users can read the command line.
        key_file.unlink(missing_ok=True)
        with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{key}\n")
        return Launch(
            argv=server_argv(placement, key_file, slots),
            socket=folder / "wire.sock",
            hidden=_HIDDEN,
            cpus=placement.settings.cpus,
            loopback_key=key,
            runs_template=True,
            dialect=_dialect(placement.build.where, placement.build.fingerprint),
        )

    def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
        return ()

    def by_hand(self, placement: Placement) -> str:
        return shell_line(hand_argv(placement), placement)

    def remarks(self, placement: Placement, log: str) -> tuple[str, ...]:
        if (
            placement.build.name == WHEEL
            or not _dialect(placement.build.where, placement.build.fingerprint).claims_unread
        ):
            return ()
        remark = (
            "this build loses the last token of an answer from its KV cache, so every prompt is evaluated in full; "
        )
        return (f"{remark}run: trilithon engines build --engine ik",)

    def _build(self, program: Program, name: str) -> Build:
        return Build(
            engine=self.name,
            name=name,
            version=program.version,
            fingerprint=program.fingerprint,
            units=("cpu",),
            features=_FEATURES,
            where=str(program.path),
        )


@cache
def _dialect(program: str, fingerprint: str) -> IkDialect:
    """One for each build: what a build was asked about itself holds for all its processes."""
    return IkDialect()
