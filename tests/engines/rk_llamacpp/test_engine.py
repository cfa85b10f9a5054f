"""rk-llama.cpp by its stand-in (rk_standin/): what is refused before anything starts, what is said, what is proven.

The names of the traps are those of the facts about the fork, by what happens to people.
"""

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from trilithon.bench import campaign as campaign_module
from trilithon.bench import prepare as prepare_module
from trilithon.bench.campaign import run_campaign
from trilithon.bench.prepare import prepare
from trilithon.bench.setup import CampaignSetup
from trilithon.board.snapshot import Board, read_board
from trilithon.board.sysfs import Machine
from trilithon.engines.base import Build, Placement, Settings
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.rk_llamacpp import engine as rk_llamacpp
from trilithon.engines.rk_llamacpp.backend import Backend, read_backend
from trilithon.engines.rk_llamacpp.engine import RkLlamaCpp
from trilithon.engines.rk_llamacpp.options import choice, refusal_of_options
from trilithon.engines.wire.messages import Completion
from trilithon.errors import ChildDied, PlacementError, StartError, TaintedAnswer
from trilithon.measure.records import Campaign, Test
from trilithon.models.files.gguf import read_gguf
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.models.synthetic.architectures import find_architecture
from trilithon.models.synthetic.tiny import requantise, write_tiny_model
from trilithon.models.synthetic.true_size import plan_synthetic, write_synthetic
from trilithon.results.store.database import Store
from trilithon.results.verdict import recommended, verdict_sentence
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration

STANDIN = Path(__file__).parent / "standin" / "llama_server.py"
# What the stand-in asks for, where this machine's hard limit is below what the fork needs.
FILES = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
ASK = Completion(prompt=[5, 6, 7], max_tokens=4, ignore_eos=True)


class Fork(NamedTuple):
    engine: RkLlamaCpp
    build: Build


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No llama-server of this machine's, and a lock of our own."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TRILITHON_NPU_LOCK", str(tmp_path / "rknpu.lock"))


