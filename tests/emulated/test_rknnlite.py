"""What rknn-toolkit-lite2 prints where it fails, and the cause and the fix that Trilithon makes of it. Its aarch64
wheel runs under qemu; only librknnrt.so, which no package index has, is a stand-in."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from arm64_root import Arm64Root

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# known(ran): rknn-toolkit-lite2 2.5.0: it needs these functions of librknnrt.so
# known(ran): rknn-toolkit-lite2 2.5.0: the name of each code that rknn_init returns
# known(log): rockchip-linux/rknn-toolkit2#244: the line of librknnrt without its driver
LIBRARY = """
int puts(const char *);
int fflush(void *);
int atoi(const char *);
char *getenv(const char *);

int rknn_init(void *context, void *model, unsigned size, unsigned flag, void *extend) {
  if (*getenv("STANDIN_LINE"))
    puts(getenv("STANDIN_LINE"));
  fflush(0);
  return atoi(getenv("STANDIN_CODE"));
}

#define FUNCTION(name) int name(void) { return 0; }
FUNCTION(rknn_destroy) FUNCTION(rknn_query) FUNCTION(rknn_run) FUNCTION(rknn_run_extend)
FUNCTION(rknn_inputs_set) FUNCTION(rknn_outputs_get) FUNCTION(rknn_outputs_release)
FUNCTION(rknn_set_core_mask) FUNCTION(rknn_set_input_shapes)
FUNCTION(rknn_init_extend) FUNCTION(rknn_rt_init_extend)
"""

ROCK_5B = {"compatible": "radxa,rock-5b\0rockchip,rk3588\0", "chip": "RK3588"}
ROCK_4D = {"compatible": "radxa,rock-4d\0rockchip,rk3576\0", "chip": "RK3576"}
PI_4 = {"compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0", "chip": ""}
NO_TREE = {"compatible": None, "chip": ""}
CONTAINER, RENDER_NODE = "/.dockerenv", "/dev/dri/renderD129"
NO_DRIVER = "E RKNN: [16:12:13.845] failed to open rknpu module, need to insmod rknpu dirver!"

MISSING = "librknnrt.so is missing; put librknnrt.so into /usr/lib"
UNKNOWN_CHIP = "rknn-toolkit-lite2 cannot tell the chip, or does not run on it; "
IN_CONTAINER = "the container lacks files that rknn-toolkit-lite2 looks for; start it with --device /dev/dri"
BROKEN = "a shared library is damaged or was made for another system: /usr/lib/librknnrt.so; install it again"


def code(number: int, **more: Any) -> dict[str, Any]:
    return {**ROCK_5B, "library": "standin", "code": number, **more}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "library-missing": (ROCK_5B, MISSING),
    "library-missing-rk3576": (ROCK_4D, MISSING),
    "no-device-tree": (NO_TREE, UNKNOWN_CHIP),
    "other-maker": (PI_4, UNKNOWN_CHIP),
    "rk3399": ({"compatible": "rockchip,rk3399\0", "chip": "RK3399"}, UNKNOWN_CHIP),
    "container": ({**ROCK_5B, "files": [CONTAINER]}, IN_CONTAINER),
    "container-rk3576": ({**ROCK_4D, "files": [CONTAINER]}, IN_CONTAINER),
    "container-without-tree": ({**NO_TREE, "files": [CONTAINER]}, IN_CONTAINER),
    "container-without-library": ({**ROCK_5B, "files": [CONTAINER, RENDER_NODE]}, MISSING),
    "library-cut-short": ({**ROCK_5B, "library": "<html>"}, BROKEN),
    "library-is-a-page": ({**ROCK_5B, "library": "<html>" * 1000}, BROKEN),
    "no-driver": (code(-3, line=NO_DRIVER), "NPU driver cannot be opened; "),
    "fail": (code(-1), "the NPU runtime cannot take the model: RKNN_ERR_"),
    "timeout": (code(-2), "the NPU did not answer in time; "),
    "unavailable": (code(-3), "NPU driver cannot be opened; "),
    "no-memory": (code(-4), "out of NPU memory"),
    "parameter": (code(-5), "the NPU runtime cannot take the model: RKNN_ERR_"),
    "model": (code(-6), "not an RKNN model; "),
    "driver-version": (code(-10), "NPU driver older than 0.9.8; "),
    "other-version": (code(-11), "model converted for another version of the NPU runtime; "),
    "other-optimisation": (code(-12), "model converted for another version of the NPU runtime; "),
    "other-chip": (code(-13), "model converted for another chip; "),
    "encrypted": (code(-14), "the model is encrypted; "),
}


@pytest.fixture(scope="module")
def outcomes(arm64: Arm64Root) -> dict[str, dict[str, str]]:
    (arm64.work / "cases.json").write_text(json.dumps({name: case for name, (case, _) in CASES.items()}))
    (arm64.work / "librknnrt.c").write_text(LIBRARY)
    shutil.copy(Path(__file__).with_name("rknnlite_cases.py"), arm64.work)
    built = arm64.run("tcc", "-shared", "-nostdlib", "-o", "/home/librknnrt.so", "/home/librknnrt.c")
    assert built.returncode == 0, built.stderr
    prefix = {"QEMU_LD_PREFIX": "/tmp/planted", "OPENBLAS_NUM_THREADS": "1"}
    argv = ("python3", "/home/rknnlite_cases.py", "/home/cases.json", "/home/librknnrt.so", "/home/outcomes.json")
    done = arm64.run(*argv, environment=prefix)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes: dict[str, dict[str, str]] = json.loads((arm64.work / "outcomes.json").read_text())
    return outcomes


@pytest.mark.parametrize("name", CASES)
def test_the_cause_and_its_fix_are_told(outcomes: dict[str, dict[str, str]], name: str) -> None:
    _, words = CASES[name]
    message, printed = outcomes[name]["message"], outcomes[name]["printed"]
    assert message.startswith(f"the vision encoder encoder.rknn cannot be started on the NPU: {words}"), printed
    assert "; " in message and "\n" not in message
