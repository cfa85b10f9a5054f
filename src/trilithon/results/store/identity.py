"""What tells one measurement from another wherever it is kept: its numbers. Names and texts may have been replaced on
the way (`results.bundle`), and each database has numbers of its own for campaigns."""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from trilithon.measure.records import Campaign, Run, Sample

__all__ = ["measured_identity"]

_EXACT = ("started_ns", "finished_ns", "prompt_evaluated", "prompt_cached", "prompt_ns", "decode_steps", "decode_ns")


def measured_identity(campaign: Campaign) -> str:
    """The same for two campaigns with the same numbers. Of llama-bench's files that is the average of each test: csv
    and sql have no single repetitions, and are the same results as json. A table's averages are rounded, and differ."""
    places = {placement.name: number for number, placement in enumerate(campaign.placements)}
    facts = [
        (p.engine, p.unit, *(p.model.get(name) for name in ("quantization", "size_bytes", "parameters", "sha256")))
        for p in campaign.placements
    ]
    runs = _averages(campaign.runs, places) if campaign.source.startswith("llama-bench") else _runs(campaign, places)
    answers = [(answer.question, answer.verdict) for p in campaign.placements for answer in p.answers]
    parts = [campaign.started, campaign.source, facts, runs, *([answers] if answers else [])]
    return sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _runs(campaign: Campaign, places: dict[str, int]) -> list[Any]:
    return [
        (
            places[run.placement],
            run.round,
            run.outcome,
            run.started_ns,
            run.finished_ns,
            list(map(_numbers, run.samples)),
        )
        for run in campaign.runs
    ]


def _numbers(sample: Sample) -> list[Any]:
    test = sample.test
    lengths = (test.kind, test.prompt_tokens, test.generated_tokens, test.depth)
    return [*lengths, *(getattr(sample, name) for name in _EXACT), sample.thinking_at_ns, sample.answer_at_ns]


def _averages(runs: Sequence[Run], places: dict[str, int]) -> list[Any]:
    """Whole nanoseconds, cut off as llama-bench does."""
    durations: dict[tuple[int, str], list[int]] = {}
    for run in runs:
        for sample in run.samples:
            durations.setdefault((places[run.placement], sample.test.name), []).append(sample.finished_ns)
    return [(*key, sum(values) // len(values)) for key, values in sorted(durations.items())]