def plant(root: Path, chip: str, *, driver: str = "RKNPU", limit: int = 1048576, version: str = "0.9.8") -> Board:
    """This machine's CPUs and memory, and around them a board with that chip."""
    name = f"rockchip,{chip.lower()}"
    files = {
        "/proc/device-tree/compatible": f"{name}-board\0{name}\0",
        "/proc/self/limits": f"Max open files            1024                 {limit}              files\n",
        "/sys/class/devfreq/dmc/governor": "dmc_ondemand\n",
        "/dev/dri/renderD129": "",
        "/dev/accel/accel0": "",
    }
    if driver == "RKNPU":
        files["/sys/module/rknpu/version"] = f"{version}\n"
    for path in ("/proc/cpuinfo", "/proc/meminfo", "/proc/self/status", "/sys/devices/system/cpu/online"):
        if Path(path).exists():
            files[path] = Path(path).read_text()
    for path, text in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    for device, belongs in (("drm/renderD129", "RKNPU"), ("accel/accel0", "rocket")):
        if driver == belongs:
            link = root / "sys/class" / device / "device/driver"
            link.parent.mkdir(parents=True)
            link.symlink_to(f"../../../../bus/platform/drivers/{driver}")
    return read_board(Machine(root))


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return plant(tmp_path / "board", "RK3588")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A stand-in of each kind, installed once."""
    known: dict[str, Path] = {}

    def find(**needs: Any) -> Path:
        kind = json.dumps(needs, sort_keys=True)
        if kind not in known:
            known[kind] = tmp_path_factory.mktemp("fork")
            install(known[kind], needs)
        return known[kind]

    return find


@pytest.fixture
def fork(tmp_path: Path, board: Board, installed: Callable[..., Path]) -> Callable[..., Fork]:
    """`fork("unimatrix099", faults=["iommu"], board=…)`: its stand-in, as the engine finds it."""

    def make(lineage: str = "origin", *, board: Board = board, **needs: Any) -> Fork:
        folder = installed(**{"lineage": lineage, "open_files": FILES, **needs})
        configuration = Configuration(data=tmp_path / "data", cache=folder.parent / "cache", builds=(folder,))
        engine = RkLlamaCpp(configuration, lambda: board)
        return Fork(engine, engine.builds()[0])

    return make


def install(folder: Path, needs: dict[str, Any]) -> None:
    subprocess.run([sys.executable, STANDIN, "--install", folder, json.dumps(needs)], check=True)


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> ModelFile:
    return read_model_file(tiny, tmp_path / "cache")


def placement(fork: Fork, file: ModelFile, settings: Settings | None = None, **options: str) -> Placement:
    settings = settings or Settings(threads=1, context=256)
    settings = replace(settings, options=(*settings.options, *options.items()))
    return Placement(name="rk-llama.cpp/npu", file=file, build=fork.build, unit="npu", settings=settings)


def refused(fork: Fork, file: ModelFile, settings: Settings | None = None, **options: str) -> str:
    where = placement(fork, file, settings, **options)
    said = fork.engine.refusal(file, fork.build, "npu", where.settings)
    assert "\n" not in said
    return said


def remarks(fork: Fork, file: ModelFile, log: str = "", settings: Settings | None = None, **options: str) -> str:
    said = fork.engine.remarks(placement(fork, file, settings, **options), log)
    assert all("\n" not in each for each in said)
    return "\n".join(said)


def environment(fork: Fork, file: ModelFile, folder: Path, **options: str) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    return dict(fork.engine.launch(placement(fork, file, **options), folder).environment)


def run(fork: Fork, where: Placement, folder: Path, body: Callable[[Runner], Awaitable[None]] | None = None) -> str:
    """Load it, ask it something; its log."""

    async def whole() -> None:
        async with Runner.open(fork.engine, where, folder, start_seconds=60, hang_seconds=20) as runner:
            await (body(runner) if body else runner.complete(ASK))

    asyncio.run(whole())
    return (folder / "log").read_text()


def seen(log: str) -> dict[str, Any]:
    line = next(line for line in log.splitlines() if line.startswith("stand-in: {"))
    told: dict[str, Any] = json.loads(line.removeprefix("stand-in: "))
    return told


# -- finding it


@pytest.mark.parametrize("lineage", ["origin", "unimatrix099", "mojo24x7", "pty819"])
def test_a_fork_and_its_lineage_are_recognised(fork: Callable[..., Fork], lineage: str) -> None:
    engine, build = fork(lineage)
    assert (build.engine, build.name, build.units) == ("rk-llama.cpp", lineage, ("npu",))
    assert build.version == "8673 (8df5be13c)"
    assert [(device.id, device.unit, device.memory_bytes) for device in build.devices] == [("RKNPU", "npu", None)]
    assert engine.missing() == ""


def test_it_is_not_taken_for_plain_llama_cpp(fork: Callable[..., Fork], tmp_path: Path) -> None:
    where = fork().build.where
    configuration = Configuration(data=tmp_path, cache=tmp_path, builds=(Path(where).parent,))
    assert where not in {build.where for build in LlamaCpp(configuration).builds()}
    none = RkLlamaCpp(Configuration(data=tmp_path, cache=tmp_path))
    assert none.builds() == []
    assert none.missing().endswith("trilithon engines install rk-llama.cpp")


def test_two_of_one_lineage_have_two_names(tmp_path: Path, board: Board) -> None:
    folders = (tmp_path / "a", tmp_path / "b")
    for folder in folders:
        install(folder, {"lineage": "pty819"})
    engine = RkLlamaCpp(Configuration(data=tmp_path, cache=tmp_path, builds=folders), lambda: board)
    assert [build.name for build in engine.builds()] == ["pty819", "pty819.2"]


def test_the_library_is_read_and_never_loaded(tmp_path: Path) -> None:
    library = tmp_path / "libggml-rknpu2.so"
    library.write_bytes(b"\0RKNPU_FUSE_GLUE_X\0xRKNPU_FA_KSKIP2\0RKNPU_DEVICE\0")
    assert read_backend(library, "1").lineage == "origin"  # parts of longer names say nothing
    assert read_backend(library, "1").variables == {"RKNPU_FUSE_GLUE_X", "RKNPU_FA_KSKIP2", "RKNPU_DEVICE"}
    library.write_bytes(b"")
    assert "unknown back end" in read_backend(library, "2").stranger


@hypothesis_settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_trouble_it(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    library = tmp_path_factory.mktemp("any") / "libggml-rknpu2.so"
    library.write_bytes(content)
    assert isinstance(read_backend(library, "x"), Backend)


# -- refused before anything starts


@pytest.mark.parametrize("chip", ["RK3568", "RK3566", "RK3562"])
def test_a_chip_without_a_configuration(fork: Callable[..., Fork], file: ModelFile, tmp_path: Path, chip: str) -> None:
    it = fork(board=plant(tmp_path / "other", chip))
    assert refused(it, file) == (
        f"rk-llama.cpp has no configuration for the {chip}, only for RK3588, RK3588S, RK3582, RK3576; "
        "use another engine"
    )
    assert refused(it, file, pipeline="W8A8_STANDARD").startswith("rk-llama.cpp has no configuration")
    with pytest.raises(PlacementError, match="no configuration"):
        it.engine.launch(placement(it, file), tmp_path)


@pytest.mark.parametrize(("chip", "device"), [("RK3588", "RK3588"), ("RK3588S", "RK3588"), ("RK3582", "RK3588")])
def test_the_device_comes_from_the_board(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path, chip: str, device: str
) -> None:
    it = fork(board=plant(tmp_path / "other", chip))
    assert environment(it, file, tmp_path / "x")["RKNPU_DEVICE"] == device
    rk3576 = fork(board=plant(tmp_path / "rk3576", "RK3576"))
    assert environment(rk3576, file, tmp_path / "x")["RKNPU_DEVICE"] == "RK3576"


def test_a_machine_without_an_npu(fork: Callable[..., Fork], file: ModelFile, board: Board) -> None:
    assert "has no Rockchip NPU" in refused(fork(board=replace(board, npu=None)), file)
    hidden = replace(board, npu=None, device_tree_hidden=True)
    assert refused(fork(board=hidden), file).startswith("the device tree is hidden here")


def test_trap_mainlines_driver_cannot_serve_the_runtime(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path
) -> None:
    it = fork(board=plant(tmp_path / "other", "RK3588", driver="rocket"))
    assert "is used by mainline's rocket driver, and its runtimes need the vendor's" in refused(it, file)
    none = fork(board=plant(tmp_path / "none", "RK3588", driver="none"))
    assert "driver is not loaded" in refused(none, file)


def test_a_device_that_may_not_be_opened(fork: Callable[..., Fork], file: ModelFile, board: Board) -> None:
    assert board.npu is not None
    closed = tuple(replace(node, usable=False) for node in board.npu.nodes)
    it = fork(board=replace(board, npu=replace(board.npu, nodes=closed)))
    assert refused(it, file) == "this user may not open /dev/dri/renderD129; see trilithon doctor"


def test_other_programs_of_a_like_name(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path, board: Board
) -> None:
    assert "is not rk-llama.cpp but ggml-rknpu2" in refused(fork("ggml-rknpu2"), file)
    assert "--list-devices shows no RKNPU" in refused(fork(lists=False), file)
    install(tmp_path / "rocket", {"lineage": "origin"})
    (tmp_path / "rocket" / "libggml-rknpu2.so").rename(tmp_path / "rocket" / "libggml-rocket.so")
    engine = RkLlamaCpp(Configuration(data=tmp_path, cache=tmp_path, builds=(tmp_path / "rocket",)), lambda: board)
    assert "uses mainline's rocket driver, which Trilithon does not support" in refused(
        Fork(engine, engine.builds()[0]), file
    )


def test_trap_neither_layers_nor_device_none_keep_work_off_the_npu(fork: Callable[..., Fork], file: ModelFile) -> None:
    """So that the CPU is no unit of it, and nothing measured as the CPU's can come from it."""
    it = fork()
    assert it.build.units == ("npu",)
    said = it.engine.refusal(file, it.build, "cpu", Settings())
    assert said == "rk-llama.cpp always uses the NPU; use llama.cpp/cpu, or pipeline=CPU_STANDARD"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"pipeline": "W4A16_STANDARD"},
            "pipeline W4A16_STANDARD does not exist for the RK3588; there are W16A16_STANDARD,",
        ),
        ({"pipeline": "W8A8_STANDARD+"}, "pipeline (empty) does not exist for the RK3588"),
        ({"pipeline": "w8a8_hadamard"}, "pipeline w8a8_hadamard does not exist"),
        ({"cores": "0-3"}, "cores=0-3: the RK3588 has cores 0 to 2"),
        ({"cores": "all"}, "cores=all is not valid; write cores=0 or cores=0-1 or cores=0+2"),
        ({"domains": "16"}, "domains=16: the RK3588 has domains 0 to 15"),
        ({"cpu_decode": "32"}, "origin cannot decode on the CPU"),
        ({"repack": "maybe"}, "write repack=on or repack=off"),
        ({"speed": "high"}, "unknown option speed; there are pipeline, cores, domains, cpu_decode, repack"),
        ({"RKNPU_FA_ONLINE_MIN": "4096"}, "this build (origin) does not read RKNPU_FA_ONLINE_MIN; leave it out"),
        ({"RKNPU_DEVICE": "RK3576"}, "RKNPU_DEVICE comes from the board; leave it out"),
        ({"RKNPU_HYBRID": "W4A4_HADAMARD"}, "RKNPU_HYBRID has an option; write pipeline="),
    ],
)
def test_options_that_do_not_fit(
    fork: Callable[..., Fork], file: ModelFile, options: dict[str, str], said: str
) -> None:
    assert said in refused(fork(), file, **options)


