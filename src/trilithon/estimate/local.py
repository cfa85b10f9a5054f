"""How far this machine is from the estimates, by the campaigns that were measured on it."""

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from trilithon.board.snapshot import Board
from trilithon.errors import UserError
from trilithon.estimate.answer import PROMPT_TOKENS, Subject, case_for, known_engines
from trilithon.estimate.predict import Phase, Shift, fitted, predict
from trilithon.estimate.sizes import WeightBytes, bits_of, size_named
from trilithon.estimate.terms import Case
from trilithon.measure.records import PlacementRecord
from trilithon.results.speeds import last_speeds
from trilithon.results.store.database import Store

__all__ = ["case_of_record", "measured_shift"]

_MOST_CAMPAIGNS = 12
# One measurement's noise, and how far a machine is from others of its kind (logarithms; docs/estimate.md).
_NOISE, _MACHINE = 0.08, 1.0
# `last_speeds` prefers tg, which has nothing before it.
_PROMPTS: Mapping[Phase, int | None] = {"decode": None, "prefill": PROMPT_TOKENS}


def measured_shift(database: Path, board: Board, chip: str, *, without: str = "") -> Shift:
    """From the newest campaigns; empty where nothing was measured here. `without` is the SHA-256 of a file that does
    not count. Raises StoreError."""
    differences: dict[tuple[str, Phase], list[float]] = defaultdict(list)
    if not database.is_file():
        return {}
    with Store.open(database) as store:
        here = [one.id for one in store.campaigns() if one.source == "trilithon" and not one.imported]
        newest = here[-_MOST_CAMPAIGNS:]
        records = [record for number in newest for record in store.campaign(number).placements]
    for (_, sha256), record in {(record.name, record.model.get("sha256")): record for record in records}.items():
        if without and sha256 == without:
            continue
        for phase, difference in _differences(record, database, board, chip).items():
            differences[record.engine, phase].append(difference)
    return {key: sum(values) / (len(values) + (_NOISE / _MACHINE) ** 2) for key, values in differences.items()}


def case_of_record(record: PlacementRecord, chip: str, phase: Phase) -> Case | None:
    """tg128 or pp512 of what was measured; None where estimates do not know it."""
    engine, subject = known_engines().get(record.engine), _subject(record)
    if engine is None or engine["unit"] != record.unit or subject is None or subject.quantization is None:
        return None
    try:
        return case_for(subject, chip, record.engine, subject.quantization, _PROMPTS[phase])
    except UserError:  # a quantisation that estimates do not know
        return None


def _differences(record: PlacementRecord, database: Path, board: Board, chip: str) -> dict[Phase, float]:
    speeds = last_speeds(database, str(record.model.get("sha256") or ""), record.name, board)
    if speeds is None:
        return {}
    seconds: dict[Phase, float | None] = {
        "decode": 1 / speeds.decode if speeds.decode else None,
        "prefill": PROMPT_TOKENS / speeds.prefill if speeds.prefill else None,
    }
    cases = {phase: case_of_record(record, chip, phase) for phase in seconds}
    return {
        phase: math.log(measured / predict(phase, case, fitted()[phase]).seconds)
        for phase, measured in seconds.items()
        if measured and (case := cases[phase]) is not None
    }


def _subject(record: PlacementRecord) -> Subject | None:
    """The measured file: its bytes per token are exact, its other sizes by name or by its parameters."""
    name, parameters = str(record.model.get("name") or ""), record.model.get("parameters")
    size = size_named(name.split(",")[0], parameters / 1e9 if isinstance(parameters, int) and parameters else None)
    quantization, read = record.model.get("quantization"), record.model.get("bytes_per_token")
    if size is None or not isinstance(quantization, str):
        return None
    weights = None
    if isinstance(read, int) and read:
        try:
            head = size.head * bits_of(quantization, size.embedding)[1] / 8
        except KeyError:
            head = 0.0
        weights = WeightBytes(body=max(read - head, read / 2), head=min(head, read / 2), held=float(read))
    return Subject(reference=name, size=size, weights=weights, quantization=quantization)
