"""The time of prefill and decode as a sum of physical terms, each times the exponential of effects that are learned."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from trilithon.estimate.rows import Family, Measurement
from trilithon.estimate.sizes import ModelSize, WeightBytes, bits_of, size_named, weights_of
from trilithon.tables import table_beside

__all__ = ["Case", "Term", "case_of", "decode_terms", "prefill_terms"]

_GIGA = 1e9
_KV_BITS = {"f16": 16.0, "q8_0": 8.5, "q4_0": 4.5}
# The maker of the engine measures with the highest clocks; everybody else is compared with it.
_MAKER = re.compile(r"airockchip/rknn-llm (README|benchmark)")
# What a layer costs beside its memory, and a layer that is not a plain one: a call of an NPU is dear, of a CPU cheap.
_LAYER_SECONDS = {"cpu": 1e-4, "gpu": 5e-5, "npu": 2e-4}
_FORM_SECONDS = {"cpu": 5e-5, "gpu": 5e-5, "npu": 4e-4}
# Until then llama.cpp evaluated the delta rule of Qwen3.5 by general operations.
_DELTA_KERNELS = "2026-04"
# What a number of an activation costs beside the multiplications, per layer.
_ROW_SECONDS = {"cpu": 1e-9, "gpu": 1e-11, "npu": 5e-9}
# Layers with a state are evaluated token by token, on CPU cores.
_SEQUENTIAL = frozenset({"state", "delta", "short", "gemma-3n"})
# An NPU multiplies this many rows at a time, however few tokens an expert gets (DeepSeek-OCR, published by the maker).
_EXPERT_ROWS = 128
_USUAL_THREADS = 4
Effects = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is estimated: a model on a machine. `prompt` are the tokens of a prefill, `depth` those before decode,
    `context` the most that the model is loaded for. `kernel` is the path of the CPU build: "fast", "plain", or "" where
    it is not known. `shared` are effects of the whole: the author, the threads, the memory clock."""

    size: ModelSize
    weights: WeightBytes
    machine: str
    family: Family
    quant: str
    pipeline: str = ""
    prompt: float = 512
    depth: float = 64
    kv_bits: float = 16
    kernel: str = ""
    embedding: bool = False
    shared: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """What effects of the machine are learned for: a chip, or any PC, of which the table has the rates."""
        return _place(self.machine)


@dataclass(frozen=True, slots=True)
class Term:
    """Seconds at the rates of machines.toml, and the effects whose sum is the logarithm of the factor to it."""

    seconds: float
    effects: Effects = field(default_factory=dict)


@cache
def machines() -> Mapping[str, Any]:
    return table_beside(__file__, "machines.toml")


@cache
def machine_rates(machine: str) -> Mapping[str, float]:
    """Peak rates of a chip or of a board by its name; empty for an unknown one."""
    table = machines()
    if machine.upper() in table["chips"]:
        rates: Mapping[str, float] = table["chips"][machine.upper()]
        return rates
    named = [name for name in table["boards"] if name.lower() in machine.lower()]
    # A card in parentheses is what computes.
    card = re.search(r"\(([^)]*)\)", machine)
    inside = [name for name in named if card and name.lower() in card[1].lower()]
    best = max(inside or named, key=len, default="")
    return table["boards"][best] if best else {}


def case_of(row: Measurement, kernel: str = "") -> Case | None:
    """The case that a row measured; None without the model's size or the bits of its quantisation."""
    size = size_named(row.model, row.params_b)
    family = row.family
    if family.pipeline:  # a fork that changes from month to month
        family = replace(family, fork=f"{family.fork} {row.date[:7]}")
    pipeline = _pipeline(row, family)
    if size is None:
        return None
    try:
        body, head = bits_of(row.quant, size.embedding)
    except KeyError:
        return None
    if pipeline:
        body = head = float(_families()["pipelines"][pipeline])
    depth = re.search(r"depth (\d{1,9})\b", row.notes)
    kv = re.search(r"(q[48]_0|f16) KV", row.notes)
    return Case(
        size=size,
        weights=weights_of(size, body, head),
        machine=row.machine,
        family=family,
        quant=row.quant.upper(),
        pipeline=pipeline,
        prompt=row.prompt_tokens or 512,
        depth=float(depth[1]) if depth else (row.prompt_tokens or 0) + (row.gen_tokens or 64) / 2,
        kv_bits=_KV_BITS[kv[1]] if kv else 16.0,
        kernel=kernel,
        embedding="EMBEDDING" in row.notes,
        shared=tuple(_shared(row, family, size)),
    )


