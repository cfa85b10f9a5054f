"""The only table of chips and CPU designs, and that nothing else lists them."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from parsed_source import parsed

import trilithon
from trilithon.board.chips import chip_of_device_tree, chips, core_of, find_chip, platform_of, platforms, target_names

ROOT = Path(trilithon.__file__).parent
# A name as a value of its own; texts that mention a chip are not a table.
CHIP = re.compile(r"(?:rockchip,)?r[kv]\d{4}[a-z]?\d?", re.IGNORECASE)


def test_nothing_else_lists_chips() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.value}"
        for path in ROOT.rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CHIP.fullmatch(node.value)
    ]
    assert offenders == []


def test_the_forks_devices_are_those_of_the_table() -> None:
    facts = tomllib.loads((ROOT / "engines/rk_llamacpp/facts.toml").read_text(encoding="utf-8"))
    assert set(facts["devices"]) == {chip.rk_llama_cpp for chip in chips().values() if chip.rk_llama_cpp}
    assert set(facts["devices"]) <= set(chips())
    assert "chips" not in facts


def test_every_platform_is_a_chip_that_the_runtime_takes() -> None:
    assert {chip.platform for chip in chips().values() if chip.rkllm} == set(platforms())
    assert all(chips()[name].npu_cores for name in platforms())


def test_no_platform_prefers_what_its_converter_cannot_make() -> None:
    """RK3562 takes 4-bit weights in groups alone (guide of toolkit 1.3.0)."""
    assert "w4a16" not in platforms()["RK3562"].quantizations
    assert platforms()["RK3576"].quantizations[0] == "w4a16"
    assert platforms()["RK3588"].quantizations[0] == "w8a8"


@pytest.mark.parametrize(
    ("name", "chip", "platform"),
    [
        ("RK3588", "RK3588", "RK3588"),
        ("rk3588s", "RK3588S", "RK3588"),
        ("rk3588s2", "RK3588S", "RK3588"),
        ("RK3588J", "RK3588", "RK3588"),
        ("rk3588m", "RK3588", "RK3588"),
        ("rk3582", "RK3582", "RK3588"),
        ("rk3576j", "RK3576", "RK3576"),
        ("rk3568b2", "RK3568", "RK3568"),
        ("rv1126b", "RV1126B", "RV1126B"),
        ("bcm2712", "BCM2712", ""),
        ("rk3599", None, ""),
        ("", None, ""),
    ],
)
def test_a_name_as_people_write_it(name: str, chip: str | None, platform: str) -> None:
    known = find_chip(name)
    assert (known.name if known else None) == chip
    assert platform_of(name) == platform


@pytest.mark.parametrize(
    ("compatible", "chip"),
    [
        (("radxa,rock-5b", "rockchip,rk3588"), "RK3588"),
        (("rockchip,rk3588s-orangepi-5", "rockchip,rk3588"), "RK3588S"),
        (("xunlong,orangepi-5-max", "rockchip,rk3588s2", "rockchip,rk3588"), "RK3588S"),
        (("vendor,board", "rockchip,rk3588j"), "RK3588"),
        (("vendor,board", "rockchip,rk3582", "rockchip,rk3588s"), "RK3582"),
        (("rockchip,rk35881",), None),
        (("raspberrypi,5-model-b", "brcm,bcm2712"), "BCM2712"),
        ((), None),
    ],
)
def test_a_device_tree(compatible: tuple[str, ...], chip: str | None) -> None:
    known = chip_of_device_tree(compatible)
    assert (known.name if known else None) == chip


def test_targets_are_offered_in_lower_case() -> None:
    assert "rk3588s" in target_names()
    assert "bcm2712" not in target_names()


@pytest.mark.parametrize(
    ("implementer", "part", "name", "little"),
    [
        ("0x41", "0xd0b", "Cortex-A76", False),
        ("0x41", "0xd05", "Cortex-A55", True),
        ("0x41", "0xd40", "Neoverse-V1", False),
        ("0x48", "0xd40", "Cortex-A76", False),
        ("0x41", "0xd42", "Cortex-A78AE", False),
        ("0x41", "0xd4b", "Cortex-A78C", False),
        ("0x41", "0xd85", "Cortex-X925", False),
        ("0x61", "0x022", "Icestorm", True),
        ("0x51", "0x803", "Kryo-3XX-Silver", True),
        ("0x41", "0xfff", "Arm part 0xfff", False),
        ("0x41", "0xd4d", "Cortex-A715", False),
        ("0x41", "0xd87", "Cortex-A725", False),
        ("0x41", "0xd8e", "Neoverse-N3", False),
        ("0x41", "0xd84", "Neoverse-V3", False),
        ("0x51", "0x001", "Oryon", False),
        ("0x48", "0xd41", "Cortex-A77", False),
        ("0x41", "0xd41", "Cortex-A78", False),
        ("0x6d", "0xd49", "Azure-Cobalt-100", False),
        ("0x70", "0x662", "FTC662", False),
        ("0x70", "0xfff", "CPU part 0x70/0xfff", False),
        ("", "", "CPU part /", False),
    ],
)
def test_a_core_is_its_maker_and_its_part(implementer: str, part: str, name: str, little: bool) -> None:
    core = core_of(implementer, part)
    assert (core.name, core.little) == (name, little)
