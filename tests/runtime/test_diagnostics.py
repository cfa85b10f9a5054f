import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.runtime.diagnostics import Diagnosis, diagnose


def judge(
    returncode: int | None, log: str = "", *, ours: bool = False, before: int | None = None, after: int | None = None
) -> Diagnosis:
    return diagnose(returncode, log, killed_by_us=ours, oom_kills_before=before, oom_kills_after=after)


# What llama-server really printed when these were provoked.
NOT_A_GGUF = """\
0.00.007.797 I srv    load_model: loading model 'junk.gguf'
0.00.008.202 E gguf_init_from_reader: invalid magic characters: '?S??', expected 'GGUF'
0.00.008.878 E llama_model_load: error loading model: llama_model_loader: failed to load model from junk.gguf
0.00.008.990 E llama_model_load_from_file_impl: failed to load model
0.00.009.123 E common_fit_params: encountered an error while trying to fit params to free device memory: failed to load
0.00.009.513 E cmn  common_init_: failed to load model 'junk.gguf'
0.00.009.679 I srv    operator(): operator(): cleaning up before exit...
0.00.010.736 E srv  llama_server: exiting due to model loading error
"""
TRUNCATED = """\
0.00.055.367 E llama_model_load: error loading model: tensor 'token_embd.weight' data is not within the file bounds, \
model is corrupted or incomplete
0.00.055.660 E llama_model_load_from_file_impl: failed to load model
0.00.104.202 E srv  llama_server: exiting due to model loading error
"""
NO_MEMORY = """\
0.00.774.641 E ggml_aligned_malloc: insufficient memory (attempted to allocate 11718.75 MB)
0.00.774.686 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 12288000000
0.00.789.448 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache
0.00.789.475 E cmn  common_init_: failed to create context with model 'gemma.gguf'
0.00.791.228 E srv  llama_server: exiting due to model loading error
"""
V_CACHE = """\
0.00.719.159 E common_fit_params: encountered an error while trying to fit params to free device memory: failed
0.01.392.581 E llama_init_from_model: quantized V cache requires flash_attn to be enabled
0.01.392.709 E cmn  common_init_: failed to create context with model 'gemma.gguf'
"""
NO_SOCKET = """\
0.00.003.488 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080
0.00.003.618 E srv  llama_server: exiting due to HTTP server error
"""
MISSING = """\
0.00.005.961 E gguf_init_from_file: failed to open GGUF file 'missing.gguf' (No such file or directory)
0.00.006.131 E llama_model_load: error loading model: llama_model_loader: failed to load model from missing.gguf
"""
VULKAN_MEMORY = """\
ggml_vulkan: Device memory allocation of size 4294967296 failed.
ggml_vulkan: Requested buffer size exceeds device memory allocation limit: ErrorOutOfDeviceMemory
alloc_tensor_range: failed to allocate Vulkan0 buffer of size 4294967296
llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache
"""
VULKAN_LOST = """\
ggml_vulkan: Failed to allocate pinned memory (vk::Device::allocateMemory: ErrorOutOfDeviceMemory)
terminate called after throwing an instance of 'vk::DeviceLostError'
  what():  vk::Queue::submit: ErrorDeviceLost
"""


