"""The records of a measurement: raw timestamps and counts. Metrics are computed from them and never stored.

A round runs every placement once; a run is one placement in one round; a sample is one measured request. The
run is the unit for statistics (tokens of one run are not independent of each other)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "AnswerRecord",
    "Campaign",
    "Failure",
    "Outcome",
    "PlacementRecord",
    "QualityRecord",
    "Run",
    "Sample",
    "SensorLog",
    "SensorValues",
    "Test",
    "TestKind",
]

TestKind = Literal["pp", "tg", "pg", "question", "cold", "questions"]
"""No run measures "questions": a set of them is put once, and stands beside the tests with its score."""

Outcome = Literal["finished", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """What is measured. `prompt_tokens`, `generated_tokens` and `depth` count tokens, as in llama-bench."""

    __test__ = False  # not a pytest class

    kind: TestKind
    prompt_tokens: int = 0
    generated_tokens: int = 0
    depth: int = 0
    question: str = ""

    @property
    def name(self) -> str:
        """llama-bench's name for it: "pp512", "tg128", "pp512+tg128", "pp512 @ d4096"; or that of the kind."""
        if self.kind in ("question", "cold", "questions"):
            return self.kind
        parts = []
        if self.prompt_tokens:
            parts.append(f"pp{self.prompt_tokens}")
        if self.generated_tokens:
            parts.append(f"tg{self.generated_tokens}")
        return "+".join(parts) + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured request.

    `*_ns` are `time.monotonic_ns`, except `prompt_ns` and `decode_ns`: durations by the engine's own clock.
    `prompt_evaluated` counts prompt tokens evaluated now, `prompt_cached` those taken from the KV cache;
    `decode_steps` is the number of decode steps that `decode_ns` covers.
    `thinking_at_ns` and `answer_at_ns` are the arrivals of the pieces of the reasoning and of the visible answer.
    `marks` names further moments (`…_at_ns`, monotonic), durations (`…_ns`) and counts (`…_tokens`), by name."""

    test: Test
    started_ns: int
    finished_ns: int
    prompt_evaluated: int | None = None
    prompt_cached: int | None = None
    prompt_ns: int | None = None
    decode_steps: int | None = None
    decode_ns: int | None = None
    thinking_at_ns: tuple[int, ...] = ()
    answer_at_ns: tuple[int, ...] = ()
    thinking_text: str = ""
    answer_text: str = ""
    stop_reason: str = ""
    marks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a run failed: `kind` (died, hung, refused, too long, start failed), one line, cause, advice, last lines."""

    kind: str
    message: str
    cause: str = ""
    advice: str = ""
    last_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorValues:
    """One sensor's value in each frame of its log; None where it could not be read. `quantity` is temperature, clock,
    load, memory, power or energy (a sum from the start of the log), `source` the file that was read."""

    quantity: str
    name: str
    unit: str
    source: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorLog:
    """The sensors during a run; `at_ns` are the times of the frames (monotonic), one per value."""

    at_ns: tuple[int, ...] = ()
    sensors: tuple[SensorValues, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One placement in one round. `warnings` say what disturbed it; `remarks` are other notes: settings that were given
    up, tests that could not be measured. `sensor_log` is None where nothing was recorded: in imports, and in
    results of older versions, which keep remarks among the warnings."""

    placement: str
    round: int
    outcome: Outcome
    started_ns: int
    finished_ns: int
    samples: tuple[Sample, ...] = ()
    failure: Failure | None = None
    warnings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    log: str = ""
    sensor_log: SensorLog | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRecord:
    """The quality of a placement, compared with the reference placement.

    `verdict` is "reference", "same", "degraded", "broken" or "unknown"; `reasons` explain it.
    `divergence` is the mean KL divergence in nats per token, `agreement` the fraction of positions whose most
    probable token is the reference's; both over `positions`. `perplexity` is that of the fixed text."""

    verdict: Literal["reference", "same", "degraded", "broken", "unknown"]
    reference: str
    positions: int = 0
    divergence: float | None = None
    divergence_prefill: float | None = None
    divergence_decode: float | None = None
    agreement: float | None = None
    perplexity: float | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRecord:
    """What a placement answered to one question of a set. `set_digest` tells sets of one name apart. `expected` is what
    the rule wants, in words; without a rule the verdict is "unscored". Tool calls stand in `answer` as NAME(JSON).
    `reason` is what is wrong with the answer, or why there is none. `seconds` are by the client's clock."""

    question_set: str
    set_digest: str
    question: str
    text: str
    verdict: Literal["correct", "wrong", "unscored"]
    kind: str = ""
    language: str = ""
    expected: str = ""
    answer: str = ""
    thinking: str = ""
    reason: str = ""
    stop_reason: str = ""
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRecord:
    """A placement as it was measured. `must_match` are the facts that must be equal before runs are combined: board,
    kernel, build, file hash, settings, governors and clocks. `model` describes the file (name, quantization,
    size_bytes, parameters, bytes_per_token, sha256)."""

    name: str
    engine: str
    build: str
    build_version: str
    unit: str
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    must_match: Mapping[str, str]
    bandwidth_bytes_per_second: float | None = None
    quality: QualityRecord | None = None
    answers: tuple[AnswerRecord, ...] = ()

    @property
    def spec(self) -> str:
        """The placement as a user writes it: without the file that a campaign of several models adds to the name."""
        return self.name.removesuffix(f" with {self.model.get('file')}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """Everything that one `trilithon bench` measured. `status` is "running", "interrupted" or "finished";
    `source` is "trilithon", or the origin of an import; `plan` is the setup that `--resume` needs."""

    id: int
    started: str
    status: Literal["running", "interrupted", "finished"]
    source: str
    version: str
    board: Mapping[str, Any]
    plan: Mapping[str, Any]
    placements: tuple[PlacementRecord, ...]
    runs: tuple[Run, ...]