def test_rk3576_cannot_multiply_in_4_bits(fork: Callable[..., Fork], file: ModelFile, tmp_path: Path) -> None:
    it = fork(board=plant(tmp_path / "other", "RK3576"))
    assert "W4A4_HADAMARD does not exist for the RK3576" in refused(it, file, pipeline="W4A4_HADAMARD")
    assert "the RK3576 has cores 0 to 1" in refused(it, file, cores="2")
    assert refused(it, file, cores="0-1") == ""


def test_files_and_kv_types(fork: Callable[..., Fork], file: ModelFile) -> None:
    assert "runs GGUF files" in refused(fork(), replace(file, format="rkllm"))
    assert "needs flash attention" in refused(fork(), file, Settings(kv_type_v="q8_0", flash_attention="off"))
    assert refused(fork(), file) == ""


def test_trap_pictures_are_read_on_the_cpu(fork: Callable[..., Fork]) -> None:
    """12.5 s each: so it is not offered here, and left to plain llama.cpp."""
    assert "vision" not in fork().build.features


# -- what it is told


def test_nothing_is_left_to_the_forks_defaults(fork: Callable[..., Fork], file: ModelFile, tmp_path: Path) -> None:
    assert environment(fork(), file, tmp_path / "x") == {"RKNPU_DEVICE": "RK3588", "RKNPU_HYBRID": "W8A8_HADAMARD"}
    chosen = environment(
        fork("unimatrix099"),
        file,
        tmp_path / "x",
        pipeline="W8A8_STANDARD+W4A4_HADAMARD",
        cores="0+2",
        domains="0-3+9",
        cpu_decode="32",
        RKNPU_FA_ONLINE_MIN="4096",
    )
    assert chosen == {
        "RKNPU_DEVICE": "RK3588",
        "RKNPU_HYBRID": "W8A8_STANDARD,W4A4_HADAMARD",
        "RKNPU_CORES": "0,2",
        "RKNPU_DOMAINS": "0-3,9",
        "RKNPU_CPU_DECODE": "32",
        "RKNPU_FA_ONLINE_MIN": "4096",
    }


def test_trap_a_long_context_by_default_ends_in_no_output(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path
) -> None:
    """And the mapped file is needed by the packing of two forks; a big mixture of experts may do without repacking."""
    it = fork()
    words = it.engine.launch(placement(it, file, Settings()), tmp_path).argv
    assert words[words.index("--ctx-size") + 1] == "4096"
    assert not {"--no-mmap", "--no-repack", "--device"} & set(words)
    assert it.engine.launch(placement(it, file, repack="off"), tmp_path).argv[-1] == "--no-repack"


