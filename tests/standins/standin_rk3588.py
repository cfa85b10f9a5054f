"""The device tree of a virtual RK3588: that of QEMU's "virt" machine, with parts of an Orange Pi 5 Plus from Debian's.

CPUs, clusters, operating points, thermal zones, the clock controller and the thermometers are the real board's, run by
the kernel's own drivers. Their registers are a piece of reserved memory: clocks begin at what is written there, and a
temperature is planted by writing its code. A PLL that the driver sets has 0 Hz afterwards, since plain memory takes no
masked writes: cpufreq shows what it has set, devfreq that 0. devfreq's driver is another chip's, since Rockchip's need
the hardware."""

import struct
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from device_tree import Node, cpus, device_tree_bytes, read_device_tree

# known(ran): Linux 7.2.12: clusters, capacities, cpufreq policies, thermal zones and cooling as its drivers show them
# known(ran): Linux 7.2.12: the rates of PLLs and the temperatures that its drivers read in the planted registers
# known(guess): steps of the clocks of NPU, GPU and memory; mainline has no devfreq for them
BOARD = "rockchip/rk3588-orangepi-5-plus.dtb"
MEMORY = 0x4000_0000  # where the memory of QEMU's machine begins
REGISTERS, _REGISTER_BYTES = 0x6000_0000, 0x10_0000
_THERMOMETERS = 0x8_0000  # offset, after the clock controller's 0x5c000
_XIN24M = 24_000_000
# drivers/clk/rockchip/clk-rk3588.c and include/dt-bindings/clock/rockchip,rk3588-cru.h: number in the binding, offset
# of the PLL's registers, of its mode's register, and shift there.
_PLLS = {
    "B0PLL": (0, 0x50000, 0x50280, 0),
    "B1PLL": (1, 0x52020, 0x52280, 0),
    "LPLL": (2, 0x58040, 0x58280, 0),
    "V0PLL": (3, 0x160, 0x280, 4),
    "AUPLL": (4, 0x180, 0x280, 6),
    "CPLL": (5, 0x1A0, 0x280, 8),
    "GPLL": (6, 0x1C0, 0x280, 2),
    "NPLL": (7, 0x1E0, 0x280, 0),
}
_LOCKED, _NORMAL = 1 << 15, 1
_CLUSTER_PLLS = ("LPLL",) * 4 + ("B0PLL",) * 2 + ("B1PLL",) * 2
# The devfreq clocks: node, its PLL, the steps in MHz (as the PLL's driver has them), the first being where it starts.
DEVFREQ = {
    "npu@fdab0000": ("V0PLL", (312, 408, 600, 816, 1008)),
    "gpu@fb000000": ("NPLL", (312, 408, 600, 816, 1008)),
    "dmc": ("AUPLL", (600, 1200, 1608, 2112)),
}
# drivers/thermal/rockchip_thermal.c: of the RK3588's table 25 °C is code 285 and 85 °C code 350; TSADCV3_DATA.
_DATA = 0x2C
ZONES = ("package", "bigcore0", "bigcore2", "littlecore", "center", "gpu", "npu")


def temperature_register(zone: str) -> int:
    """The address."""
    return REGISTERS + _THERMOMETERS + _DATA + 4 * ZONES.index(zone)


def temperature_code(celsius: float) -> int:
    """For 25 to 125 °C."""
    if celsius <= 85:
        return round(285 + (celsius - 25) * 65 / 60)
    return round(350 + (celsius - 85) * 45 / 40)


