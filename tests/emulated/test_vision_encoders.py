"""Files of the vendor's converter, and its simulator in place of the NPU."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trilithon.engines.rkllm.child.template import ModelText
from trilithon.engines.rkllm.child.vision import VisionEncoder, VisionForm, open_encoder
from trilithon.models.files.rknn import RknnFacts, read_rknn

SCRIPT = Path(__file__).with_name("rknn_toolkit.py")
MARKS = ("<a>", "<b>", "<c>")
# known(ran): rknn-toolkit2 2.5.0: the simulator's outputs have the shape (1, tokens, size) and are float32
# rknn-toolkit-lite2's calls, answered by the simulator of rknn-toolkit2.
RKNNLITE = """
import os
import subprocess
from pathlib import Path
import numpy as np

class RKNNLite:
    NPU_CORE_0_1_2 = 7

    def load_rknn(self, path):
        self.onnx = Path(path).with_name(Path(path).name.partition("-")[0] + ".onnx")
        return 0

    def init_runtime(self, core_mask=None):
        return 0

    def inference(self, inputs):
        folder = Path(os.environ["SIMULATOR_FOLDER"])
        np.save(folder / "pixels.npy", inputs[0])
        command = os.environ["SIMULATOR_COMMAND"].split()
        command += ["run", self.onnx, folder / "pixels.npy", folder / "out.npz"]
        subprocess.run(command, check=True, capture_output=True)
        with np.load(folder / "out.npz") as outputs:
            return [outputs[name] for name in sorted(outputs) if name.startswith("o")]

    def release(self):
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["rk3588", "rk3576", "rk3562"])
@pytest.mark.parametrize("outputs", [1, 4])
def test_the_converters_files_state_their_facts(encoders: Path, chip: str, outputs: int) -> None:
    facts = read_rknn(encoders / f"{outputs}-{chip}.rknn")
    assert facts == RknnFacts(platforms=(chip,), toolkit="2.5.0", outputs=outputs, width=32, height=32)


@pytest.mark.slow
def test_an_encoder_for_another_chip_is_refused(encoders: Path) -> None:
    _, reason = open_encoder(Path("m.rkllm"), str(encoders / "1-rk3576.rknn"), "RK3588", ModelText(None, None, ""))
    assert reason == "1-rk3576.rknn is for the RK3576, and this is an RK3588; convert it for rk3588"


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [1, 4])
def test_an_encoder_gives_what_onnxruntime_gives(
    encoders: Path, rknn_toolkit: Path, outputs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "rknnlite"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "api.py").write_text(RKNNLITE)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("SIMULATOR_COMMAND", f"{rknn_toolkit} {SCRIPT}")
    monkeypatch.setenv("SIMULATOR_FOLDER", str(tmp_path))
    picture = io.BytesIO()
    Image.effect_mandelbrot((48, 32), (-2, -1, 1, 1), 20).convert("RGB").save(picture, "PNG")
    encoder = VisionEncoder(encoders / f"{outputs}-rk3588.rknn", VisionForm(32, 32, MARKS), "RK3588")
    embeddings = encoder.picture("", [picture.getvalue()]).embeddings
    with np.load(tmp_path / "out.npz") as stored:
        reference = np.concatenate([stored[f"r{number}"][0] for number in range(outputs)], axis=1)
    assert embeddings.shape == (1, 16, 16 * outputs)
    assert np.abs(embeddings[0] - reference).max() < 1e-3
