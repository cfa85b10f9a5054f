"""What the dot product saves on Arm, without a board: the instructions of a prefill, counted by an emulator.

    python benchmarks/instructions.py ROOT [--model FILE] [--core NAME ...] [--json]

ROOT is an arm64 system with Debian's llama.cpp (`.ci/fixtures` makes build/fixtures/arm64-llama). It has a plug-in for
each generation of cores, which are compiled from one source with the flags that `trilithon engines build` chooses for
each. The oldest one's are the wheel's: it must run on every core. `qemu-aarch64` runs its llama-bench on each
core, with instructions.c, which counts. Two lengths are run: their difference is free of loading the model. `dot
products` are the instructions sdot and udot in the plug-in that was loaded; they need an objdump for aarch64.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from _figures import Bound, CannotMeasure, Figure, arguments, not_measured, report, run
from _placements import demo_path

from trilithon.settings import load_configuration

_CORES = {"cortex-a53": False, "cortex-a72": False, "cortex-a55": True, "cortex-a76": True}  # with dot product
_SHORT, _LONG = 16, 32
_OLDEST, _NEWEST = "cortex-a72", "cortex-a76"
_RATIO = f"instructions per token, {_NEWEST} over {_OLDEST}"
_SECONDS = 3600.0
_PLUG_IN = re.compile(r"loaded CPU backend from (\S+)")
_COUNT = re.compile(r"^instructions (\d+)$", re.MULTILINE)


def counted(root: Path, counter: Path, core: str, model: Path, tokens: int) -> tuple[int, Path]:
    """How many instructions a prefill of so many tokens takes, and the plug-in that was loaded."""
    command: list[str | Path] = [
        "qemu-aarch64",
        "-L",
        root,
        "-cpu",
        core,
        "-plugin",
        counter,
        root / "usr/bin/llama-bench",
    ]
    command += ["-m", model, "-p", str(tokens), "-n", "0", "-t", "1", "-r", "1", "--no-warmup"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    text = done.stdout + done.stderr
    plug_in, count = _PLUG_IN.search(text), _COUNT.search(text)
    if done.returncode or not plug_in or not count:
        last = text.strip().rpartition("\n")[2]
        raise CannotMeasure(f"llama-bench ended with exit code {done.returncode} on {core}: {last}; look at {root}")
    return int(count[1]), root / plug_in[1].lstrip("/") if not Path(plug_in[1]).exists() else Path(plug_in[1])


def dot_products(plug_in: Path) -> int | None:
    """None without an objdump that reads arm64."""
    program = shutil.which("aarch64-linux-gnu-objdump")
    if program is None:
        return None
    listing = subprocess.run([program, "-d", plug_in], capture_output=True, text=True, check=True).stdout
    return len(re.findall(r"\t[su]dot\t", listing))


def known_cores() -> list[str]:
    listed = subprocess.run(["qemu-aarch64", "-cpu", "help"], capture_output=True, text=True, check=False).stdout
    return [core for core in _CORES if core in listed.split()]


def counter_in(folder: Path) -> Path:
    source, counter = Path(__file__).with_suffix(".c"), folder / "instructions.so"
    compiler = shutil.which("cc")
    if compiler is None:
        raise CannotMeasure("there is no C compiler; run: sudo apt install gcc")
    said = subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\d+)", said)
    version = 2 if match and int(match[1]) >= 9 else 1  # of the interface; QEMU 9 takes 1 no longer
    flags = ["-shared", "-fPIC", "-O2", f"-DPLUGIN_VERSION={version}"]
    subprocess.run([compiler, *flags, "-o", counter, source], check=True)
    return counter


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("--model", type=Path, metavar="FILE")
    parser.add_argument("--core", choices=_CORES, action="append", default=[], help="default: all that this qemu knows")
    options = parser.parse_args()
    if shutil.which("qemu-aarch64") is None:
        raise CannotMeasure("there is no qemu-aarch64; run: sudo apt install qemu-user")
    root = options.root.absolute()
    model = options.model or demo_path(load_configuration())
    per_token: dict[str, float] = {}
    figures: dict[str, Figure] = {}
    bounds = []
    with tempfile.TemporaryDirectory() as folder:
        counter = counter_in(Path(folder))
        for core in options.core or known_cores():
            (short, plug_in), (long, _) = (counted(root, counter, core, model, n) for n in (_SHORT, _LONG))
            per_token[core] = (long - short) / (_LONG - _SHORT)
            count = dot_products(plug_in)
            figures[f"{core} plug-in"] = plug_in.name
            figures[f"{core} instructions per token, millions"] = per_token[core] / 1e6
            name = f"{core} dot products"
            figures[name] = not_measured("no aarch64-linux-gnu-objdump") if count is None else count
            if count is not None:
                bounds.append(Bound(name, least=1) if _CORES[core] else Bound(name, most=0))
            print(f"{core}: {per_token[core] / 1e6:.1f} million instructions per token", file=sys.stderr)
    if {_OLDEST, _NEWEST} <= per_token.keys():
        figures[_RATIO] = per_token[_NEWEST] / per_token[_OLDEST]
    else:
        figures[_RATIO] = not_measured(f"it needs {_OLDEST} and {_NEWEST}")
    return report(figures, [*bounds, Bound(_RATIO, most=0.5)], as_json=options.json)


if __name__ == "__main__":
    run(main)