def registers(celsius: Mapping[str, float]) -> bytes:
    """How the firmware leaves the registers: CPUs at 1008 MHz, the others at their first step."""
    content = bytearray(_REGISTER_BYTES)
    starts = {"B0PLL": 1008, "B1PLL": 1008, "LPLL": 1008, "CPLL": 1500, "GPLL": 1188}
    starts |= {pll: steps[0] for pll, steps in DEVFREQ.values()}
    for pll, megahertz in starts.items():
        _, offset, mode, shift = _PLLS[pll]
        # The rate is 24 MHz × m / p / 2^s.
        p, s = 2, 1
        for number, value in {0: megahertz * 10**6 * p * 2**s // _XIN24M, 1: s << 6 | p, 6: _LOCKED}.items():
            struct.pack_into("<I", content, offset + 4 * number, value)
        (modes,) = struct.unpack_from("<I", content, mode)
        struct.pack_into("<I", content, mode, modes | _NORMAL << shift)
    for zone in ZONES:
        address = temperature_register(zone) - REGISTERS
        struct.pack_into("<I", content, address, temperature_code(celsius.get(zone, 45)))
    return bytes(content)


def virtual_device_tree(virt: Path, boards: Path) -> bytes:
    """`virt` is the device tree of QEMU's machine with eight CPUs; `boards` the folder of Debian's."""
    root, real = read_device_tree(virt), read_device_tree(boards / BOARD)
    for name in ("compatible", "model"):
        root.properties[name] = real.properties[name]
    for name, node in real.children.items():
        if name.startswith(("opp-table-cluster", "clock-", "l3-cache")) and name != "clock-controller@fd7c0000":
            root.children[name] = node
    root.children["cpus"] = _cpus(real)
    clocks = real.children["clock-controller@fd7c0000"]
    _keep(clocks, "compatible", "#clock-cells", "#reset-cells", "phandle", reg=_reg(REGISTERS, 0x5C000))
    root.children["clock-controller@fd7c0000"] = clocks
    thermometers = real.children["tsadc@fec00000"]
    shared = [name for name in thermometers.properties if name not in ("reg", "interrupts") and "assigned" not in name]
    shared = [name for name in shared if not name.startswith("pinctrl")]
    place = _reg(REGISTERS + _THERMOMETERS, 0x400)
    _keep(thermometers, *shared, reg=place, interrupts=struct.pack(">3I", 0, 100, 4))
    root.children["tsadc@fec00000"] = thermometers
    root.children["thermal-zones"] = _thermal_zones(real)
    clock = clocks.properties["phandle"]
    for number, (name, (pll, steps)) in enumerate(DEVFREQ.items()):
        node = real.children.get(name, Node())
        phandle = struct.pack(">I", 0x9000 + number)
        # NXP's driver of any bus with operating points and one clock (drivers/devfreq/imx-bus.c).
        compatible = node.properties.get("compatible", b"") + b"fsl,imx8m-noc\0"
        _keep(node, "reg", "#cooling-cells", "phandle", compatible=compatible, clocks=clock + _pll(pll))
        node.properties["operating-points-v2"] = phandle
        root.children[name] = node
        root.children[f"opp-table-{name.partition('@')[0]}"] = _operating_points(steps, phandle)
    root.children["reserved-memory"] = Node(
        {"#address-cells": struct.pack(">I", 2), "#size-cells": struct.pack(">I", 2), "ranges": b""},
        {f"registers@{REGISTERS:x}": Node({"reg": _reg(REGISTERS, _REGISTER_BYTES), "no-map": b""})},
    )
    return device_tree_bytes(root)


def _cpus(real: Node) -> Node:
    node = deepcopy(real.children["cpus"])
    node.children.pop("idle-states", None)
    clock = real.children["clock-controller@fd7c0000"].properties["phandle"]
    for number, cpu in enumerate(cpus(Node(children={"cpus": node}))):
        for name in ("cpu-supply", "cpu-idle-states", "assigned-clocks", "assigned-clock-rates"):
            cpu.properties.pop(name, None)
        cpu.properties["reg"] = struct.pack(">I", number)
        cpu.properties["clocks"] = clock + _pll(_CLUSTER_PLLS[number])
    return node


def _thermal_zones(real: Node) -> Node:
    """Looked at every second, since the thermometers interrupt nobody here; without the fan."""
    zones = deepcopy(real.children["thermal-zones"])
    for zone in zones.children.values():
        zone.properties["polling-delay"] = struct.pack(">I", 1000)
    zones.children["package-thermal"].children.pop("cooling-maps", None)
    return zones


def _operating_points(steps: tuple[int, ...], phandle: bytes) -> Node:
    points = {f"opp-{step}000000": Node({"opp-hz": struct.pack(">Q", step * 10**6)}) for step in steps}
    return Node({"compatible": b"operating-points-v2\0", "phandle": phandle}, points)


def _pll(name: str) -> bytes:
    return struct.pack(">I", _PLLS[name][0])


def _reg(address: int, size: int) -> bytes:
    return struct.pack(">2Q", address, size)


def _keep(node: Node, *names: str, **replaced: bytes) -> None:
    """Of the properties only these."""
    node.properties = {name: node.properties[name] for name in names if name in node.properties} | replaced
