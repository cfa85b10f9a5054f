"""A new engine is one module and one line in the table: this one is written here, and measured, checked and listed."""

import json
from pathlib import Path

import pytest

from trilithon.bench import campaign
from trilithon.cli.main import run
from trilithon.engines.table import ENGINES

MODULE = '''
"""A pretend engine: the wheel's server under another name, which needs one thread to hold."""

from dataclasses import replace

from trilithon.engines.base import Build, Launch, ModelFile, Placement, FallbackStep, Settings, Unit
from trilithon.engines.llamacpp.argv import embedded_argv
from trilithon.settings import Configuration


class Pretend:
    name = "pretend"
    only_when_named = False

    def __init__(self, configuration: Configuration):
        pass

    def builds(self) -> list[Build]:
        return [Build(engine=self.name, name="only", version="5", units=("npu",), features=frozenset({"logprobs"}),
                      where="package pretend")]

    def missing(self) -> str:
        return ""

    def refusal(self, file: ModelFile, build: Build, unit: Unit, settings: Settings) -> str:
        return "" if file.format == "gguf" else "pretend runs GGUF files"

    def launch(self, placement: Placement, folder) -> Launch:
        slots, socket = folder / "slots", folder / "wire.sock"
        slots.mkdir(exist_ok=True)
        if placement.settings.micro_batch != 64:
            return Launch(argv=("/bin/sh", "-c", "echo pretend: the batch is too large; kill -SEGV $$"), socket=socket)
        return Launch(argv=embedded_argv(placement, socket, slots), socket=socket, tenancy="npu")

    def fallback_steps(self, placement: Placement) -> tuple[FallbackStep, ...]:
        return (FallbackStep(name="micro-batch 64", settings=replace(placement.settings, micro_batch=64)),)

    def remarks(self, placement: Placement, log: str) -> tuple[str, ...]:
        return ("the pretend engine only pretends",)
'''


@pytest.fixture(autouse=True)
def fifth(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def settle(*, limit_seconds: float) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(campaign, "settle", settle)
    monkeypatch.setattr(campaign, "measure_bandwidth", lambda _: 1e10)
    (home / "pretend_engine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(home)
    monkeypatch.setitem(ENGINES, "pretend", "pretend_engine:Pretend")
    monkeypatch.setenv("TRILITHON_NPU_LOCK", str(home / "rknpu.lock"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


@pytest.mark.slow
def test_it_is_measured_beside_the_others(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(tiny), "--test", "tg", "-n", "8", "-r", "1", "--no-quality", "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) >= 2  # unnamed, it is chosen by itself
    assert "the pretend engine only pretends" in err
    assert (
        "runs with micro-batch 64, because it failed with its own settings: start failed, segmentation fault (SIGSEGV)"
        in err
    )


def test_it_is_listed_checked_and_in_the_doctors_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["engines", "check", "pretend@only"]) == 0
    assert "pretend@only/npu works, with micro-batch 64" in capsys.readouterr().out
    assert run(["engines", "list"]) == 0
    assert "pretend@only" in capsys.readouterr().out
    run(["doctor"])
    assert "pretend@only/npu" in capsys.readouterr().out