def decode_terms(case: Case) -> tuple[list[Term], Effects]:
    """Of one token, and effects of the sum."""
    unit, size = ("cpu" if case.family.decode else case.family.unit), case.size
    family = case.family.decode or case.family.name
    rates = machine_rates(case.machine)
    bandwidth = rates.get("bandwidth", 20.0) * _GIGA
    rate = _rate_effects(case, "bandwidth", unit, family)
    form = {f"bits/{family}/{_bits_group(case)}": 1.0, f"bits/{family}/{_bits_group(case)}/{case.place}": 1.0}
    head = {f"head/{family}": 1.0}
    kv = case.size.cached_numbers(case.depth) * case.kv_bits / 8
    terms = [
        Term(case.weights.body / bandwidth, rate | form),
        Term(case.weights.head / bandwidth, rate | form | head),
        Term(size.layers * _LAYER_SECONDS[unit], {f"layer/{family}": 1.0, f"layer/{family}/{case.place}": 1.0}),
        Term(
            size.layers * size.embedding * 1e-7,
            {f"width/{family}": 1.0, f"width/{family}/{case.pipeline or case.place}": 1.0},
        ),
    ]
    terms += _form_terms(case, "decode", family, _FORM_SECONDS[unit])
    if kv > 0:
        terms.append(Term(kv / bandwidth, rate | {f"cache/{family}": 1.0}))
    if unit == "cpu":
        # Types of few bits are unpacked for each product: with fast memory or few threads the cores are what is short.
        peak = (rates.get("cpu") or 100.0) * _GIGA * min(_threads(case) / _USUAL_THREADS, 1.0)
        products = {f"math/{family}/{_bits_group(case)}": 1.0}
        terms.append(Term(2 * (size.read + size.head) / peak, _rate_effects(case, "compute", unit, family) | products))
    return terms, {f"{effect}/decode": 1.0 for effect in case.shared}


def prefill_terms(case: Case) -> tuple[list[Term], Effects]:
    """Of the whole prompt, and effects of the sum."""
    family, size, unit = case.family.name, case.size, case.family.unit
    rates = machine_rates(case.machine)
    bandwidth = rates.get("bandwidth", 20.0) * _GIGA
    peak = (rates.get(unit) or 100.0) * _GIGA
    rate = _rate_effects(case, "compute", unit, family)
    group = _bits_group(case)
    form = {f"math/{family}/{group}": 1.0, f"math/{family}/{group}/{case.place}": 1.0}
    if case.kernel:
        form[f"kernel/{family}/{group}/{case.kernel}"] = 1.0
    work = 2 * size.read * case.prompt
    if unit == "npu" and size.active is not None:
        work = max(work, 2 * size.body * min(case.prompt, _EXPERT_ROWS))
    attention_layers = size.layers if size.attention_layers is None else size.attention_layers
    pairs = 2 * 2 * (size.queries or size.embedding) * attention_layers * _pairs(case)
    once = case.weights.body if size.active is None or case.prompt < 16 else case.weights.held
    terms = [
        Term(work / peak, rate | form),
        Term(once / bandwidth, {f"load/{family}": 1.0, f"load/{family}/{case.place}": 1.0}),
        Term(size.layers * 1e-3, {f"step/{family}": 1.0, f"step/{family}/{case.place}": 1.0}),
        Term(
            size.layers * size.embedding * case.prompt * _ROW_SECONDS[unit],
            {f"rows/{family}": 1.0, f"rows/{family}/{case.place}": 1.0},
        ),
    ]
    if pairs > 0:
        scores = {f"attention/{family}": 1.0, f"attention/{family}/{case.family.fork}": 1.0}
        terms.append(Term(pairs / peak, rate | scores))
    if case.size.form in _SEQUENTIAL:
        slow = case.prompt * 1e-4 * 300 / rates.get("cpu", 300)
        terms += _form_terms(case, "prefill", family, slow)
    return terms, {f"{effect}/prefill": 1.0 for effect in case.shared}


