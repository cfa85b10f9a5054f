import importlib.machinery
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trilithon.board.sysfs import Machine
from trilithon.engines import registry
from trilithon.engines.base import Build, Placement, Settings
from trilithon.engines.rkllm.child.binding import ABIS
from trilithon.engines.rkllm.engine import Rkllm
from trilithon.engines.rkllm.options import LoadOptions
from trilithon.engines.rkllm.rules import KNOWN_VERSIONS, remarks_on_log
from trilithon.engines.table import engine
from trilithon.errors import PlacementError
from trilithon.models.files.model_file import ModelFile
from trilithon.settings import Configuration

Plant = Callable[..., Machine]


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache", builds=(tmp_path / "builds",))


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """A board with an NPU: `plant("rk3576", driver="0.9.7", cpus="0-7")`; driver "" for none."""

    def plant(chip: str = "rk3588", driver: str = "0.9.8", cpus: str = "0-7") -> Machine:
        root = tmp_path / "board"
        files = {
            "proc/device-tree/compatible": f"maker,board\0rockchip,{chip}\0",
            "proc/device-tree/model": "Board",
            "proc/self/status": f"Cpus_allowed_list:\t{cpus}\n",
            "sys/devices/system/cpu/online": cpus,
        }
        if driver:
            files |= {"sys/module/rknpu/version": driver, "dev/rknpu": ""}
        for number in range(8):
            files[f"sys/devices/system/cpu/cpu{number}/cpu_capacity"] = "1024" if number > 3 else "530"
            files[f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"] = str(number)
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return Machine(root)

    return plant


def library(folder: Path, version: str = "1.3.0") -> Path:
    """The part of the runtime's library that is looked at before it is loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "librkllmrt.so"
    path.write_bytes(
        b"\0" * 5000 + f"RKLLM SDK (version: {version} | target: Linux | build: x)\0".encode() + b"\0" * 99
    )
    return path


def model(tmp_path: Path, **facts: object) -> ModelFile:
    path = tmp_path / "m.rkllm"
    path.touch()
    values = {"format": "rkllm", "name": "m", "architecture": "qwen2", "quantization": "w8a8", "sha256": "0"}
    return ModelFile(path=path, size_bytes=1, **{**values, **facts})  # type: ignore[arg-type]


def build(folder: Path, version: str = "1.3.0") -> Build:
    return Build(
        engine="rkllm",
        name=version,
        version=version,
        units=("npu",),
        features=frozenset(),
        where=str(library(folder, version)),
    )


@pytest.fixture
def refused(tmp_path: Path, configuration: Configuration, plant: Plant) -> Callable[..., str]:
    """Why a placement is refused; "" when it is not. Words are options, `settings` further settings."""

    def refused(
        facts: dict[str, object] | None = None,
        *,
        machine: Machine | None = None,
        version: str = "1.3.0",
        settings: Settings | None = None,
        **options: str,
    ) -> str:
        chosen = replace(settings or Settings(), options=tuple(options.items()))
        tested = Rkllm(configuration, machine or plant())
        reason = tested.refusal(model(tmp_path, **(facts or {})), build(tmp_path / "lib", version), "npu", chosen)
        assert "\n" not in reason
        return reason

    return refused


def told(launch_argv: tuple[str, ...]) -> LoadOptions:
    return LoadOptions.parse(launch_argv[launch_argv.index("--options") + 1])


def placement(file: ModelFile, of: Build, settings: Settings) -> Placement:
    return Placement(name="rkllm/npu", file=file, build=of, unit="npu", settings=settings)


def test_it_is_in_the_table(configuration: Configuration) -> None:
    assert isinstance(engine("rkllm", configuration), Rkllm)


def test_builds_from_everywhere_each_once(tmp_path: Path, configuration: Configuration, plant: Plant) -> None:
    machine = plant()
    assert Rkllm(configuration, machine).builds() == []
    registry.add(configuration, registry.Registered(name="mine", folder=library(tmp_path / "a", "1.2.3").parent))
    library(tmp_path / "builds", "1.3.0")
    (machine.root / "proc/self/environ").write_text("LD_LIBRARY_PATH=:/searched\0")
    library(machine.root / "searched", "1.3.0")
    library(machine.root / "usr/lib/aarch64-linux-gnu", "1.1.4")
    (machine.root / "lib").symlink_to("usr/lib")
    library(machine.root / "usr/local/lib", "1.2.1b1")
    found = Rkllm(configuration, machine).builds()
    assert [(each.name, each.version) for each in found] == [
        ("mine", "1.2.3"),
        ("1.3.0", "1.3.0"),
        ("1.3.0.2", "1.3.0"),
        ("1.2.1", "1.2.1"),
        ("1.1.4", "1.1.4"),
    ]
    assert len({each.fingerprint for each in found}) == len(found)
    assert all(each.units == ("npu",) for each in found)


def test_features_are_those_of_the_release(
    tmp_path: Path, configuration: Configuration, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(version: str) -> set[str]:
        folder = library(tmp_path / version, version).parent
        (found,) = Rkllm(replace(configuration, builds=(folder,)), plant()).builds()
        return set(found.features)

    assert features("1.1.4") == {"embeddings"}
    assert features("1.2.0") == features("1.3.0") == {"embeddings", "logprobs"}
    assert features("1.9.9") == set()
    (tmp_path / "rknnlite").mkdir()
    (tmp_path / "rknnlite" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.machinery.PathFinder.find_spec("rknnlite") is not None
    assert features("1.2.0") == {"embeddings", "logprobs"}
    assert features("1.2.1") == {"embeddings", "logprobs", "vision"}


@pytest.mark.parametrize("content", [b"", b"no version here"])
def test_a_library_that_states_no_version(
    tmp_path: Path, configuration: Configuration, plant: Plant, content: bytes
) -> None:
    (tmp_path / "builds").mkdir()
    (tmp_path / "builds" / "librkllmrt.so").write_bytes(content)
    tested = Rkllm(configuration, plant())
    (found,) = tested.builds()
    assert (found.name, found.version) == ("unknown", "unknown")
    reason = tested.refusal(model(tmp_path), found, "npu", Settings())
    assert "states no version" in reason
    assert all(version in reason for version in KNOWN_VERSIONS)


def test_missing_says_what_to_install(tmp_path: Path, configuration: Configuration, plant: Plant) -> None:
    tested = Rkllm(configuration, plant())
    assert tested.missing().endswith("run: trilithon engines install rkllm")
    library(tmp_path / "builds")
    assert tested.missing() == ""


def test_the_releases_are_those_that_the_child_knows() -> None:
    assert set(KNOWN_VERSIONS) == {version for abi in ABIS for version in abi.versions}


def test_a_board_that_it_is_made_for(refused: Callable[..., str], plant: Plant) -> None:
    for chip in ("rk3588", "rk3588s", "rk3582", "rk3576", "rk3562", "rv1126b"):
        assert refused(machine=plant(chip)) == ""


@pytest.mark.parametrize(
    ("chip", "driver", "words"),
    [
        ("rk3566", "0.9.8", "the RKLLM runtime does not support the RK3566, only RK3588, RK3576, RK3562, RV1126B"),
        ("rk3568", "0.9.8", "does not support the RK3568"),
        ("rk3588", "", "driver is not loaded; boot a kernel with the vendor's rknpu"),
        ("rk3399", "", "no known Rockchip NPU"),
        ("rk3572", "", "does not support the RK3572"),
    ],
)
def test_a_board_that_it_is_not_made_for(
    refused: Callable[..., str], plant: Plant, chip: str, driver: str, words: str
) -> None:
    assert words in refused(machine=plant(chip, driver))


def test_mainlines_driver_is_refused(refused: Callable[..., str], plant: Plant) -> None:
    machine = plant(driver="")
    accelerator = machine.root / "sys/class/accel/accel0/device"
    accelerator.mkdir(parents=True)
    (accelerator / "driver").symlink_to("/sys/bus/platform/drivers/rocket")
    assert "rocket driver" in refused(machine=machine)
    assert "boot a vendor kernel" in refused(machine=machine)


def test_a_node_that_is_closed_to_this_user(
    refused: Callable[..., str], plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "usable", lambda *_: False)  # root, as in a container's tests, may open everything
    assert refused(machine=plant()) == "this user may not open /dev/rknpu; see trilithon doctor"


def test_files(refused: Callable[..., str], plant: Plant) -> None:
    assert "is gguf" in refused({"format": "gguf"})
    assert refused({"target_platform": "RK3588"}, machine=plant("rk3588s")) == ""
    for variant in ("RK3588S", "RK3588J", "rk3588m", "RK3588S2"):
        assert refused({"target_platform": variant}, machine=plant("rk3588")) == ""
    assert "was converted for the RK3588; use one for the RK3576" in refused(
        {"target_platform": "RK3588"}, machine=plant("rk3576")
    )


def test_releases(refused: Callable[..., str]) -> None:
    for version in KNOWN_VERSIONS:
        assert refused(version=version) == ""
    assert refused(version="1.3.1") == ""
    assert "is of release 1.4.0, whose interface is unknown; use one of 1.1.4" in refused(version="1.4.0")
    assert refused(version="1.4.0", abi="1.3.0") == ""
    assert "abi=2 is not known" in refused(abi="2")


def test_a_library_for_another_machine(tmp_path: Path, configuration: Configuration, plant: Plant) -> None:
    other = 40 if os.uname().machine != "armv7l" else 62
    strange = build(tmp_path / "lib")
    header = b"\x7fELF" + bytes([1 if other == 40 else 2, 1]) + bytes(12) + other.to_bytes(2, "little")
    Path(strange.where).write_bytes(header + Path(strange.where).read_bytes())
    reason = Rkllm(configuration, plant()).refusal(model(tmp_path), strange, "npu", Settings())
    assert "was compiled for armv7l" in reason or "was compiled for x86_64" in reason


def test_only_the_npu(tmp_path: Path, configuration: Configuration, plant: Plant) -> None:
    reason = Rkllm(configuration, plant()).refusal(model(tmp_path), build(tmp_path / "lib"), "cpu", Settings())
    assert reason == "rkllm runs on the NPU only; use rkllm/npu"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cores": "2"}, "set when the model is converted"),
        ({"speed": "9"}, "unknown option speed; there are cpus, domain"),
        ({"domain": "x"}, "domain=x: write a whole number"),
        ({"domain": "16"}, "domain = 16"),
        ({"embed_flash": "yes"}, "embed_flash=yes: write on or off"),
        ({"thinking": ""}, "thinking=: write on or off"),
        ({"cpus": "fast"}, "cpus=fast: write CPUs as 4-7"),
        ({"cpus": "6-9"}, "this machine has no CPU 8, only 0-7"),
        ({"lora": "/nowhere/a.rkllm"}, "/nowhere/a.rkllm does not exist"),
        ({"lora_scale": "1e9"}, "lora_scale=1e9"),
        ({"keep": "-2"}, "keep=-2"),
    ],
)
def test_options_that_make_no_sense(refused: Callable[..., str], options: dict[str, str], words: str) -> None:
    assert words in refused(**options)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (Settings(batch=64), "-b"),
        (Settings(micro_batch=64), "-ub"),
        (Settings(kv_type_k="q8_0"), "-ctk"),
        (Settings(kv_type_v="q8_0"), "-ctv"),
        (Settings(flash_attention="on"), "-fa"),
        (Settings(slots=2), "slots"),
    ],
)
def test_settings_that_it_has_not_are_not_ignored(refused: Callable[..., str], settings: Settings, word: str) -> None:
    assert f"leave {word}" in refused(settings=settings)


def test_as_many_cpus_as_npu_cores(refused: Callable[..., str], plant: Plant) -> None:
    assert "runs on 3 NPU cores and needs as many CPUs" in refused({"target_cores": 3}, cpus="4+5")
    assert "needs as many CPUs" in refused({"target_cores": 3}, settings=Settings(threads=2))
    assert refused({"target_cores": 3}, cpus="4-6") == ""


@pytest.mark.parametrize(("cores", "mask"), [(1, 0x10), (2, 0x90), (3, 0xD0)])
def test_a_cpu_quota_leaves_as_many_cpus_as_npu_cores(
    tmp_path: Path, configuration: Configuration, plant: Plant, cores: int, mask: int
) -> None:
    machine = plant()
    (machine.root / "sys/fs/cgroup").mkdir(parents=True)
    (machine.root / "sys/fs/cgroup/cpu.max").write_text("100000 100000\n")
    tested, of, file = Rkllm(configuration, machine), build(tmp_path / "lib"), model(tmp_path, target_cores=cores)
    settings = Settings(cpus=(4,), threads=1)
    assert tested.refusal(file, of, "npu", settings) == ""
    assert told(tested.launch(placement(file, of, settings), tmp_path).argv).cpu_mask == mask


def test_launch(tmp_path: Path, configuration: Configuration, plant: Plant) -> None:
    tested, of = Rkllm(configuration, plant()), build(tmp_path / "lib")
    settings = Settings(context=3000, cpus=(4, 5, 6, 7), threads=4)
    launch = tested.launch(placement(model(tmp_path), of, settings), tmp_path)
    assert launch.argv[:4] == (sys.executable, "-P", "-m", "trilithon.engines.rkllm.child.server")
    arguments = dict(zip(launch.argv[4::2], launch.argv[5::2], strict=True))
    assert arguments["--socket"] == str(launch.socket)
    assert arguments["--library"] == of.where
    assert arguments["--model"] == str(tmp_path / "m.rkllm")
    assert told(launch.argv) == LoadOptions(context=2976, cpu_mask=0xF0, chip="RK3588", slots=str(tmp_path / "slots"))
    assert (tmp_path / "slots").is_dir()
    assert (launch.exclusive, launch.open_files, launch.cpus) == ("npu", 102400, (4, 5, 6, 7))
    assert launch.environment == {"RKLLM_LOG_LEVEL": "1"}
    assert launch.hidden == ("RKLLM_",)


def test_options_reach_the_child(tmp_path: Path, configuration: Configuration, plant: Plant) -> None:
    adapter, encoder = tmp_path / "a_lora.rkllm", tmp_path / "v.rknn"
    adapter.touch()
    options = {"cpus": "0xC0", "domain": "2", "embed_flash": "off", "keep": "16", "lora": str(adapter)}
    options |= {"lora_scale": "0.5", "thinking": "off", "abi": "1.2.3"}
    file = model(tmp_path, vision_encoder=encoder)
    settings = Settings(options=tuple(options.items()))
    launch = Rkllm(configuration, plant("rk3576")).launch(placement(file, build(tmp_path / "lib"), settings), tmp_path)
    assert told(launch.argv) == LoadOptions(
        context=4096,
        keep_tokens=16,
        cpu_mask=0xC0,
        domain=2,
        embed_flash=False,
        encoder=str(encoder),
        chip="RK3576",
        lora=str(adapter),
        lora_scale=0.5,
        slots=str(tmp_path / "slots"),
        thinking=False,
        abi="1.2.3",
    )


def test_a_refused_placement_is_not_launched(tmp_path: Path, configuration: Configuration, plant: Plant) -> None:
    refused = placement(model(tmp_path), build(tmp_path / "lib"), Settings(flash_attention="on"))
    with pytest.raises(PlacementError, match="rkllm/npu: the RKLLM runtime has no setting for flash attention"):
        Rkllm(configuration, plant()).launch(refused, tmp_path)


@pytest.mark.parametrize(
    ("limit", "wanted", "given"),
    [(None, None, 4096), (None, 20000, 16384), (2048, 4096, 2048), (4000, None, 4000), (2048, 100, 96), (None, 5, 32)],
)
def test_the_context_is_clamped_and_said(
    tmp_path: Path, configuration: Configuration, plant: Plant, limit: int | None, wanted: int | None, given: int
) -> None:
    tested, of = Rkllm(configuration, plant()), build(tmp_path / "lib")
    tried = placement(model(tmp_path, context_limit=limit), of, Settings(context=wanted))
    assert told(tested.launch(tried, tmp_path).argv).context == given
    said = [remark for remark in tested.remarks(tried, "") if remark.startswith("context")]
    assert bool(said) == ((wanted or 4096) > (limit or 16384))
    if said:
        assert f"context {given} instead of {wanted or 4096}" in said[0]


def test_each_step_gives_up_a_little_more(tmp_path: Path, configuration: Configuration, plant: Plant) -> None:
    tested = Rkllm(configuration, plant())
    start = placement(model(tmp_path, context_limit=8192), build(tmp_path / "lib"), Settings(context=8192))
    steps = tested.fallback_steps(start)
    assert [step.name for step in steps] == [
        "NPU memory domain 1",
        "embeddings left on the disk",
        "context of 4096 tokens",
        "context of 2048 tokens",
        "context of 1024 tokens",
    ]
    last = steps[-1].settings
    assert (last.context, dict(last.options)) == (1024, {"domain": "1", "embed_flash": "on"})
    for step in steps:
        assert tested.refusal(start.file, start.build, "npu", step.settings) == ""


def test_the_fallback_steps_skip_what_is_chosen_already(
    tmp_path: Path, configuration: Configuration, plant: Plant
) -> None:
    options = (("embed_flash", "on"), ("domain", "3"))
    start = placement(model(tmp_path), build(tmp_path / "lib"), Settings(context=512, options=options))
    assert Rkllm(configuration, plant()).fallback_steps(start) == ()
    names = [
        step.name for step in Rkllm(configuration, plant("rk3562")).fallback_steps(replace(start, settings=Settings()))
    ]
    assert names[0] == "embeddings left on the disk"


def test_remarks(tmp_path: Path, configuration: Configuration, plant: Plant) -> None:
    def remarks(version: str = "1.3.0", log: str = "", driver: str = "0.9.8", **facts: object) -> str:
        tested = Rkllm(configuration, plant(driver=driver))
        given = placement(model(tmp_path, **facts), build(tmp_path / "lib", version), Settings())
        found = tested.remarks(given, log)
        assert all(found)
        return "\n".join(found)

    tokenizer = tmp_path / "tokenizer.json"
    assert remarks(tokenizer=tokenizer) == ""
    assert "no tokenizer.json beside m.rkllm" in remarks()
    assert "runtime 1.2.3 is older than toolkit 1.3.0" in remarks("1.2.3", toolkit="1.3.0")
    assert "may miss the end of answers" in remarks(toolkit="1.2.2")
    assert remarks("1.2.2", toolkit="1.2.2", tokenizer=tokenizer) == ""
    assert "NPU driver 0.9.6 is older than 0.9.8" in remarks(driver="0.9.6")
    assert "v.rknn needs the rknnlite package" in remarks(vision_encoder=tmp_path / "v.rknn")
    log = "W rkllm: The rkllm-runtime version is lower than the rkllm-toolkit version\n"
    assert "the runtime says that it is older" in remarks(log=log)
    cut = "note: the context is cut to 2048 tokens, for which the model was converted\n"
    assert "the context is 2048 tokens: the model was converted for no more" in remarks(log=cut)


def test_the_options_are_plain_json(tmp_path: Path, configuration: Configuration, plant: Plant) -> None:
    tested = Rkllm(configuration, plant(cpus="0-1"))
    launch = tested.launch(placement(model(tmp_path), build(tmp_path / "lib"), Settings()), tmp_path)
    text = launch.argv[launch.argv.index("--options") + 1]
    assert json.loads(text)["cpu_mask"] == 3


def test_an_error_in_the_log_is_remarked_on() -> None:
    """A user's log (NPU driver 0.8.2); and one of a load that failed for its context and began anew."""
    log = (
        "I rkllm: rkllm-runtime version: 1.2.3, rknpu driver version: 0.8.2, platform: RK3588\n"
        "E RKNN: [17:19:34.670] failed to submit!, op id: 0, op name: MatMul, flags: 0x5, task start: 0\n"
        "E rkllm: matmul(w8a8) run failed\n"
    )
    (remark,) = remarks_on_log(log)
    assert remark.startswith("the NPU runtime printed an error: E RKNN: failed to submit!, op id: 0, op name: MatMul")
    limit = "E rkllm: max_context[32768] must be less than the model's max_context_limit[4096]\n"
    cut = f"{limit}note: the context is cut to 4096 tokens, for which the model was converted\n"
    assert list(remarks_on_log(cut)) == ["the context is 4096 tokens: the model was converted for no more"]
    assert len(list(remarks_on_log(cut + log))) == 2