def test_trap_a_variable_whose_mere_presence_counts_is_never_0(fork: Callable[..., Fork], file: ModelFile) -> None:
    it = fork("mojo24x7")
    for value in ("0", "off", ""):
        assert "would turn it on, because the build only checks whether it is set" in refused(
            it, file, RKNPU_GLUE=value
        )
    assert refused(it, file, RKNPU_GLUE="1", RKNPU_GLUE_THREADS="0") == ""


def test_limits_cpus_and_a_clean_environment(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap: a soft limit of 1,024 files ends in a crash; the user's own variables would turn settings unseen."""
    monkeypatch.setenv("RKNPU_HYBRID", "W4A4_STANDARD")
    monkeypatch.setenv("RKNPU_DOMAINS", "3")
    monkeypatch.setenv("GGML_RKNPU_DISABLE", "1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    cpu = min(os.sched_getaffinity(0))
    try:
        it = fork()
        log = run(it, placement(it, file, Settings(threads=1, context=256, cpus=(cpu,))), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen(log)["environment"] == {"RKNPU_DEVICE": "RK3588", "RKNPU_HYBRID": "W8A8_HADAMARD"}
    assert seen(log)["files"] == FILES
    assert seen(log)["cpus"] == [cpu]
    assert it.engine.launch(placement(it, file), tmp_path).exclusive == "npu"


# -- what is said before


def test_trap_four_bits_are_never_chosen_silently(fork: Callable[..., Fork], file: ModelFile, tmp_path: Path) -> None:
    for kind, own in (("Q4_0", "W4A4_HADAMARD"), ("Q6_K", "W8A8_STANDARD+W4A4_HADAMARD")):
        quantized = replace(file, quantization=kind)
        assert environment(fork(), quantized, tmp_path / "x")["RKNPU_HYBRID"] == "W8A8_HADAMARD"
        said = f"runs in 8 bits: by default the fork would run {kind} in 4; for that, add pipeline={own}"
        assert said in remarks(fork(), quantized)
        asked = remarks(fork(), quantized, pipeline=own)
        assert "runs in 8 bits" not in asked
        assert "W4A4_HADAMARD computes in 4 bits: perplexity 26 became 41" in asked
    assert "runs in 8 bits" not in remarks(fork(), replace(file, quantization="Q8_0"))


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        ("W8A8_STANDARD", "W8A8_STANDARD gave the reference's first choice at 88% of the tokens"),
        ("W4A4_STANDARD", "gave garbage on a 1B model"),
        ("W16A16_STANDARD", "matrices wider than 4,096 run at an eighth of its speed"),
    ],
)
def test_what_is_known_of_a_pipeline(fork: Callable[..., Fork], file: ModelFile, pipeline: str, said: str) -> None:
    assert said in remarks(fork(), file, pipeline=pipeline)


@pytest.mark.parametrize(
    ("lineage", "quantization", "stays"),
    [
        ("origin", "Q4_K_M", True),
        ("origin", "Q5_K_S", True),
        ("origin", "IQ4_XS", True),
        ("origin", "BF16", True),
        ("unimatrix099", "BF16", False),
        ("unimatrix099", "Q4_K_M", True),
        ("pty819", "Q4_K_M", False),
        ("mojo24x7", "Q8_0", False),
    ],
)
def test_trap_the_commonest_files_stay_on_the_cpu(
    fork: Callable[..., Fork], file: ModelFile, lineage: str, quantization: str, stays: bool
) -> None:
    said = remarks(fork(lineage), replace(file, quantization=quantization))
    assert (f"{quantization} mostly runs on the CPU: {lineage} runs " in said) == stays
    assert ("get a Q8_0 file" in said) == stays


def test_trap_models_that_were_wrong(fork: Callable[..., Fork], file: ModelFile) -> None:
    said = {
        (lineage, architecture): remarks(fork(lineage), replace(file, architecture=architecture))
        for lineage in ("origin", "unimatrix099")
        for architecture in ("gemma3n", "lfm2moe", "gpt-oss", "llama")
    }
    assert "Gemma 3n and Gemma 4 were garbage" in said["origin", "gemma3n"]
    assert "computed only in their first slice" in said["origin", "lfm2moe"]
    assert "garbage" not in said["unimatrix099", "gemma3n"]
    assert "slice" not in said["unimatrix099", "lfm2moe"]
    assert "garbage" not in said["origin", "llama"] and "slice" not in said["origin", "llama"]
    assert "loop" not in said["unimatrix099", "gpt-oss"]  # it gets the one pipeline that works
    other = remarks(fork(), replace(file, architecture="gpt-oss"), pipeline="W8A8_STANDARD")
    assert "any pipeline but W8A8_HADAMARD" in other


def test_trap_domains(fork: Callable[..., Fork], file: ModelFile) -> None:
    assert "freezes the whole system" in remarks(fork(), file, domains="0-3")
    assert "freezes" not in remarks(fork(), file)
    large = replace(file, parameters=3_000_000_000)
    assert "about 2.8 GiB of weights go to the NPU, and 1 IOMMU domain can hold 2.0 GiB" in remarks(
        fork(), large, domains="4"
    )
    assert "IOMMU" not in remarks(fork(), large)
    assert "IOMMU" not in remarks(fork(), large, domains="4", pipeline="W4A4_HADAMARD")


def test_trap_the_memory_idles_while_the_npu_works(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path, board: Board
) -> None:
    assert "run: echo performance | sudo tee /sys/class/devfreq/dmc/governor" in remarks(fork(), file)
    pinned = tuple(replace(clock, governor="performance") for clock in board.clocks)
    assert "governor" not in remarks(fork(board=replace(board, clocks=pinned)), file)


def test_limits_and_drivers_that_others_had_trouble_with(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path
) -> None:
    few = fork(board=plant(tmp_path / "few", "RK3588", limit=4096))
    assert "at most 4096 open files, 65536 are needed" in remarks(few, file)
    old = fork(board=plant(tmp_path / "old", "RK3588", version="0.9.2"))
    assert "the NPU driver is 0.9.2; all reports of success are with 0.9.8" in remarks(old, file)


def test_flash_attention_and_micro_batch(fork: Callable[..., Fork], file: ModelFile) -> None:
    settings = Settings(context=16384, micro_batch=256)
    assert "runs on the NPU with -ub 512 only" in remarks(fork("unimatrix099"), file, settings=settings)
    assert "costs a fifth of prefill" in remarks(fork(), file, settings=settings)
    off = replace(settings, flash_attention="off")
    assert "flash" not in remarks(fork(), file, settings=off) + remarks(fork("unimatrix099"), file, settings=off)


# -- what its log proves


def test_offload_is_proven(fork: Callable[..., Fork], tiny: Path, tmp_path: Path) -> None:
    model = read_model_file(requantise(tiny, tmp_path / "q8.gguf", "Q8_0"), tmp_path)
    for old in (False, True):
        it = fork(old=old)
        log = run(it, placement(it, model), tmp_path / f"run{old}")
        assert seen(log)["words"].get("verbosity") == (None if old else "4")
        assert "on the NPU: 163.8 KiB of weights, W8A8_HADAMARD" in remarks(it, model, log)


@pytest.mark.parametrize(
    ("log", "options", "said"),
    [
        ("RKNPU model buffer size =   812.50 MiB", {}, "on the NPU: 812.5 MiB of weights, W8A8_HADAMARD"),
        ("CPU_Mapped model buffer size = 9.00 MiB", {}, "NOT on the NPU: the log shows no weights there"),
        ("CPU model buffer size = 9 MiB\nRKNPU model buffer size =  0.00 MiB", {}, "NOT on the NPU"),
        ("main: model loaded", {}, "unknown whether the NPU is used"),
        ("still loading", {}, None),
        ("CPU model buffer size = 9 MiB", {"pipeline": "CPU_STANDARD"}, None),
    ],
)
def test_what_logs_say_of_offload(
    fork: Callable[..., Fork], file: ModelFile, log: str, options: dict[str, str], said: str | None
) -> None:
    found = remarks(fork(), file, log, **options)
    if said:
        assert said in found
    else:
        assert "on the NPU:" not in found and "NOT on" not in found and "unknown whether" not in found


def test_trap_a_file_that_stays_on_the_cpu_is_shown_by_its_log(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path
) -> None:
    """All the same it runs, and llama-bench would call it RKNPU."""
    it = fork("mojo24x7")
    where = placement(it, file, pipeline="CPU_STANDARD")
    log = run(it, where, tmp_path / "run")
    as_if = placement(it, file)  # with a pipeline for the NPU, the same log is a finding
    assert any(each.startswith("NOT on the NPU") for each in it.engine.remarks(as_if, log))
    assert not any("NOT on" in each for each in it.engine.remarks(where, log))


def test_trap_refused_work_is_not_passed_over(fork: Callable[..., Fork], file: ModelFile, tmp_path: Path) -> None:
    it = fork(faults=["submit"])
    log = run(it, placement(it, file), tmp_path / "run")
    assert "the NPU failed, and what follows may be wrong: E RKNN: failed to submit!" in remarks(it, file, log)


# -- work that is refused in the middle of an answer, and the server goes on

REFUSED = "#submit and go on"
GOOD = "and go on"


def later(fork: Callable[..., Fork], file: ModelFile, folder: Path, body: Callable[[Runner], Awaitable[None]]) -> str:
    it = fork(faults=["later"])
    return run(it, placement(it, file, Settings(threads=1, context=1024, slots=2)), folder, body)


@pytest.mark.parametrize("form", ["complete", "timed", "distribution", "stream", "relay", "relayed stream", "chat"])
def test_refused_work_taints_every_form_of_answer(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path, form: str
) -> None:
    """Up to its end, and no further: an answer with an end is taken for a good one."""
    passed = bytearray()

    async def answer(runner: Runner, text: str) -> None:
        ask = Completion(prompt=text, max_tokens=3, ignore_eos=True, candidates=2 * (form == "distribution"))
        if form == "stream":
            async for event in runner.stream(ask):
                passed.extend(repr(event).encode())
        elif form in ("complete", "timed", "distribution"):
            passed.extend(repr(await getattr(runner, form)(ask)).encode())
        else:
            path = "/v1/chat/completions" if form == "chat" else "/completion"
            prompt: Any = {"messages": [{"role": "user", "content": text}]} if form == "chat" else {"prompt": text}
            body = {**prompt, "n_predict": 3, "ignore_eos": True, "stream": form != "relay"}
            async with runner.relay(path, body) as relayed:
                async for chunk in relayed.chunks():
                    passed.extend(chunk)

    async def body(runner: Runner) -> None:
        await answer(runner, GOOD)
        passed.clear()
        with pytest.raises(TaintedAnswer, match="E RKNN: failed to submit!, op id: 0, op name: MatMul") as caught:
            await answer(runner, REFUSED)
        assert caught.value.advice
        for end in (b"Finished", b"timings", b'"stop":true', b"[DONE]", b'"finish_reason":"'):
            assert end not in passed
        if "stream" in form or form == "chat":
            assert passed
        else:
            assert not passed
        await answer(runner, GOOD)

    later(fork, file, tmp_path / "run", body)


def test_keys_and_values_of_refused_work_are_erased(fork: Callable[..., Fork], file: ModelFile, tmp_path: Path) -> None:
    async def body(runner: Runner) -> None:
        ask = Completion(prompt=REFUSED * 8, max_tokens=2, ignore_eos=True, cache_prompt=True, slot=0)
        with pytest.raises(TaintedAnswer):
            await runner.complete(ask)
        cached = [(await runner.timed(replace(ask, prompt=text))).timings for text in (f"{GOOD}, then" * 9,) * 2]
        assert [timings.cache_n > 0 for timings in cached if timings] == [False, True]
        with pytest.raises(TaintedAnswer):
            await runner.complete(replace(ask, prompt=f"{GOOD}, then" * 9 + REFUSED))
        again = (await runner.timed(replace(ask, prompt=f"{GOOD}, then" * 9))).timings
        assert again and again.cache_n == 0

    later(fork, file, tmp_path / "run", body)


def test_an_answer_that_is_left_early_leaves_nothing_behind(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path
) -> None:
    text = f"{GOOD}, then" * 9

    async def body(runner: Runner) -> None:
        request = {"prompt": text + REFUSED, "n_predict": 200, "ignore_eos": True, "stream": True, "id_slot": 0}
        async with runner.relay("/completion", request) as relayed:
            await relayed.begun()
        timings = (await runner.timed(Completion(prompt=text, max_tokens=2, cache_prompt=True, slot=0))).timings
        assert timings and timings.cache_n == 0

    later(fork, file, tmp_path / "run", body)


def test_all_requests_that_are_open_are_tainted(fork: Callable[..., Fork], file: ModelFile, tmp_path: Path) -> None:
    """The log does not say whose error it is."""

    async def body(runner: Runner) -> None:
        ask = Completion(prompt=GOOD, max_tokens=200, ignore_eos=True)
        async with contextlib.aclosing(runner.stream(ask)) as events:
            await anext(events)
            with pytest.raises(TaintedAnswer):
                await runner.complete(replace(ask, prompt=REFUSED, max_tokens=1))
            with pytest.raises(TaintedAnswer):
                async for _ in events:
                    pass
        await runner.complete(ask)

    later(fork, file, tmp_path / "run", body)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/completion"])
def test_a_prompt_that_quotes_an_error_is_not_tainted(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path, path: str
) -> None:
    """Whatever of it the server logs."""
    text = "why this?\nE RKNN: [17:19:34.670] failed to submit!, op id: 0\nRKNPU: rknn_matmul_run failed ret=-1\n"
    prompt: Any = {"prompt": text} if path == "/completion" else {"messages": [{"role": "user", "content": text}]}

    async def body(runner: Runner) -> None:
        async with runner.relay(path, {**prompt, "n_predict": 3, "ignore_eos": True}) as relayed:
            assert json.loads(await relayed.read())

    later(fork, file, tmp_path / "run", body)


# -- how it dies


def dies(fork: Fork, where: Placement, folder: Path) -> StartError:
    with pytest.raises(StartError) as caught:
        run(fork, where, folder)
    return caught.value


@pytest.mark.parametrize(
    ("needs", "cause", "advice"),
    [
        ({"faults": ["iommu"]}, "out of NPU memory (IOMMU domains full)", "smaller model"),
        ({"open_files": 10**9}, "too many open files", "102400"),
        ({"faults": ["librknnrt"]}, "librknnrt.so is missing", "where it was compiled"),
        ({"faults": ["segfault"]}, "segmentation fault (SIGSEGV)", "other settings"),
    ],
)
def test_traps_that_end_it(
    fork: Callable[..., Fork], file: ModelFile, tmp_path: Path, needs: dict[str, Any], cause: str, advice: str
) -> None:
    it = fork(**needs)
    error = dies(it, placement(it, file), tmp_path / "run")
    assert error.cause == cause
    assert advice in error.advice


def test_a_device_that_it_does_not_know(fork: Callable[..., Fork], file: ModelFile, tmp_path: Path) -> None:
    """What would happen on a chip without a configuration, if it were not refused."""

    class Careless(RkLlamaCpp):
        def launch(self, placement: Placement, folder: Path) -> Any:
            launch = super().launch(placement, folder)
            return replace(launch, environment={**launch.environment, "RKNPU_DEVICE": "RK3568"})

    it = fork()
    careless = Fork(Careless(it.engine._configuration, it.engine._board), it.build)
    error = dies(careless, placement(it, file), tmp_path / "run")
    assert error.cause == "chip unknown to this build (RKNPU_DEVICE)"


# -- fallback steps


def test_the_fallback_steps_give_up_the_least_first(fork: Callable[..., Fork], file: ModelFile) -> None:
    it = fork("unimatrix099")
    steps = it.engine.fallback_steps(placement(it, file))
    assert [step.name for step in steps] == [
        "flash attention off",
        "pipeline W8A8_STANDARD",
        "pipeline W16A16_STANDARD",
        "one NPU core",
        "decode on the CPU",
        "NPU not used",
    ]
    last = steps[-1].settings
    assert last.flash_attention == "off"
    assert dict(last.options) == {"pipeline": "CPU_STANDARD", "cores": "0", "cpu_decode": "32"}
    for step in steps:
        assert it.engine.refusal(file, it.build, "npu", step.settings) == ""


def test_decode_on_the_cpu_and_the_models_own_guesses_exclude_each_other(
    fork: Callable[..., Fork], file: ModelFile
) -> None:
    it = fork("unimatrix099")
    both = Settings(speculation="draft-mtp", options=(("cpu_decode", "32"),))
    assert "leave cpu_decode or spec=draft-mtp out" in it.engine.refusal(file, it.build, "npu", both)
    for alone in (replace(both, options=()), replace(both, speculation="ngram-mod")):
        assert it.engine.refusal(file, it.build, "npu", alone) == ""
    steps = it.engine.fallback_steps(placement(it, file, Settings(speculation="draft-mtp")))
    assert "decode on the CPU" not in [step.name for step in steps]
    for step in steps:
        assert it.engine.refusal(file, it.build, "npu", step.settings) == ""


def test_steps_that_do_not_apply(fork: Callable[..., Fork], file: ModelFile) -> None:
    it = fork()
    options = (("pipeline", "W4A4_HADAMARD"), ("cores", "1"))
    settings = Settings(kv_type_v="q8_0", flash_attention="on", options=options)
    huge = replace(file, parameters=10**13)
    names = [step.name for step in it.engine.fallback_steps(placement(it, huge, settings))]
    assert names == ["pipeline W8A8_HADAMARD", "pipeline W8A8_STANDARD", "NPU not used"]
    bottom = placement(it, file, Settings(flash_attention="off"), pipeline="CPU_STANDARD", cores="0")
    assert it.engine.fallback_steps(bottom) == ()


def test_a_step_avoids_the_crash(fork: Callable[..., Fork], file: ModelFile, tmp_path: Path) -> None:
    it = fork(faults=["segfault@W8A8_HADAMARD", "iommu@W8A8_STANDARD"])
    where = placement(it, file)
    worked = []
    for number, step in enumerate(it.engine.fallback_steps(where)):
        try:
            run(it, replace(where, settings=step.settings), tmp_path / str(number))
        except (StartError, ChildDied):
            continue
        worked.append(step.name)
        break
    assert worked == ["pipeline W16A16_STANDARD"]


# -- options as text


numbers = st.lists(st.integers(0, 2), min_size=1, max_size=3)


@given(numbers, st.lists(st.integers(0, 15), min_size=1), st.sampled_from(["W8A8_STANDARD", "W4A4_HADAMARD"]))
def test_lists_come_out_as_the_fork_reads_them(cores: list[int], domains: list[int], pipeline: str) -> None:
    options = (
        ("cores", "+".join(map(str, cores))),
        ("domains", "+".join(map(str, domains))),
        ("pipeline", f"{pipeline}+CPU_STANDARD"),
    )
    settings = Settings(options=options)
    backend = Backend(lineage="origin", variables=frozenset({"RKNPU_DEVICE"}))
    assert refusal_of_options(settings, backend, "RK3588") == ""
    chosen = choice(settings)
    assert chosen.environment["RKNPU_CORES"] == ",".join(str(core) for core in sorted(set(cores)))
    assert set(chosen.domains) == set(domains)
    assert chosen.environment["RKNPU_HYBRID"] == f"{pipeline},CPU_STANDARD"


@given(st.sampled_from(["pipeline", "cores", "domains", "cpu_decode", "repack", "RKNPU_X", "x"]), st.text(max_size=20))
def test_any_text_is_judged(name: str, value: str) -> None:
    settings = Settings(options=((name, value),))
    backend = Backend(lineage="unimatrix099", variables=frozenset({"RKNPU_CPU_DECODE", "RKNPU_X"}))
    if not refusal_of_options(settings, backend, "RK3588"):
        assert choice(settings).environment["RKNPU_HYBRID"]


# -- a campaign

CRASHING, SPOILT = (f"rk-llama.cpp/npu:fa=off,pipeline={name}" for name in ("W16A16_HADAMARD", "W4A4_STANDARD"))
TESTS = (Test(kind="pp", prompt_tokens=16), Test(kind="tg", generated_tokens=8))


@pytest.fixture
def measure(
    fork: Callable[..., Fork], tmp_path: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Campaign]:
    """A campaign of one round on the planted board, with a stand-in that crashes with one pipeline."""

    async def settle(*, limit_seconds: float) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(campaign_module, "settle", settle)
    monkeypatch.setattr(campaign_module, "measure_bandwidth", lambda _: 1e10)
    monkeypatch.setattr(rk_llamacpp, "read_board", lambda: board)
    monkeypatch.setattr(prepare_module, "read_board", lambda *_: board)
    folder = Path(fork(faults=["segfault@W16A16_HADAMARD"]).build.where).parent
    settings = Configuration(data=tmp_path / "data", cache=tmp_path / "cache", start_seconds=30.0, hang_seconds=20.0)

    def measure(model: Path, *placements: str, quality: bool, build: Path = folder) -> Campaign:
        configuration = replace(settings, builds=(build,))
        plan = CampaignSetup(model=model, tests=TESTS, placements=placements, rounds=1, quality=quality)
        with Store.open(configuration.results_database) as store:
            number = asyncio.run(run_campaign(prepare(plan, configuration), store, lambda _: None))
            return store.campaign(number)

    return measure


def remarked(campaign: Campaign) -> dict[str, str]:
    return {run.placement: "\n".join(run.remarks) for run in campaign.runs}


@pytest.mark.slow
def test_a_campaign_holds_it_against_the_cpu(measure: Callable[..., Campaign], tiny: Path) -> None:
    found = measure(tiny, "llama.cpp/cpu", "rk-llama.cpp/npu", CRASHING, quality=False)
    assert {run.outcome for run in found.runs} == {"finished"}
    assert len(remarked(found)) == 3
    assert "KiB of weights, W8A8_HADAMARD" in remarked(found)["rk-llama.cpp/npu"]
    avoided = (
        "runs with pipeline W16A16_STANDARD, because it failed with its own settings: start failed, segmentation fault"
    )
    assert avoided in remarked(found)[CRASHING]


def test_by_itself_it_is_measured_where_the_board_has_an_npu(measure: Callable[..., Campaign], tiny: Path) -> None:
    found = measure(tiny, quality=False)
    assert {"llama.cpp/cpu", "rk-llama.cpp/npu"} <= {name.replace("@embedded", "") for name in remarked(found)}


def test_prefill_on_the_npu_and_decode_on_the_cpu(measure: Callable[..., Campaign], tiny: Path) -> None:
    pair = "rk-llama.cpp/npu+llama.cpp/cpu"
    found = measure(tiny, pair, quality=False)
    assert [run.outcome for run in found.runs] == ["finished"]
    assert "the handover is off" not in remarked(found)[pair]
    assert Path(os.environ["TRILITHON_NPU_LOCK"]).read_text() == ""  # taken for prefill, and given back


@pytest.mark.parametrize("quality", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_refused_work_is_never_recommended(
    measure: Callable[..., Campaign], fork: Callable[..., Fork], tiny: Path, quality: bool
) -> None:
    """Its server goes on, so only the log tells it from one that works."""
    build = Path(fork(faults=["always"]).build.where).parent
    result = measure(tiny, "llama.cpp/cpu", "rk-llama.cpp/npu", quality=quality, build=build)
    outcomes = {run.placement: run.failure and (run.failure.kind, run.failure.cause[:60]) for run in result.runs}
    kind = "tainted", "error during the answer: E RKNN: failed to submit!, op id: 0"[:60]
    assert outcomes == {"llama.cpp/cpu": None, "rk-llama.cpp/npu": kind}
    verdicts = {placement.name: placement.quality.verdict for placement in result.placements if placement.quality}
    assert verdicts["rk-llama.cpp/npu"] == "broken"
    assert "rk-llama.cpp/npu" not in [placement.name for placement in recommended(result)]
    assert "rk-llama.cpp/npu failed 1 of 1" in verdict_sentence(result)


@pytest.mark.slow
@pytest.mark.timeout(600)  # the check of another engine takes 256 positions
def test_a_pipeline_that_spoils_the_model_is_found_out(measure: Callable[..., Campaign], tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "small.gguf", context=1536)
    found = measure(model, "llama.cpp/cpu", "rk-llama.cpp/npu", SPOILT, quality=True)
    assert {run.outcome for run in found.runs} == {"finished"}
    said = remarked(found)[SPOILT]
    assert "runs with pipeline W8A8_HADAMARD, because it failed with its own settings: failed, called broken" in said
    verdicts = {each.name: each.quality.verdict for each in found.placements if each.quality}
    assert verdicts == {"llama.cpp/cpu": "reference", "rk-llama.cpp/npu": "same", SPOILT: "same"}


# -- in true size


@pytest.fixture
def qwen(tmp_path: Path) -> Iterator[Path]:
    """993 MB, gone at once: pytest keeps the folders of several runs."""
    path = write_synthetic(plan_synthetic(find_architecture("qwen2.5-0.5b"), "f16"), tmp_path / "qwen.gguf")
    yield path
    path.unlink()


@pytest.mark.slow
def test_the_synthetic_qwen_loads_in_the_fork_and_in_the_wheel(
    fork: Callable[..., Fork], qwen: Path, tmp_path: Path
) -> None:
    facts, file = read_gguf(qwen), read_model_file(qwen, None)
    assert (facts.parameters, facts.layers, facts.embedding, facts.kv_heads) == (494_032_768, 24, 896, 2)
    assert (facts.vocabulary, facts.quantization, facts.synthetic) == (151_936, "F16", True)
    where = placement(fork(), file, Settings(threads=2, context=256))
    engine = LlamaCpp(Configuration(data=tmp_path, cache=tmp_path))
    build = next(build for build in engine.builds() if build.name == "embedded")
    plain = Placement(name="llama.cpp/cpu", file=file, build=build, unit="cpu", settings=where.settings)
    answers: list[str] = []

    async def answer(runner: Runner) -> None:
        prompt = await runner.tokenize("the stones carry the weight, and the lintel holds them together")
        tokens, finished = await runner.complete(Completion(prompt=prompt, max_tokens=8, ignore_eos=True))
        assert finished.timings.predicted_n == 8
        answers.append("".join(token.text for token in tokens))

    log = run(fork(), where, tmp_path / "npu", answer)
    run(Fork(engine, build), plain, tmp_path / "cpu", answer)
    assert "on the NPU: 471.1 MiB of weights, W8A8_HADAMARD" in remarks(fork(), file, log)
    assert answers[0] == answers[1] != ""