@pytest.mark.parametrize(
    ("returncode", "log", "cause"),
    [
        (1, NOT_A_GGUF, "not a GGUF file"),
        (1, "error: invalid argument: --spec-type", "this build does not know one of its options"),
        (1, TRUNCATED, "model file cut short or damaged"),
        (1, NO_MEMORY, "out of memory"),
        (1, V_CACHE, "a quantized V cache needs flash attention"),
        (1, NO_SOCKET, "address already in use"),
        (1, MISSING, "model file cannot be opened"),
        (1, VULKAN_MEMORY, "out of GPU memory"),
        (-6, VULKAN_LOST, "GPU lost (Vulkan device lost)"),
        (1, "error loading model architecture: unknown model architecture: 'x'", "model architecture unknown"),
        (1, "RKNPU ERROR: Out of memory in allowed IOMMU domains!", "out of NPU memory"),
        (-11, "E RKNN: failed to submit!, op id: 3", "the NPU refused the work"),
        (-11, "dma_buf: Too many open files", "too many open files"),
        (255, "E rkllm: failed to open rknpu module, need to insmod rknpu dirver!", "NPU driver cannot be opened"),
        (255, "failed to malloc npu memory, size: 4096, Bad address", "out of NPU memory"),
        (255, "Platform error, must be either RK3588, RK3576, RV1126B or RK3562.", "this chip is not one"),
        (255, "the model's target_platform does not match the real platform", "model converted for another chip"),
        (255, "max_context[32768] must be less than the model's max_context_limit[16384]", "context longer than"),
        (255, "The rkllm-runtime version is lower than the rkllm-toolkit version", "NPU runtime older than"),
        (255, "the model version is too old, please reconvert", "model too old"),
        (255, "invalid rkllm model!", "not an RKLLM model"),
        (1, "OSError: [Errno 98] Address already in use", "address already in use"),
        (127, "x: error while loading shared libraries: librknnrt.so: cannot open", "librknnrt.so is missing"),
        (127, "x: error while loading shared libraries: libvulkan.so.1: cannot open", "a shared library is missing"),
        (126, "trilithon guard: cannot start x: Exec format error", "build made for another kind of machine"),
        (127, "trilithon guard: cannot start x: not found", "the engine's program cannot be started"),
        (-4, "address already in use", "illegal instruction (the build was made for a CPU"),
        (-6, "GGML_ASSERT(a != b) failed\n#1 0xff\n#2 0xfe", "a check inside the engine failed"),
        (1, "std::bad_alloc", "out of memory"),
    ],
)
def test_known_causes(returncode: int, log: str, cause: str) -> None:
    diagnosis = judge(returncode, log)
    assert diagnosis.cause.startswith(cause)
    assert diagnosis.advice
    assert "\n" not in diagnosis.cause + diagnosis.advice


def test_the_fatal_line_nearest_the_end_wins() -> None:
    first, second = "std::bad_alloc", "bind: Address already in use"
    assert judge(1, f"{first}\n{second}\nbye").cause == "address already in use"
    assert judge(1, f"{second}\n{first}\nbye").cause == "out of memory"


def test_a_warning_long_before_the_end_is_not_the_cause() -> None:
    assert judge(3, "cannot allocate memory\n" + "served a request\n" * 200).cause == "exit code 3"


def test_harmless_lines_are_passed_over() -> None:
    log = "ggml_vulkan: Failed to allocate pinned memory (ErrorOutOfDeviceMemory)"
    assert judge(-11, log).cause == "segmentation fault (SIGSEGV)"


def test_signals_and_exit_codes() -> None:
    crash = judge(-signal.SIGSEGV)
    assert (crash.cause, crash.signal, crash.exit_code) == (*["segmentation fault (SIGSEGV)"] * 2, None)
    assert crash.advice
    assert judge(139).signal == "segmentation fault (SIGSEGV)"  # told by a shell
    assert judge(139).exit_code == 139
    assert (judge(3).cause, judge(3).signal, judge(3).exit_code) == ("exit code 3", "", 3)
    assert judge(0).cause == "ended by itself (exit code 0)"
    assert judge(-15).cause == "killed from outside (SIGTERM)"
    assert judge(-63).signal == "signal 63"


def test_a_living_child_has_no_cause_but_words() -> None:
    alive = judge(None, "one\ntwo\n")
    assert (alive.cause, alive.signal, alive.exit_code, alive.last_words) == ("", "", None, ("one", "two"))
    assert judge(None, "vk::Queue::submit: ErrorDeviceLost").cause == "GPU lost (Vulkan device lost)"


@pytest.mark.parametrize("returncode", [0, -15, -9, 143, 137])
def test_our_own_stop_has_no_cause(returncode: int) -> None:
    diagnosis = judge(returncode, "std::bad_alloc", ours=True, before=0, after=5)
    assert (diagnosis.cause, diagnosis.advice) == ("", "")


def test_a_crash_while_we_stop_is_still_a_crash() -> None:
    assert judge(-11, ours=True).cause == "segmentation fault (SIGSEGV)"
    assert judge(3, ours=True).cause == "exit code 3"


