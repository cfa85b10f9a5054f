"""Each message with which the RKLLM runtime refuses a model, from the runtime's log to what the user reads."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from trilithon.board.sysfs import Machine
from trilithon.engines.base import Placement, Settings
from trilithon.engines.rkllm.engine import Rkllm
from trilithon.errors import StartError
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.runner import Runner
from trilithon.settings import Configuration


def board(root: Path) -> Machine:
    """An RK3588 with the vendor's driver, and this machine's CPUs as far as the runtime is concerned."""
    files = {
        "proc/device-tree/compatible": "rockchip,rk3588\0",
        "sys/module/rknpu/version": "0.9.8",
        "sys/devices/system/cpu/online": "0",
        "dev/rknpu": "",
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return Machine(root)


def start_error(tmp_path: Path, library: Path, script: str) -> StartError:
    configuration = Configuration(data=tmp_path / "d", cache=tmp_path / "c", builds=(library.parent,))
    engine = Rkllm(configuration, board(tmp_path / "board"))
    model = tmp_path / "m.rkllm"
    model.write_text(f"a stand-in's model\n#standin\n{script}\n")
    (build,) = engine.builds()
    file = read_model_file(model, tmp_path / "c")
    placement = Placement(name="rkllm/npu", file=file, build=build, unit="npu", settings=Settings())

    async def fail() -> None:
        opened = Runner.open(engine, placement, tmp_path / "run", start_seconds=20, hang_seconds=5)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(opened)

    with pytest.raises(StartError) as caught:
        asyncio.run(fail())
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fail", "cause", "advice"),
    [
        ("platform", "this chip is not one that the NPU runtime takes", "another unit"),
        ("unknown", "the NPU runtime cannot tell the chip", "0.9.8 or newer"),
        ("target", "model converted for another chip", "for this chip"),
        ("runtime", "NPU runtime older than the model", "the toolkit's version"),
        ("old", "model too old for the NPU runtime", "convert the model again"),
        (
            "magic",
            "not an RKLLM model, or one for another generation of the NPU runtime",
            "take a file that was converted",
        ),
        ("driver", "NPU driver cannot be opened", "trilithon doctor"),
        ("memory", "out of NPU memory (IOMMU domains full)", "smaller model"),
        ("files", "too many open files", "102400"),
        ("keep", "more tokens to keep than the context holds", "longer context"),
        ("segfault", "segmentation fault (SIGSEGV)", "another build"),
        ("silent", "exit code 3", ""),
    ],
)
def test_a_load_that_fails(tmp_path: Path, standin: Callable[[str], Path], fail: str, cause: str, advice: str) -> None:
    error = start_error(tmp_path, standin("1.3.0"), f"fail={fail}")
    assert error.cause == cause
    assert advice in error.advice
    assert cause in str(error)
