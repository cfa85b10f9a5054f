"""Each message of the RKLLM runtime, as it stands in a child's log, and what the user reads in its place."""

import pytest

from trilithon.runtime.diagnostics import diagnose

# Strings of the runtime (published for 1.2.x), with values where it prints some.
MESSAGES = [
    (
        "Platform error, must be either RK3588, RK3576, RV1126B or RK3562. Your platform is lite",
        "this chip is not one that the NPU runtime takes",
        "run the model on another unit",
    ),
    (
        "Platform error, must be either RK3588, RK3576, RV1126B or RK3562. Your platform is unknown",
        "the NPU runtime cannot tell the chip",
        "look whether the NPU's driver is the vendor's, 0.9.8 or newer: `trilithon doctor`",
    ),
    (
        "the model's target_platform does not match the real platform",
        "model converted for another chip",
        "get or convert the model for this chip",
    ),
    (
        "max_context[32768] must be less than the model's max_context_limit[4096]",
        "context longer than the model was converted for",
        "choose a shorter context",
    ),
    (
        "The rkllm-runtime version is lower than the rkllm-toolkit version, please update the rkllm-runtime",
        "NPU runtime older than the model",
        "install librkllmrt.so of the toolkit's version",
    ),
    (
        "the model version is too old, please reconvert the model",
        "model too old for the NPU runtime",
        "convert the model again with the toolkit of the runtime's version",
    ),
    ("invalid rkllm model!", "not an RKLLM model", "fetch the file again and compare its size and sha256"),
    (
        "length of prompt is greater than max context",
        "prompt longer than the context",
        "shorten the prompt, or choose a longer context",
    ),
    ("context is not enough", "prompt longer than the context", "shorten the prompt, or choose a longer context"),
    (
        "n_keep must be less than max_context",
        "more tokens to keep than the context holds",
        "choose a smaller keep_tokens, or a longer context",
    ),
    (
        "multimodal input must contain the <image> tag",
        "picture given without its place in the prompt",
        "put the <image> tag into the prompt",
    ),
    (
        "failed to open rknpu module, need to insmod rknpu dirver!",
        "NPU driver cannot be opened",
        "check that the driver is loaded and the device node may be opened: `trilithon doctor`",
    ),
    (
        "failed to malloc npu memory, size: 268435456, flags: 0x2, errno: 14, Bad address",
        "out of NPU memory (IOMMU domains full)",
        "choose a smaller model or another domain (each holds 4 GB), or close what else holds the NPU",
    ),
    (
        "failed to create dma buffer: Too many open files",
        "too many open files",
        "raise the limit: ulimit -n 102400 (systemd: LimitNOFILE=102400)",
    ),
]


@pytest.mark.parametrize(("message", "cause", "advice"), MESSAGES)
@pytest.mark.parametrize("returncode", [255, 1, -11])  # 1.3.0 crashes where others return an error (issue 522)
def test_what_the_user_reads(message: str, cause: str, advice: str, returncode: int) -> None:
    log = f"I rkllm: rkllm-runtime version: 1.2.1, driver version: 0.9.8\nE rkllm: {message}\nE rkllm: init failed\n"
    found = diagnose(returncode, log, killed_by_us=False, oom_kills_before=0, oom_kills_after=0)
    assert (found.cause, found.advice) == (cause, advice)
    assert f"E rkllm: {message}" in found.last_words


def test_a_version_warning_is_not_the_cause_of_what_comes_later() -> None:
    log = "W rkllm: The rkllm-runtime version is lower than the rkllm-toolkit version\nE rkllm: invalid rkllm model!\n"
    found = diagnose(255, log, killed_by_us=False, oom_kills_before=0, oom_kills_after=0)
    assert found.cause == "not an RKLLM model"


def test_what_was_fixed_by_beginning_anew_is_not_the_cause() -> None:
    limit = "E rkllm: max_context[32768] must be less than the model's max_context_limit[4096]\n"
    anew = limit + "note: the context is cut to 4096 tokens, for which the model was converted\n"
    for returncode, cause in ((-11, "segmentation fault (SIGSEGV)"), (3, "exit code 3")):
        found = diagnose(returncode, anew, killed_by_us=False, oom_kills_before=0, oom_kills_after=0)
        assert found.cause == cause
    found = diagnose(3, anew + limit, killed_by_us=False, oom_kills_before=0, oom_kills_after=0)
    assert found.cause == "context longer than the model was converted for"