@pytest.mark.parametrize("returncode", [-9, 137])
def test_sigkill_with_and_without_evidence(returncode: int) -> None:
    assert judge(returncode, before=4, after=5).cause == "killed by the kernel: out of memory"
    for before, after in ((4, 4), (None, None), (None, 5)):
        cause = judge(returncode, "invalid magic characters", before=before, after=after).cause
        assert cause == "killed from outside (SIGKILL), most often out of memory"


def test_last_words_are_clean_and_few() -> None:
    log = "".join(f"line {number}\n" for number in range(100)) + "\x1b[31mred\x1b[0m\x07\t\x1b]0;title\x07end\r\n\n\n"
    assert judge(1, log).last_words == (*(f"line {number}" for number in range(93, 100)), "red end")
    assert judge(1, "x" * 5000).last_words == ("x" * 299 + "…",)


counters = st.none() | st.integers(0, 10)


@given(
    st.none() | st.integers(-300, 300),
    st.text(st.characters()) | st.text("\x1b[]m;\x07\x9b\n\rab"),
    st.booleans(),
    counters,
    counters,
)
def test_it_never_raises_and_is_bounded(
    returncode: int | None, log: str, ours: bool, before: int | None, after: int | None
) -> None:
    diagnosis = judge(returncode, log, ours=ours, before=before, after=after)
    assert len(diagnosis.last_words) <= 8
    assert all(0 < len(words) <= 300 and words.isprintable() for words in diagnosis.last_words)
    if returncode not in (None, 0) and not ours:
        assert diagnosis.cause


def test_a_backtrace_does_not_push_out_the_line_that_says_why() -> None:
    """From llama-server over Mesa's software device, which takes 128 MiB in one buffer; gdb was installed."""
    log = "\n".join(
        [
            "0.00.05 I srv    load_model: loading model 'tiny.gguf'",
            "pre-allocated tensor (cache_k_l0) in a buffer (Vulkan0) that cannot run the operation (NONE)",
            "[New LWP 29639]",
            "[Thread debugging using libthread_db enabled]",
            'Using host libthread_db library "/lib/x86_64-linux-gnu/libthread_db.so.1".',
            "0x00007fc3f6cf1c17 in __GI___wait4 (pid=32616, stat_loc=0x0) at ../sysdeps/unix/sysv/linux/wait4.c:30",
            "30\t../sysdeps/unix/sysv/linux/wait4.c: No such file or directory.",
            *(f"#{at}  0x00007fb178463a52 in frame_{at} () from libllama.so.0" for at in range(20)),
            "[Inferior 1 (process 29638) detached]",
        ]
    )
    found = diagnose(-6, log, killed_by_us=False, oom_kills_before=0, oom_kills_after=0)
    assert found.cause == "a tensor larger than the GPU takes in one buffer"
    assert len(found.last_words) == 2
    assert found.last_words[-1].endswith("cannot run the operation (NONE)")


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("ggml_vulkan: Device memory allocation of size 805306368 failed.", "out of GPU memory"),
        ("ggml_vulkan: Memory allocation of size 1024 failed.", "out of GPU memory"),
        ("ggml_vulkan: device lost on Vulkan0 waiting for submission (nodes 1 to 9):", "GPU lost (Vulkan device lost)"),
        ("ggml_vulkan: device fault on Vulkan0: page fault", "GPU lost (Vulkan device lost)"),
        ("ggml_vulkan: Compute pipeline creation failed for mul_mat_l", "the GPU's driver cannot compile a shader"),
        (
            "ggml_vulkan: device Vulkan0 does not support 16-bit storage.",
            "the GPU lacks what the engine's Vulkan needs",
        ),
    ],
)
def test_lines_of_the_vulkan_backend(line: str, cause: str) -> None:
    """As ggml-vulkan.cpp writes them (llama.cpp 0c1e570)."""
    found = diagnose(-6, line, killed_by_us=False, oom_kills_before=0, oom_kills_after=0)
    assert found.cause == cause
    assert found.advice
