"""Lines of vendors' logs. Those marked as real are from users' reports and the forks' sources."""

import pytest

from trilithon.engines.vendor_log import VendorLine, vendor_errors, vendor_line, without_time

# airockchip/rknn-toolkit2 and rknn-llm, reports of board owners.
SUBMIT = (
    "E RKNN: [17:19:34.670] failed to submit!, op id: 0, op name: MatMul, flags: 0x5, task start: 0, task number: 1, "
    "run task counter: 0, int status: 0x200"
)
RKLLM_LOG = f"""\
I rkllm: rkllm-runtime version: 1.2.3, rknpu driver version: 0.8.2, platform: RK3588
W rkllm: Warning: Your rknpu driver version is too low, please upgrade to 0.9.7
E rkllm: matmul(w8a8) run failed
{SUBMIT}
main: server is listening
"""


@pytest.mark.parametrize(
    ("line", "component", "level", "time", "text"),
    [
        (SUBMIT, "rknn", "E", "17:19:34.670", SUBMIT.partition("] ")[2]),
        ("E rkllm: matmul(w8a8) run failed", "rkllm", "E", None, "matmul(w8a8) run failed"),
        ("E rkllm: matmul(w8a8) run failedrobot: hm", "rkllm", "E", None, "matmul(w8a8) run failedrobot: hm"),
        ("E RKNN: [14:23:45] Build model fail!", "rknn", "E", "14:23:45", "Build model fail!"),
        ("E RKNN: failed to submit!", "rknn", "E", None, "failed to submit!"),
        ("W rkllm: Warning: too low", "rkllm", "W", None, "Warning: too low"),
        ("I RKNN: [05:30:43.541] sdk version", "rknn", "I", "05:30:43.541", "sdk version"),
        ("D RKNNAPI: DRV: 1.0", "rknnapi", "D", None, "DRV: 1.0"),
        ("......E RKNN: [01:24:27.170] Invalid RKNN model version 6", "rknn", "E", "01:24:27.170", None),
        ("\x1b[31mE RKNN: [01:24:27.170] 6, 1\x1b[0m", "rknn", "E", "01:24:27.170", "6, 1\x1b[0m"),
        ("RKNPU ERROR: Out of memory in allowed IOMMU domains!", "rknpu", "E", None, None),
        ("RKNPU WARNING: Custom IOMMU domains detected", "rknpu", "W", None, None),
        ("RKNN error -1 at ggml-rknpu2.cpp:812: rknn_matmul_set_io_mem", "rknn", "E", None, None),
        ("RKNPU: rknn_matmul_run failed ret=-1", "rknpu", "E", None, "rknn_matmul_run failed ret=-1"),
        ("RKNPU2: rknn_matmul_run failed for segment 3", "rknpu2", "E", None, "rknn_matmul_run failed for segment 3"),
        ("rknn_matmul_run failed for core 1 with error -1", "rknn", "E", None, None),
    ],
)
def test_a_vendor_line(line: str, component: str, level: str, time: str | None, text: str | None) -> None:
    read = vendor_line(line)
    assert read is not None
    assert (read.component, read.level, read.time) == (component, level, time)
    if text is not None:
        assert read.text == text


@pytest.mark.parametrize(
    "line",
    [
        "",
        "main: model loaded",
        "srv  log_server_r: done request: POST /completion 200",
        'the user asks: "E RKNN: [17:19:34.670] failed to submit!"',
        "RKNPU: using 3 cores",
        "RKNPU model buffer size =  1200.00 MiB",
        "E something: else",
        "0.00.035 E srv  send_error: task id = 0, error: no",
        "Error: rkllm is not a word",
        "rknn_init ok",
    ],
)
def test_no_error_of_a_vendor(line: str) -> None:
    assert vendor_line(line) is None


def test_errors_in_order() -> None:
    assert vendor_errors(RKLLM_LOG) == (
        VendorLine("rkllm", "E", None, "matmul(w8a8) run failed"),
        VendorLine("rknn", "E", "17:19:34.670", SUBMIT.partition("] ")[2]),
    )
    assert vendor_errors("") == ()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (SUBMIT, SUBMIT.replace("[17:19:34.670] ", "")),
        (SUBMIT.lower(), SUBMIT.lower().replace("[17:19:34.670] ", "")),
        ("E rkllm: matmul(w8a8) run failed", "E rkllm: matmul(w8a8) run failed"),
        ("max_context_limit[4096] [12:00:00]", "max_context_limit[4096] [12:00:00]"),
    ],
)
def test_without_time(line: str, expected: str) -> None:
    assert without_time(line) == expected
