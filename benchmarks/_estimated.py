"""The measured halves of estimate.py: the memory of llama.cpp's process, and speeds after one campaign, both of models
with true sizes and random weights."""

import asyncio
import math
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from _placements import TESTS, opened, rates_of, resolved

from trilithon.bench.campaign import run_campaign
from trilithon.bench.prepare import prepare
from trilithon.bench.setup import CampaignSetup
from trilithon.board.chips import Chip, find_chip
from trilithon.board.snapshot import read_board
from trilithon.engines.wire.messages import Completion
from trilithon.estimate.answer import SpeedEstimate, Subject, estimates
from trilithon.estimate.local import measured_shift
from trilithon.estimate.predict import Phase
from trilithon.estimate.sizes import size_named
from trilithon.estimate.subjects.file_sizes import subject_of_file
from trilithon.models.files.gguf import read_gguf
from trilithon.models.synthetic.architectures import architectures
from trilithon.models.synthetic.true_size import plan_synthetic, write_synthetic
from trilithon.results.store.database import Store
from trilithon.settings import Configuration, load_configuration

__all__ = ["errors_here", "memory_errors"]

_PLACEMENT = "llama.cpp@embedded/cpu"
_LARGEST = 1.8e9  # parameters; larger ones do not fit beside others on a small machine
_MOST_BYTES = 3 << 30  # of one process
_CONTEXTS = (2048, 8192, 32_768)
_PROMPT_TOKENS = 520  # more than a micro-batch, so that its buffers are in use
_ROUNDS = 3


def memory_errors(every: int) -> Iterator[tuple[str, float]]:
    """Of every `every`th case: its name, and the logarithm of estimated over measured bytes."""
    with tempfile.TemporaryDirectory() as folder:
        configuration = _configuration(Path(folder))
        cases = [*product(_small(), ("Q4_0", "Q4_K_M", "Q8_0"), _CONTEXTS)]
        fitting = [case for case in cases if _estimated(*case).memory.total < _MOST_BYTES]
        for key, quantization, context in fitting[::every]:
            path = _written(key, quantization, Path(folder))
            measured = asyncio.run(_resident_bytes(path, context, configuration))
            path.unlink()
            name = f"{key} {quantization} {context}"
            estimated = _estimated(key, quantization, context).memory.total
            print(f"{name}: {measured >> 20} MiB, estimated {estimated / (1 << 20):.0f}", file=sys.stderr)
            yield name, math.log(estimated / measured)


def errors_here(campaign_model: str, quantization: str) -> Iterator[tuple[str, Phase, float]]:
    """After one campaign on that model: the logarithms of estimated over measured speed, for each other model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        configuration = _configuration(folder)
        path = _written(campaign_model, quantization, folder)
        setup = CampaignSetup(model=path, tests=TESTS, placements=(_PLACEMENT,), rounds=_ROUNDS, quality=False)
        configuration.data.mkdir(parents=True, exist_ok=True)
        with Store.open(configuration.results_database) as store:
            asyncio.run(run_campaign(prepare(setup, configuration), store, lambda _: None))
        path.unlink()
        board = read_board()
        chip = find_chip(board.chip) or Chip(name="this machine", compatible="", npu_cores=0)
        shift = measured_shift(configuration.results_database, board, chip.name)
        for key in (key for key in _small() if key != campaign_model):
            path = _written(key, quantization, folder)
            (row,) = estimates(subject_of_file(key, read_gguf(path)), [chip], engine="llama.cpp", shift=shift)
            (placement,) = resolved([_PLACEMENT], path, TESTS, configuration)
            rates = asyncio.run(rates_of(placement, configuration))
            path.unlink()
            speeds: dict[Phase, tuple[str, float]] = {
                "prefill": ("pp512", row.prefill.value),
                "decode": ("tg128", row.decode.value),
            }
            for phase, (test, estimated) in speeds.items():
                print(f"{key} {test}: {rates[test]:.1f}, estimated {estimated:.1f}", file=sys.stderr)
                yield key, phase, math.log(estimated / rates[test])


def _small() -> list[str]:
    return [key for key, model in architectures().items() if model.parameters < _LARGEST]


def _configuration(folder: Path) -> Configuration:
    return replace(load_configuration(), data=folder / "data", cache=folder / "cache")


def _written(key: str, quantization: str, folder: Path) -> Path:
    return write_synthetic(plan_synthetic(architectures()[key], quantization), folder / f"{key}-{quantization}.gguf")


def _estimated(key: str, quantization: str, context: int) -> SpeedEstimate:
    """By the name alone, as before a download."""
    size = size_named(key)
    assert size is not None, key
    machine = Chip(name="this machine", compatible="", npu_cores=0)
    subject = Subject(reference=key, size=size)
    return estimates(subject, [machine], engine="llama.cpp", quantization=quantization, context=context)[0]


async def _resident_bytes(path: Path, context: int, configuration: Configuration) -> int:
    """The most that the engine's process had in memory after a prompt: pages of the mapped file count."""
    (placement,) = resolved([_PLACEMENT], path, TESTS, configuration)
    placement = replace(placement, settings=replace(placement.settings, context=context))
    async with opened(placement, configuration) as runner:
        await runner.timed(Completion(prompt=[5] * _PROMPT_TOKENS, max_tokens=2, ignore_eos=True))
        status = Path(f"/proc/{runner.processes[0].pid}/status").read_text(encoding="utf-8")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) << 10
