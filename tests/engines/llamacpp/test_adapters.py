"""A LoRA adapter that belongs to a model changes what it answers."""

import asyncio
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from trilithon.engines.base import Placement, Settings
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.wire.messages import Completion
from trilithon.measure.divergence import kl_divergence
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.opening import open_runner
from trilithon.settings import load_configuration

RANK = 4


def write_adapter(path: Path, embedding: int = 64) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 64.0)
    random = np.random.default_rng(1)
    for name in ("blk.0.attn_q.weight", "blk.1.attn_output.weight"):
        writer.add_tensor(f"{name}.lora_a", random.standard_normal((RANK, embedding), dtype=np.float32))
        writer.add_tensor(f"{name}.lora_b", random.standard_normal((embedding, RANK), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_adapter_is_applied(tiny: Path, home: Path) -> None:
    configuration = load_configuration()
    build = LlamaCpp(configuration).builds()[-1]
    plain = read_model_file(tiny, home)
    adapted = replace(plain, adapters=((write_adapter(home / "adapter.gguf"), 1.0),))
    prompt = Completion(prompt=[5, 6, 7], max_tokens=1, candidates=64)

    async def next_of(number: int) -> dict[int, float]:
        file = (plain, adapted)[number]
        placement = Placement(name="x", file=file, build=build, unit="cpu", settings=Settings(threads=1, context=256))
        async with open_runner(placement, home / f"runner{number}", configuration) as runner:
            found, _ = await runner.distribution(prompt)
        return {candidate.token: candidate.logprob for candidate in found}

    async def both() -> tuple[dict[int, float], dict[int, float]]:
        return await next_of(0), await next_of(1)

    without, with_adapter = asyncio.run(both())
    assert kl_divergence(without, with_adapter) > 0.001
