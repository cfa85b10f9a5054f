"""A virtual RK3588 board: QEMU's "virt" machine under Debian's arm64 kernel, with the device tree of `standin_rk3588`.

Commands are given through a folder that it shares with this machine. `.ci/fixtures` fetches all that is needed."""

import lzma
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from standin_rk3588 import MEMORY, REGISTERS, registers, temperature_code, temperature_register, virtual_device_tree

__all__ = ["ASK", "BOOT_SECONDS", "PROGRAMS", "VirtualBoard", "make_disk", "started"]

# Of a machine with much else to do.
BOOT_SECONDS, RUN_SECONDS = 800, 1500
PROGRAMS = f"{os.environ['PATH']}:/usr/sbin:/sbin"
"""Where this machine's programs are, also those that Debian leaves out of a user's PATH."""
_MACHINE = ("-machine", "virt,gic-version=3,memory-backend=ram", "-cpu", "cortex-a76", "-smp", "8", "-nic", "none")
_MODULES = (
    "cpufreq-dt",
    "rockchip_thermal",
    "governor_userspace",
    "imx-bus",
    "virtio_blk",
    "ext4",
    "9p",
    "9pnet_virtio",
)
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
mount -t ext4 /dev/vda /root
for folder in proc sys dev; do mount --move /$folder /root/$folder; done
mkdir -p /root/opt /root/mnt
cp -a /site /root/opt/
mount -t tmpfs tmp /root/tmp; mount -t tmpfs run /root/run
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 shared /root/mnt
mount -t cgroup2 cgroup /root/sys/fs/cgroup
ifconfig lo 127.0.0.1 up
exec switch_root /root /bin/sh /mnt/agent
"""
# Runs the scripts that are put into the folder, one after the other.
_AGENT = """
mkdir /opt/bin
busybox --install -s /opt/bin
export PATH=/opt/site/bin:/usr/bin:/usr/sbin:/opt/bin HOME=/root PYTHONPATH=/opt/site
touch /mnt/up
while :; do
  for script in /mnt/*.run; do
    [ -e "$script" ] || continue
    base=${script%.run}
    mv "$script" "$base.sh"
    cd /root && bash "$base.sh" > "$base.out" 2> "$base.err" < /dev/null
    echo $? > "$base.code" && mv "$base.code" "$base.done"
  done
  sleep 0.1
done
"""
_PROGRAM = """#!/usr/bin/python3
from trilithon.cli.main import entry
entry()
"""

# For a script on the board: a request, tried until the server listens.
ASK = """
import json, sys, time, urllib.error, urllib.request
def ask(path, body=None):
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request("http://127.0.0.1:8123" + path, body and json.dumps(body).encode(), head)
    for attempt in range(2000):
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return {"refused": error.code, "text": error.read().decode()}
        except OSError:
            time.sleep(0.3)
    sys.exit("the server does not listen")
"""


@dataclass(slots=True)
class VirtualBoard:
    """`folder` is /mnt inside. `memory` is the board's, as a file."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    memory: Path
    _count: int = 0

    def run(self, script: str, *, timeout: float = RUN_SECONDS) -> "subprocess.CompletedProcess[str]":
        """A script of bash. Raises TimeoutError."""
        self._count += 1
        base = self.folder / f"{self._count}"
        base.with_suffix(".new").write_text(script)
        base.with_suffix(".new").rename(base.with_suffix(".run"))
        self.wait_for(base.with_suffix(".done"), timeout)
        output, errors = (base.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        code = int(base.with_suffix(".done").read_text())
        return subprocess.CompletedProcess(script, code, output, errors)

    def output(self, script: str, *, timeout: float = RUN_SECONDS) -> str:
        """What it prints; raises AssertionError, with all it said, when it fails."""
        done = self.run(script, timeout=timeout)
        assert done.returncode == 0, (
            f"{script}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        return done.stdout

    def trilithon(self, *words: str, timeout: float = RUN_SECONDS) -> str:
        return self.output(shlex.join(["trilithon", *words]), timeout=timeout)

    def heat(self, zone: str, celsius: float) -> None:
        with self.memory.open("r+b", buffering=0) as memory:
            memory.seek(temperature_register(zone) - MEMORY)
            memory.write(temperature_code(celsius).to_bytes(4, "little"))

    def wait_for(self, file: Path, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not file.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                console = (self.folder / "console.log").read_text(errors="replace")
                raise TimeoutError(
                    f"no {file.name} from the virtual board after {seconds} s; its console:\n{console[-3000:]}"
                )
            time.sleep(0.05)


def make_disk(root: Path, disk: Path) -> None:
    """A file system with what the folder `root` has, and 4 GiB more."""
    size = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_symlink()) + (4 << 30)
    command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, disk, f"{size >> 10}k"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": PROGRAMS})


@contextmanager
def started(
    fixtures: Path, disk: Path, site: Path, folder: Path, *, memory: str = "4G", celsius: Mapping[str, float] = {}
) -> Iterator[VirtualBoard]:
    """Boots; pip has installed the project into the folder `site`. What is written to the disk is forgotten."""
    parts = fixtures / "virtual-board"
    qemu = parts / "qemu" / "usr"
    # With its own libraries, by their own loader: any Linux will do.
    command = [qemu / "lib64" / "ld-linux-x86-64.so.2", "--library-path", qemu / "lib" / "x86_64-linux-gnu"]
    command += [qemu / "bin" / "qemu-system-aarch64", "-L", qemu / "share" / "qemu", *_MACHINE]
    command += ["-object", f"memory-backend-memfd,id=ram,size={memory},share=on", "-m", memory, "-display", "none"]
    virt = folder / "virt.dtb"
    dump = [*command, "-machine", f"dumpdtb={virt}"]
    subprocess.run(dump, check=True, capture_output=True)
    shared = folder / "shared"
    shared.mkdir()
    (shared / "agent").write_text(_AGENT)
    tree, values, image = folder / "board.dtb", folder / "registers", folder / "initrd"
    tree.write_bytes(virtual_device_tree(virt, fixtures / "dtb"))
    values.write_bytes(registers(celsius))
    image.write_bytes(_initrd(parts / "kernel", fixtures / "arm64-root", site))
    command += ["-accel", "tcg,thread=multi", "-kernel", parts / "kernel" / "vmlinuz", "-dtb", tree, "-initrd", image]
    command += ["-append", "console=ttyAMA0 loglevel=1 panic=-1", "-no-reboot", "-monitor", "none"]
    command += ["-serial", f"file:{shared / 'console.log'}"]
    command += ["-device", f"loader,file={values},addr={REGISTERS:#x},force-raw=on"]
    command += ["-drive", f"if=none,id=disk,file={disk},format=raw,snapshot=on", "-device", "virtio-blk-pci,drive=disk"]
    command += ["-virtfs", f"local,path={shared},mount_tag=shared,security_model=none"]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)}) as process:
        try:
            board = VirtualBoard(shared, process, Path())
            board.wait_for(shared / "up", BOOT_SECONDS)
            descriptors = Path(f"/proc/{process.pid}/fd").iterdir()
            board.memory = next(path for path in descriptors if "memfd:" in str(path.readlink()))
            yield board
        finally:
            process.kill()


def _initrd(kernel: Path, root: Path, site: Path) -> bytes:
    """What runs first: the modules that the disk needs, and the project."""
    folders = ("bin", "modules", "site", "site/bin", "root", "proc", "sys", "dev")
    files: dict[str, tuple[int, bytes]] = dict.fromkeys(folders, (0o40755, b""))
    files["init"] = (0o100755, _INIT.encode())
    files["bin/busybox"] = (0o100755, (root / "usr/bin/busybox").read_bytes())
    for number, (name, content) in enumerate(_modules(kernel).items()):
        files[f"modules/{number:02}-{name}.ko"] = (0o100644, content)
    dates: dict[str, int] = {}  # Python compares a source's with that in what is compiled
    for path in sorted(site.rglob("*")):
        name = f"site/{path.relative_to(site)}"
        files[name] = (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        dates[name] = int(path.stat().st_mtime)
    files["site/bin/trilithon"] = (0o100755, _PROGRAM.encode())
    archive = bytearray()
    for name, (mode, content) in (files | {"TRAILER!!!": (0, b"")}).items():
        # The kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
        numbers = (len(archive), mode, 0, 0, 1, dates.get(name, 0), len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
        for part in (head, content):
            archive += part + bytes(-len(part) % 4)
    return bytes(archive)


def _modules(kernel: Path) -> dict[str, bytes]:
    """Unpacked, each after those that it needs."""
    modules: dict[str, bytes] = {}

    def add(name: str) -> None:
        content = lzma.decompress((kernel / f"{name}.ko.xz").read_bytes())
        needed = re.search(rb"\0depends=([^\0]*)\0", content)
        for other in needed[1].decode().split(",") if needed and needed[1] else ():
            if other not in modules:
                add(other)
        modules[name] = content

    for name in _MODULES:
        if name not in modules:
            add(name)
    return modules
