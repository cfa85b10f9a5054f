"""Programs of the arm64 root that `.ci/fixtures` makes, under qemu: in name spaces of their own, with binary formats of
their own, so that neither root nor a change of the machine is needed (Linux 6.7)."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ARM64_PROGRAMS", "Arm64Root"]

# An ELF file of 64 bits, little-endian, for machine 183: what the kernel gives to qemu.
ARM64_PROGRAMS = (
    r":arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
)
_ENTER = """
set -e
root=$1 qemu=$2 work=$3; shift 3
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf '%s' "$FORMAT:$qemu:F" > /proc/sys/fs/binfmt_misc/register
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs none "$root/tmp"
mount --bind "$work" "$root/home"
exec chroot "$root" /usr/bin/env -i "$@"
"""
_PROGRAM = """#!/usr/bin/python3
from trilithon.cli.main import entry
entry()
"""


@dataclass(frozen=True, slots=True)
class Arm64Root:
    """`work` is /home inside, and is written to; site/ in it has the project."""

    root: Path
    qemu: Path
    work: Path

    def install(self, wheel: Path, python: str) -> None:
        """`python` has pip. The program in `bin` would name it, too: it gets one for the Python inside."""
        target = self.work / "site"
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel], check=True)
        program = target / "bin" / "trilithon"
        program.write_text(_PROGRAM)
        program.chmod(0o755)

    def command(self, *argv: str | Path, cpu: str = "cortex-a76", environment: Mapping[str, str] = {}) -> list[str]:
        """The process that it starts becomes the program: it can be signalled, and its exit code is the program's."""
        marks = {name: value for name, value in os.environ.items() if name == "STARTED_BY_TESTS"}
        inside = {
            "PATH": "/home/site/bin:/usr/bin:/usr/sbin",
            "HOME": "/home",
            "PYTHONPATH": "/home/site",
            "QEMU_CPU": cpu,
            **marks,
            **environment,
        }
        variables = [f"{name}={value}" for name, value in inside.items()]
        enter = ["unshare", "--user", "--map-root-user", "--mount", "env", f"FORMAT={ARM64_PROGRAMS}"]
        enter += ["sh", "-c", _ENTER, "enter", str(self.root), str(self.qemu), str(self.work)]
        return [*enter, *variables, *map(str, argv)]

    def run(self, *argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*argv, **options), capture_output=True, text=True, check=False, timeout=280)
