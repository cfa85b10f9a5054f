"""Whether a campaign from a file can be kept: types are checked by the codec, here is what they do not say.

What is shown, drawn and compared later relies on it: no duration runs backwards, no text is half a character, no map is
nested deeper than it can be written out again."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from trilithon.measure.records import Campaign, PlacementRecord, Run, Sample

__all__ = ["check_received"]

_DEEPEST = 32
_LONGEST_NAME = 1000
_MODEL_TEXTS = ("name", "file", "architecture", "quantization", "sha256")
_MODEL_NUMBERS = ("size_bytes", "parameters", "bytes_per_token")
_COUNTS = ("prompt_evaluated", "prompt_cached", "prompt_ns", "decode_steps", "decode_ns")


def check_received(campaign: Campaign) -> None:
    """Raises ValueError, in words that go on a sentence "FILE is not a complete export: "."""
    for name, texts in (("started", campaign.started), ("source", campaign.source), ("version", campaign.version)):
        _check_text(name, texts)
    for name, value in (("board", campaign.board), ("plan", campaign.plan)):
        _check_depth(name, value)
    _check_facts(campaign)
    names = {placement.name for placement in campaign.placements}
    if len(names) != len(campaign.placements):
        raise ValueError("two placements have one name")
    for placement in campaign.placements:
        _check_placement(placement)
    for run in campaign.runs:
        if run.placement not in names:
            raise ValueError(f"a run has no placement {run.placement!r}")
        _check_run(run)


def _check_facts(campaign: Campaign) -> None:
    for name in ("description", "model", "chip", "cpu_info", "gpu_info"):
        if not isinstance(campaign.board.get(name), str | None):
            raise ValueError(f"board.{name} is not text")
    notes = campaign.plan.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError("plan.notes is not a list of texts")


def _check_placement(placement: PlacementRecord) -> None:
    for field in ("name", "engine", "build", "build_version", "unit"):
        _check_text(f"{field} of a placement", getattr(placement, field))
    if not placement.name.strip():
        raise ValueError("a placement has no name")
    for name, value in (("model", placement.model), ("settings", placement.settings)):
        _check_depth(f"{name} of {placement.name}", value)
    for fact in _MODEL_NUMBERS:
        size = placement.model.get(fact)
        if not isinstance(size, int | None) or (size or 0) < 0:
            raise ValueError(f"{fact} of {placement.name} is not a number from 0")
    for fact in _MODEL_TEXTS:
        if not isinstance(placement.model.get(fact), str | None):
            raise ValueError(f"{fact} of {placement.name} is not text")
    quality = placement.quality
    figures = [placement.bandwidth_bytes_per_second]
    if quality is not None:
        _check_text(f"the reference of {placement.name}", quality.reference)
        figures += [quality.positions, quality.agreement, quality.perplexity, quality.divergence]
        figures += [quality.divergence_prefill, quality.divergence_decode]
    if any(figure is not None and (math.isnan(figure) or figure < -1) for figure in figures):
        raise ValueError(f"a figure of {placement.name} cannot be")
    _check_answers(placement)


def _check_answers(placement: PlacementRecord) -> None:
    if len({answer.question for answer in placement.answers}) != len(placement.answers):
        raise ValueError(f"two answers of {placement.name} are to one question")
    for answer in placement.answers:
        for name in ("question_set", "set_digest", "question", "kind", "language", "stop_reason"):
            _check_text(f"{name} of an answer of {placement.name}", getattr(answer, name))
        if answer.tokens < 0 or not 0 <= answer.seconds < math.inf:
            raise ValueError(f"an answer of {placement.name} has a negative number")


def _check_run(run: Run) -> None:
    if run.round < 0 or run.finished_ns < run.started_ns:
        raise ValueError(f"a run of {run.placement} ends before it starts")
    for sample in run.samples:
        if any(number < 0 for number in _numbers(sample)) or sample.finished_ns < sample.started_ns:
            raise ValueError(f"{sample.test.name} of {run.placement} has a negative number")
    log = run.sensor_log
    if log is not None and any(len(sensor.values) != len(log.at_ns) for sensor in log.sensors):
        raise ValueError(f"a sensor of {run.placement} has more or fewer values than times")


def _numbers(sample: Sample) -> Iterator[int]:
    test = sample.test
    yield from (test.prompt_tokens, test.generated_tokens, test.depth)
    yield from (number for name in _COUNTS if (number := getattr(sample, name)) is not None)
    yield from sample.marks.values()


def _check_text(name: str, text: str) -> None:
    if len(text) > _LONGEST_NAME:
        raise ValueError(f"{name} is longer than {_LONGEST_NAME} characters")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(f"{name} has half a character in it")


def _check_depth(name: str, value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        parts = [part.values() if isinstance(part, Mapping) else part for part in level]
        level = [one for part in parts for one in part if isinstance(one, Mapping | list | tuple)]
        if not level:
            return
    raise ValueError(f"{name} is nested too deeply")
