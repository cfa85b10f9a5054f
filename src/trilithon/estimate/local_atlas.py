"""Rows of the atlas from this machine's own campaigns: they join it here, and can be sent."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from trilithon.errors import UserError
from trilithon.estimate.answer import known_engines
from trilithon.estimate.rows import COLUMNS, Measurement, read_rows
from trilithon.files import save_text
from trilithon.measure.records import Campaign, PlacementRecord
from trilithon.results.compare import ComparisonRow, summarise
from trilithon.results.simulated import simulation

__all__ = ["add_rows", "as_csv", "local_rows", "rows_of_campaign"]

_UNITS = {"cpu", "gpu", "npu"}
_UNKNOWN_CHIP = "unknown"
_PREFILL, _DECODE = "prefill_tokens_per_second", "decode_tokens_per_second"
_DIGITS = 4


def rows_of_campaign(campaign: Campaign) -> list[Measurement]:
    """One for each measured pp and tg. Raises UserError for a campaign that is no measurement of this program, or has
    none: handovers, speculation, the question, broken answers, stand-ins and software GPUs are left out."""
    if campaign.source != "trilithon":
        raise UserError(
            "campaign {id} is imported from {source}; add one that was measured here",
            id=campaign.id,
            source=campaign.source[:60],
        )
    records = {record.name: record for record in campaign.placements if _is_comparable(campaign, record)}
    rows = [
        _row(campaign, records[row.placement], row, round(row.estimate.median, _DIGITS))
        for row in summarise(campaign)
        if row.placement in records
        and row.estimate is not None
        and (row.test.kind, row.metric.name) in (("pp", _PREFILL), ("tg", _DECODE))
    ]
    if not rows:
        raise UserError("campaign {id} has no finished pp or tg test; see trilithon results show {id}", id=campaign.id)
    return rows


def local_rows(path: Path) -> Sequence[Measurement]:
    """What was added before. Raises UserError for a file that somebody broke."""
    return tuple(read_rows(path)) if path.exists() else ()


def add_rows(path: Path, campaigns: Iterable[Campaign]) -> int:
    """Add their rows; those of a campaign that was added before are replaced. Returns how many. Raises UserError."""
    rows = [row for campaign in campaigns for row in rows_of_campaign(campaign)]
    sources = {row.source for row in rows}
    kept = [row for row in local_rows(path) if row.source not in sources]
    save_text(path, as_csv([*kept, *rows]))
    return len(rows)


def as_csv(rows: Iterable[Measurement]) -> str:
    """With the columns of the atlas."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = asdict(row)
        values["soc"] = values.pop("chip")
        writer.writerow({name: _cell(value) for name, value in values.items()})
    return text.getvalue()


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _is_comparable(campaign: Campaign, record: PlacementRecord) -> bool:
    return (
        record.unit in _UNITS
        and not simulation(campaign, record)
        and not any(name.startswith("prefill ") for name in record.must_match)
        and not record.settings.get("speculation")
        and (record.quality is None or record.quality.verdict != "broken")
    )


def _row(campaign: Campaign, record: PlacementRecord, row: ComparisonRow, speed: float) -> Measurement:
    parameters, test = record.model.get("parameters"), row.test
    chip = str(campaign.board.get("chip") or "")
    board = " ".join(str(campaign.board.get("model") or "this machine").split())
    notes = [
        f"{row.estimate.runs if row.estimate else 0} runs",
        *([f"depth {test.depth}"] if test.depth else []),
        *(["random weights"] if record.model.get("synthetic") else []),
        *_cache_type(record),
        *_memory_clock(record),
        f"Trilithon {campaign.version}",
    ]
    return Measurement(
        source=f"campaign {campaign.id}",
        date=campaign.started[:10],
        chip="" if chip.lower() == _UNKNOWN_CHIP else chip,
        board=board,
        engine=_engine(record),
        unit=record.unit,
        model=str(record.model.get("name") or record.model.get("file") or "unknown").partition(",")[0],
        params_b=round(parameters / 1e9, _DIGITS) if isinstance(parameters, int) and parameters else None,
        quant=str(record.model.get("quantization") or ""),
        threads_or_cores=_threads(record),
        prompt_tokens=float(test.prompt_tokens) if test.prompt_tokens else None,
        gen_tokens=float(test.generated_tokens) if test.generated_tokens else None,
        prefill_tps=speed if test.kind == "pp" else None,
        decode_tps=speed if test.kind == "tg" else None,
        ttft_ms=None,
        memory_mb=None,
        notes="; ".join(notes),
    )


def _engine(record: PlacementRecord) -> str:
    """As published rows write it: the family is told by the first word, a version of RKLLM by its number."""
    name = str(known_engines().get(record.engine, {}).get("row", record.engine))
    if known_engines().get(record.engine, {}).get("own_format"):
        return f"{name.split()[0]} {record.build_version}".strip()
    version = f" {record.build_version}" if record.build_version else ""
    return f"{name} build{version}" if name == record.engine else name


def _threads(record: PlacementRecord) -> str:
    threads, cpus = record.settings.get("threads"), record.settings.get("cpus")
    parts = [f"{threads} threads"] if threads else []
    if isinstance(cpus, list | tuple) and cpus:
        parts.append(f"CPUs {','.join(map(str, cpus))}")
    return ", ".join(parts)


def _cache_type(record: PlacementRecord) -> list[str]:
    kind = record.settings.get("kv_type_k", "f16")
    return [f"{kind} KV"] if kind != "f16" else []


def _memory_clock(record: PlacementRecord) -> list[str]:
    governor = record.must_match.get("memory clock governor", "none")
    clock = record.must_match.get("top clocks", "").rpartition("memory ")[2]
    return [f"memory clock governor {governor}, at most {clock}"] if governor != "none" else []
