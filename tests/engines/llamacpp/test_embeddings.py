"""A real llama.cpp makes vectors of texts when its settings say so."""

import asyncio
import json
import math
from pathlib import Path

from trilithon.engines.base import Placement, Settings
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.opening import open_runner
from trilithon.settings import load_configuration


def test_one_vector_per_text(tiny: Path, home: Path) -> None:
    configuration = load_configuration()
    build = LlamaCpp(configuration).builds()[-1]
    file = read_model_file(tiny, home)
    assert file.pooling == ""
    settings = Settings(threads=1, context=256, task="embed")
    placement = Placement(name="vectors", file=file, build=build, unit="cpu", settings=settings)

    async def scenario(placement: Placement) -> list[list[float]]:
        async with open_runner(placement, home / "runner", configuration) as runner:
            body = {"input": ["one stone", "two stones " * 10]}
            async with runner.relay("/v1/embeddings", body) as relayed:
                answer = json.loads(await relayed.read())
        return [entry["embedding"] for entry in answer["data"]]

    first, second = asyncio.run(scenario(placement))
    assert len(first) == len(second) == 64
    assert first != second
    assert math.isclose(sum(value * value for value in first), 1.0, rel_tol=1e-3)
