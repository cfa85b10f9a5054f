"""What the picture of a chip shows, from the constructed boards."""

from collections.abc import Callable, Mapping

import pytest

from trilithon.board.sensors.probes import Quantity
from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine
from trilithon.runtime.pool.pool import Loaded
from trilithon.web.board.chip import ChipView, read_chip

Plant = Callable[..., Machine]
Sense = Callable[[Machine], Mapping[tuple[Quantity, str], float]]


@pytest.fixture
def chip(plant: Plant, sense: Sense) -> Callable[[str], ChipView]:
    def chip(name: str) -> ChipView:
        machine = plant(name)
        return read_chip(read_board(machine), sense(machine))

    return chip


def test_an_rk3588_has_two_pairs_of_big_cores_and_all_that_it_tells(rk3588: Machine, sense: Sense) -> None:
    chip = read_chip(read_board(rk3588), sense(rk3588))
    assert (chip.name, chip.model) == ("RK3588", "Orange Pi 5 Plus")
    little, first, second, gpu, npu = chip.blocks
    assert [block.part for block in chip.blocks] == ["little", "big", "big", "gpu", "npu"]
    assert [core.load for core in little.cores] == [0.12, 0.04, 0.31, 0.08]
    assert [(core.name, core.load) for core in first.cores + second.cores] == [
        ("4", 0.94),
        ("5", 0.97),
        ("6", 0.91),
        ("7", 0.88),
    ]
    assert (little.clock_hz, first.clock_hz, second.clock_hz) == (1.8e9, 2.352e9, 2.304e9)
    assert [round(block.celsius or 0) for block in chip.blocks] == [57, 63, 65, 55, 61]
    assert (gpu.name, gpu.load, gpu.clock_hz, gpu.top_hz) == ("Mali-G610 MP4", 0.27, 3e8, 1e9)
    assert (npu.name, [core.load for core in npu.cores]) == ("rknpu 0.9.8", [0.71, 0.68, 0.64])
    assert [name for name, _ in chip.temperatures] == ["soc-thermal", "center-thermal"]
    assert chip.watts == (("ina226 power1", 9.84),)


def test_memory_is_by_kind_and_adds_up(rk3588: Machine, sense: Sense) -> None:
    memory = read_chip(read_board(rk3588), sense(rk3588)).memory
    kinds = dict(memory.kinds)
    assert list(kinds) == ["anonymous", "shared", "DMA buffers", "other", "page cache", "free"]
    assert kinds["DMA buffers"] == 1503238553
    assert sum(kinds.values()) == pytest.approx(memory.total_bytes)
    assert (memory.clock_hz, memory.top_hz, memory.swap_bytes) == (2.112e9, 2.112e9, 0.0)


def test_what_a_machine_does_not_tell_is_left_out(chip: Callable[[str], ChipView]) -> None:
    mainline = chip("rk3588_mainline")
    assert [block.part for block in mainline.blocks] == ["little", "big", "gpu", "npu"]
    assert all(core.load is None for block in mainline.blocks for core in block.cores)
    assert mainline.watts == ()
    assert mainline.memory.kinds == ()
    assert mainline.blocks[0].clock_hz is None


def test_other_chips(chip: Callable[[str], ChipView]) -> None:
    rk3576 = chip("rk3576")
    assert [block.part for block in rk3576.blocks] == ["little", "big", "gpu", "npu"]
    assert [len(block.cores) for block in rk3576.blocks] == [4, 4, 0, 2]
    pc = chip("pc_x86_64")
    assert [block.part for block in pc.blocks] == ["all", "gpu"]
    assert len(pc.blocks[0].cores) == 16
    assert [block.part for block in chip("raspberry_pi_5").blocks] == ["all", "gpu"]


def test_what_is_not_plausible_is_left_out(rk3588: Machine) -> None:
    values: dict[tuple[Quantity, str], float] = {
        ("load", "GPU"): float("nan"),
        ("load", "cpu4"): 7.0,
        ("temperature", "soc-thermal"): -40.0,
        ("clock", "cpu0-3"): float("inf"),
        ("memory", "free"): 1e300,
        ("power", "ina226"): -1.0,
    }
    chip = read_chip(read_board(rk3588), values)
    assert [(block.load, block.clock_hz, block.celsius) for block in chip.blocks] == [(None, None, None)] * 4
    assert (chip.temperatures, chip.watts, chip.memory.kinds) == ((), (), ())


def test_a_handover_sits_on_two_units_and_a_unit_without_a_sensor_is_there_all_the_same(
    plant: Plant, loaded: Callable[..., Loaded]
) -> None:
    board = read_board(plant("pc_x86_64"))
    chip = read_chip(board, {}, [loaded("cpu", prefill="npu", users=2)], waiting=3)
    assert [(placed.unit, placed.role, placed.placement) for placed in chip.placed_models] == [
        ("npu", "prefill", "scripted/cpu"),
        ("cpu", "decode", "scripted/cpu"),
    ]
    assert (chip.running, chip.waiting) == (2, 3)
    assert [block.part for block in chip.blocks] == ["all", "gpu", "npu"]
    assert [placed.model for placed in chip.sitting("npu")] == ["tiny"]
