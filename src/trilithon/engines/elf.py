"""The machine that a program or library was compiled for, from its ELF header."""

import os
import struct
from pathlib import Path

__all__ = ["elf_machine", "foreign_machine"]

# e_machine and the class byte (elf.h) → what `uname -m` prints on such a machine.
_MACHINES = {
    (62, 2): "x86_64",
    (3, 1): "i686",
    (183, 2): "aarch64",
    (40, 1): "armv7l",
    (243, 2): "riscv64",
    (21, 2): "ppc64le",
    (258, 2): "loongarch64",
    (22, 2): "s390x",
}
_HEADER_BYTES = 20


def elf_machine(path: Path) -> str | None:
    """The machine as `uname -m` names it, or "machine N" for one that is not listed here; None where the file is not
    an ELF file. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or header[:4] != b"\x7fELF" or header[4] not in (1, 2) or header[5] not in (1, 2):
        return None
    (number,) = struct.unpack_from("<H" if header[5] == 1 else ">H", header, 18)
    return _MACHINES.get((number, header[4]), f"machine {number}")


def foreign_machine(path: Path) -> str:
    """The machine that the file was compiled for, if it is not this one. Empty where it is, or where the file is not an
    ELF file (a launcher script)."""
    machine = elf_machine(path)
    return machine if machine is not None and machine != os.uname().machine else ""
