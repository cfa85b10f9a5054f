"""Pictures from the wire to the runtime: the server, an encoder package in rknnlite's place, the stand-in runtime."""

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

# known(source): rknn-toolkit-lite2 2.3.2 rknnlite/api/rknn_lite.py: names and returns of the calls
PACKAGE = """
import numpy as np

class RKNNLite:
    NPU_CORE_0_1_2 = 7

    def load_rknn(self, path):
        return 0

    def init_runtime(self, core_mask=None):
        return 0

    def inference(self, inputs):
        return [np.ones((1, 4, 16), dtype=np.float32)]

    def release(self):
        pass
"""
FORM = {"width": 56, "height": 28, "start": "<s>", "end": "</s>", "content": "<i>"}


@pytest.fixture
def rknnlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's process finds it on its path."""
    package = tmp_path / "packages" / "rknnlite"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "api.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), *os.environ.get("PYTHONPATH", "").split()]))


def question() -> list[dict[str, Any]]:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which colour?"}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_a_picture_reaches_the_runtime(
    rkllm: Callable[..., Any], byte_tokenizer: Path, tmp_path: Path, rknnlite: None, version: str
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for file in byte_tokenizer.iterdir():
        (files / file.name).write_bytes(file.read_bytes())
    (files / "vision.json").write_text(json.dumps(FORM))
    server = rkllm(version, files=files, options={"encoder": "v.rknn", "chip": "RK3588"}, answer="red")
    answer = server.http.post("/v1/chat/completions", json={"messages": question(), "temperature": 0})
    assert answer.json()["choices"][0]["message"]["content"] == "red"
    (seen,) = server.record("run")
    assert seen["type"] == 3


def test_without_an_encoder_the_reason_is_told(rkllm: Callable[..., Any]) -> None:
    answer = rkllm().http.post("/v1/chat/completions", json={"messages": question(), "temperature": 0})
    assert answer.status_code == 501
    assert "put the .rknn file of the model beside" in answer.json()["error"]["message"]