def _threads(case: Case) -> int:
    """Few threads are stated by a publication; nobody measures with fewer than are fast without saying so."""
    few = (name.split("/")[1] for name in case.shared if name.startswith("threads/"))
    return next((int(number) for number in few if number.isdecimal()), _USUAL_THREADS)


def _place(machine: str) -> str:
    return machine.upper() if machine.upper() in machines()["chips"] else "PC"


def _pairs(case: Case) -> float:
    """Pairs of positions that attention compares, in the mean of the layers."""
    size, n = case.size, case.prompt
    layers = size.layers or 1
    share = min(size.window_layers / layers, 1.0)
    window = min(size.window or n, n)
    return (1 - share) * n * n / 2 + share * n * min(window, n / 2)


def _rate_effects(case: Case, kind: str, unit: str, family: str) -> Effects:
    known = bool(machine_rates(case.machine))
    effects = {
        f"{kind}/{unit}": 1.0,
        f"{kind}/{unit}/{case.place}": 1.0,
        f"{kind}/{family}": 1.0,
        f"{kind}/{family}/{case.place}": 1.0,
        f"{kind}/{family}/{case.family.fork}": 1.0,
    }
    if die := machines()["dies"].get(case.place):
        effects |= {f"{kind}/{unit}/{die} die": 1.0, f"{kind}/{family}/{die} die": 1.0}
    return effects if known else effects | {f"unknown/{kind}": 1.0}


def _form_terms(case: Case, phase: str, family: str, seconds: float) -> list[Term]:
    """What a layer costs beyond a dense one: a fixed state to update, or experts to choose. `seconds` for one layer of
    an embedding of 1,000."""
    size, unit = case.size, case.family.unit
    scale = size.layers * (1 + size.embedding / 1000) / 2 * seconds
    kinds = [*(["experts"] if size.active and phase == "decode" else []), *([size.form] if size.form else [])]
    return [
        Term(
            scale,
            {
                f"form/{phase}/{kind}/{unit}": 1.0,
                f"form/{phase}/{kind}/{family}": 1.0,
                f"layer/{family}/{case.place}": 1.0,
            },
        )
        for kind in kinds
    ]


def _bits_group(case: Case) -> str:
    return case.pipeline or case.quant


@cache
def _families() -> Mapping[str, Any]:
    return table_beside(__file__, "families.toml")


def _pipeline(row: Measurement, family: Family) -> str:
    if not family.pipeline:
        return ""
    named = re.search(r"W(16A16|8A8|4A4)", row.notes)
    if named:
        return f"W{named[1]}"
    return str(_families()["pipeline_of"].get(row.quant.upper(), ""))


def _shared(row: Measurement, family: Family, size: ModelSize) -> list[str]:
    words, notes = row.threads_or_cores.lower(), row.notes
    effects = []
    if size.form == "delta" and "2026-01" <= row.date < _DELTA_KERNELS:
        effects.append(f"early/{family.name}")
    if cores := re.search(r"([12]) NPU core", row.threads_or_cores):
        effects.append(f"npu-cores/{cores[1]}/{_place(row.machine)}")
    if "528 MHz" in notes and "performance" not in notes:
        effects.append(f"memory-clock/{family.name}")
    if threads := _stated_threads(row, words):
        # Where an NPU decodes, the cores wait for it most of the time.
        decoding = "npu/" if family.unit == "npu" and not family.decode else ""
        effects.append(f"threads/{threads}/{decoding}{_place(row.machine)}")
    if family.name == "vendor-npu":
        version = re.search(r"\d+\.\d+\.\d+", row.engine)
        effects.append(f"version/{family.name}/{version[0] if version else 'unknown'}")
        if _MAKER.match(row.source):
            return effects
        return [*effects, "user/vendor-npu", f"author/{row.source}"]
    return [*effects, f"source/{row.source}"]


def _stated_threads(row: Measurement, words: str) -> str:
    if re.search(r"8 threads|-t 8|8 cores|all cores", words):
        return "all"
    if re.search(r"unpinned|^default|6 threads|^\d$", words):
        return "unpinned"
    if few := re.search(r"^([123]) threads", words):
        return few[1]
    return "little" if "A55" in row.threads_or_cores else ""
