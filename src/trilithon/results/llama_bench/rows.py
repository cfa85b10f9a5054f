"""llama-bench's results as campaigns and back. A row here is one test of one configuration, typed as in its JSON.

Columns, types, defaults and the arithmetic of the averages are those of llama-bench as of November 2026
(`tools/llama-bench/llama-bench.cpp` in llama.cpp). Older files lack columns; what they lack stays out."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from trilithon.measure.records import Campaign, PlacementRecord, Run, Sample, Test
from trilithon.results.llama_bench.columns import COLUMNS, DEFAULTS, FIGURES, LISTS, TEST_COLUMNS, typed, unit_of
from trilithon.results.simulated import simulation

__all__ = ["TABLE_SOURCE", "Row", "campaigns_from", "figures", "rounded_average", "rows_of"]

Row = dict[str, Any]

TABLE_SOURCE = "llama-bench (Markdown)"
"""The source of a campaign whose figures are the rounded averages of a table."""

_NOTE = "llama-bench: the repetitions of one process are counted as runs"
_NOTE_AVERAGED = "this file has no single repetitions; their average is counted as one run"
_NOTE_ROUNDED = "llama-bench: a Markdown table's rounded averages ± deviations; each is counted as one run"
_FLASH_ATTENTION = {-1: "auto", 0: "off", 1: "on"}
_SETTINGS = {
    "n_threads": "threads",
    "n_batch": "batch",
    "n_ubatch": "micro_batch",
    "type_k": "kv_type_k",
    "type_v": "kv_type_v",
}
_STORAGE = re.compile(r"(?:I?Q|TQ)\d\w*|B?F16|F32|(?:MX|NV)FP4\w*")
_MOST_CPUS = 8192  # the kernel's own upper bound
_BACKENDS = {"cpu": "CPU", "gpu": "GPU", "npu": "RKNPU"}


def figures(tokens: int, samples_ns: Sequence[int]) -> Row:
    """llama-bench's averages: whole nanoseconds cut off, not rounded; deviations are those of a sample."""
    rates = [1e9 * tokens / sample for sample in samples_ns]
    count = len(samples_ns)
    mean_ns = sum(samples_ns) // count
    squares = sum(sample * sample for sample in samples_ns)
    return {
        "avg_ns": mean_ns,
        # In whole numbers as there, though theirs overflow from about four seconds on.
        "stddev_ns": math.isqrt(squares // (count - 1) - mean_ns * mean_ns * count // (count - 1)) if count > 1 else 0,
        "avg_ts": statistics.fmean(rates),
        "stddev_ts": statistics.stdev(rates) if count > 1 else 0.0,
        "samples_ns": list(samples_ns),
        "samples_ts": rates,
    }


def campaigns_from(rows: Sequence[Row], *, rounded: bool = False, notes: Sequence[str] = ()) -> list[Campaign]:
    """One campaign per machine in the rows. Its id is 0: a store gives it a real one. `rounded`: the rows are of a
    table, which has rounded averages."""
    machines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        machines.setdefault((row.get("cpu_info", ""), row.get("gpu_info", "")), []).append(row)
    return [_campaign(machine, of_machine, rounded, notes) for machine, of_machine in machines.items()]


@dataclass
class _Collected:
    """The rows of one configuration, with the same name."""

    record: PlacementRecord
    rows: list[Row]


def _campaign(machine: tuple[str, str], rows: Sequence[Row], rounded: bool, notes: Sequence[str]) -> Campaign:
    collected = _collect(rows)
    runs: list[Run] = []
    kept: list[Row] = []
    for placement in collected:
        repetitions: dict[Test, int] = {}
        for row in placement.rows:
            test = _test(row)
            kept.append({"placement": placement.record.name, "test": test.name} | _unsampled(row))
            for sample_ns in row.get("samples_ns") or [row["avg_ns"]]:
                repetitions[test] = repetitions.get(test, 0) + 1
                runs.append(_run(placement.record.name, repetitions[test] - 1, test, sample_ns))
    averaged = [_NOTE_AVERAGED] if any("samples_ns" not in row for row in rows) else []
    return Campaign(
        id=0,
        started=min((row["test_time"] for row in rows if row.get("test_time")), default=""),
        status="finished",
        source=TABLE_SOURCE if rounded else "llama-bench",
        version=", ".join(dict.fromkeys(placement.record.build_version for placement in collected)),
        board={"description": " · ".join(filter(None, machine)), "cpu_info": machine[0], "gpu_info": machine[1]},
        plan={"notes": [*([_NOTE_ROUNDED] if rounded else [_NOTE, *averaged]), *notes], "llama_bench": kept},
        placements=tuple(placement.record for placement in collected),
        runs=tuple(runs),
    )


def _unsampled(row: Row) -> Row:
    """What of a row the runs do not say: its time, and its averages where there are no samples."""
    names = ("test_time",) if "samples_ns" in row else ("test_time", *FIGURES)
    return {name: row[name] for name in names if name in row}


def _run(placement: str, repetition: int, test: Test, sample_ns: int) -> Run:
    """llama-bench gives a duration and no times, so each run starts at 0. In "pg" the duration covers both phases:
    all of it stands as the prompt's."""
    prompt_ns, decode_ns = (None, sample_ns) if test.kind == "tg" else (sample_ns, None)
    sample = Sample(
        test=test,
        started_ns=0,
        finished_ns=sample_ns,
        prompt_evaluated=test.prompt_tokens or None,
        prompt_ns=prompt_ns,
        decode_steps=test.generated_tokens or None,
        decode_ns=0 if test.kind == "pg" else decode_ns,
    )
    return Run(
        placement=placement,
        round=repetition,
        outcome="finished",
        started_ns=0,
        finished_ns=sample_ns,
        samples=(sample,),
    )


def _test(row: Row) -> Test:
    prompt, generated = row.get("n_prompt", 0), row.get("n_gen", 0)
    return Test(
        kind="pg" if prompt and generated else "pp" if prompt else "tg",
        prompt_tokens=prompt,
        generated_tokens=generated,
        depth=row.get("n_depth", 0),
    )


def _configuration(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in TEST_COLUMNS}


def _collect(rows: Sequence[Row]) -> list[_Collected]:
    """Rows by configuration. Where two share engine and unit, what tells them apart goes into their names."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr(sorted(_configuration(row).items())), []).append(row)
    collected = [_Collected(_placement(group[0]), group) for group in groups.values()]
    by_name: dict[str, list[_Collected]] = {}
    for placement in collected:
        by_name.setdefault(placement.record.name, []).append(placement)
    for name, alike in by_name.items():
        if len(alike) > 1:
            _rename(name, alike)
    return collected


def _rename(name: str, alike: Sequence[_Collected]) -> None:
    configurations = [_configuration(placement.rows[0]) for placement in alike]
    columns = dict.fromkeys(column for configuration in configurations for column in configuration)
    differ = [column for column in columns if len({repr(values.get(column)) for values in configurations}) > 1]
    for placement, configuration in zip(alike, configurations, strict=True):
        told = ", ".join(f"{column}={configuration.get(column, '?')}" for column in differ)
        placement.record = replace(placement.record, name=f"{name} ({told})")


def _placement(row: Row) -> PlacementRecord:
    unit = unit_of(row)
    commit, number = row.get("build_commit", ""), row.get("build_number")
    configuration = _configuration(row)
    return PlacementRecord(
        name=f"llama.cpp/{unit}",
        engine="llama.cpp",
        build=commit,
        build_version=commit if number is None else f"{commit} ({number})",
        unit=unit,
        model=_model(row),
        settings=_settings(row) | {"llama_bench": configuration},
        must_match={name: str(value) for name, value in configuration.items()},
    )


def _model(row: Row) -> dict[str, Any]:
    file = row.get("model_filename", "")
    kind = row.get("model_type", "")
    return {
        "name": re.split(r"[/\\]", file)[-1].removesuffix(".gguf") or kind,
        "file": file,
        "quantization": _quantization(kind),
        "size_bytes": row.get("model_size"),
        "parameters": row.get("model_n_params"),
        "bytes_per_token": None,
        "sha256": "",
    }


def _quantization(model_type: str) -> str:
    """ "gemma3 270M Q4_K - Medium" (architecture, size, storage) gives "Q4_K_M"; so does an export of ours, which has
    the model's name in the place of the first two."""
    words = model_type.split()
    start = next((index for index, word in enumerate(words) if _STORAGE.fullmatch(word)), 2)
    words = [word for word in words[start:] if word not in ("all", "mostly", "mix", "(guessed)")]
    if not words:
        return ""
    size = re.fullmatch(r"- (Small|Medium|Large)", " ".join(words[1:]))
    return f"{words[0]}_{size[1][0]}" if size else words[0]


def _settings(row: Row) -> dict[str, Any]:
    settings = {ours: row.get(theirs) for theirs, ours in _SETTINGS.items()}
    return settings | {"flash_attention": _FLASH_ATTENTION.get(row.get("flash_attn", -1), "auto")}


def rows_of(campaigns: Iterable[Campaign]) -> tuple[list[Row], list[str]]:
    """llama-bench's rows of these campaigns, and a line for each thing that it has no words for.

    Raises ValueError for a value that does not fit its column."""
    rows: list[Row] = []
    left_out: list[str] = []
    for campaign in campaigns:
        for placement in campaign.placements:
            samples = _samples(campaign, placement, left_out)
            if placement.quality is not None:
                left_out.append(f"{placement.name}: its quality ({placement.quality.verdict})")
            if placement.answers:
                left_out.append(f"{placement.name}: its answers to {len(placement.answers)} questions")
            left_out += [
                f"{placement.name}: that {test.name} is a table's rounded average"
                for test in samples
                if rounded_average(campaign, placement.name, test) is not None
            ]
            rows.extend(_row(campaign, placement, test, samples_ns) for test, samples_ns in samples.items())
    return rows, left_out


def _samples(campaign: Campaign, placement: PlacementRecord, left_out: list[str]) -> dict[Test, list[int]]:
    samples: dict[Test, list[int]] = {}
    for run in campaign.runs:
        if run.placement != placement.name:
            continue
        if run.outcome != "finished":
            why = f" ({run.failure.kind})" if run.failure else ""
            left_out.append(f"{placement.name}: a run that was {run.outcome}{why}, {len(run.samples)} samples in it")
            continue
        for sample in run.samples:
            duration_ns = _duration_ns(sample)
            if duration_ns is None:
                left_out.append(f"{placement.name}: a sample of {sample.test.name}")
            else:
                samples.setdefault(sample.test, []).append(duration_ns)
    return samples


def _duration_ns(sample: Sample) -> int | None:
    """The test's duration by llama-bench's definition, which divides the *asked* tokens by it: where the engine
    counted one fewer (the first token of an answer costs no decode step), the time grows in proportion."""
    test = sample.test
    if test.kind not in ("pp", "tg", "pg"):
        return None
    prompt_ns = _scaled(sample.prompt_ns, test.prompt_tokens, sample.prompt_evaluated)
    decode_ns = _scaled(sample.decode_ns, test.generated_tokens, sample.decode_steps)
    return None if prompt_ns is None or decode_ns is None else (prompt_ns + decode_ns) or None


def _scaled(duration_ns: int | None, asked: int, counted: int | None) -> int | None:
    if not asked:
        return 0
    if duration_ns is None or not counted:
        return None
    return duration_ns if counted == asked else round(duration_ns * asked / counted)


def _row(campaign: Campaign, placement: PlacementRecord, test: Test, samples_ns: Sequence[int]) -> Row:
    known = placement.settings.get("llama_bench")
    kept = _kept(campaign, placement, test)
    tokens = test.prompt_tokens + test.generated_tokens
    asked: Row = {"n_prompt": test.prompt_tokens, "n_gen": test.generated_tokens, "n_depth": test.depth}
    averages = figures(tokens, samples_ns)
    row = {
        **DEFAULTS,
        **(known if isinstance(known, Mapping) else _described(campaign, placement)),
        **asked,
        "test_time": _utc(campaign.started),
        **averages,
        **kept,
    }
    # An export that was imported here may have held anything.
    typed_row = {column: typed(column, row[column]) for column in COLUMNS}
    # An average that came without its samples goes without them.
    return typed_row | {name: [] if "avg_ns" in kept else averages[name] for name in LISTS}


def _kept(campaign: Campaign, placement: PlacementRecord, test: Test) -> Row:
    """What an import kept of this row beside its runs; nothing where several rows were put together."""
    rows = _kept_rows(campaign, placement.name, test)
    names = ("test_time", *FIGURES) if len(rows) == 1 else ("test_time",)
    return {name: rows[0][name] for name in names if rows and name in rows[0]}


def _kept_rows(campaign: Campaign, placement: str, test: Test) -> list[Mapping[str, Any]]:
    kept = campaign.plan.get("llama_bench")
    rows = [row for row in kept if isinstance(row, Mapping)] if isinstance(kept, list) else []
    return [row for row in rows if (row.get("placement"), row.get("test")) == (placement, test.name)]


def rounded_average(campaign: Campaign, placement: str, test: Test) -> float | None:
    """The deviation in tokens per second of what a table gave as a rounded average; None for any other figure."""
    rows = _kept_rows(campaign, placement, test) if campaign.source == TABLE_SOURCE else []
    deviations = [row.get("stddev_ts") for row in rows]
    return max((float(value) for value in deviations if isinstance(value, int | float)), default=None)


def _described(campaign: Campaign, placement: PlacementRecord) -> Row:
    """llama-bench's columns for a placement that Trilithon measured. Unknown numbers are 0, as there."""
    model, settings, gpu = placement.model, placement.settings, campaign.board.get("gpu")
    build = re.search(r"\bb(?:uild )?(\d+)\b", placement.build_version)
    commit = re.search(r"\bcommit (\w+)", placement.build_version)
    flash = {word: number for number, word in _FLASH_ATTENTION.items()}
    simulated = simulation(campaign, placement)
    names = (model.get("name", ""), model.get("quantization", ""), f"({simulated})" if simulated else "")
    machine = {name: f"{simulated}, no hardware" for name in ("cpu_info", "gpu_info") if simulated}
    row = {
        "build_commit": commit[1] if commit else placement.build_version or placement.build,
        "build_number": int(build[1]) if build else 0,
        "cpu_info": str(campaign.board.get("description", "")),
        "gpu_info": _gpu(gpu if isinstance(gpu, Mapping) else {}, placement.unit),
        "backends": _BACKENDS.get(placement.unit, placement.unit.upper()),
        "model_filename": str(model.get("file") or model.get("name", "")),
        "model_type": " ".join(filter(None, map(str, names))),
        "model_size": model.get("size_bytes") or 0,
        "model_n_params": model.get("parameters") or 0,
        "cpu_mask": _mask(settings.get("cpus")),
        "flash_attn": flash.get(str(settings.get("flash_attention")), -1),
    }
    return (
        row | machine | {theirs: settings[ours] for theirs, ours in _SETTINGS.items() if settings.get(ours) is not None}
    )


def _gpu(gpu: Mapping[str, Any], unit: str) -> str:
    """A row without the name of a GPU would be one of the CPU."""
    return str(gpu.get("name") or gpu.get("driver") or ("unknown" if unit == "gpu" else ""))


def _mask(cpus: Any) -> str:
    numbers = cpus if isinstance(cpus, list | tuple) else ()
    whole = {number for number in numbers if isinstance(number, int) and 0 <= number < _MOST_CPUS}
    return hex(sum(1 << number for number in whole))


def _utc(started: str) -> str:
    """A campaign's label as llama-bench writes times; a label that is no time stays as it is."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return started
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
