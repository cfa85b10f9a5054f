import base64
import io
import json
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models

from trilithon.engines.rkllm.child.template import ModelText
from trilithon.engines.rkllm.child.vision import (
    VisionEncoder,
    VisionForm,
    image_bytes,
    images_in,
    open_encoder,
    read_form,
)
from trilithon.engines.rkllm.options import install_rknnlite
from trilithon.errors import RunError, UserError
from trilithon.models.files.rknn import RknnFacts

QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
FORM = VisionForm(28, 14, QWEN)
# known(source): rknn-toolkit-lite2 2.3.2 rknnlite/api/rknn_lite.py: NPU_CORE_0_1 is 3, NPU_CORE_0_1_2 is 7
# known(source): rknn-toolkit-lite2 2.3.2 rknnlite/api/rknn_lite.py: inference gives None where it fails
# known(ran): rknn-toolkit-lite2 2.5.0: load_rknn returns 0 for any file
# known(ran): rknn-toolkit-lite2 2.5.0: init_runtime returns -1 for every failure, and the reason is only printed
# known(guess): outputs of inference on a board are float16 or float32, of the shape (1, tokens, size)
# A package in rknnlite's place: it notes its calls in a file, and does what a second file says.
STANDIN = """
import json
import os
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent

def note(*call):
    with (HERE / "calls").open("a") as file:
        file.write(json.dumps(call) + "\\n")

def script():
    path = HERE / "script"
    return json.loads(path.read_text()) if path.exists() else {}

class RKNNLite:
    NPU_CORE_0_1 = 3
    NPU_CORE_0_1_2 = 7

    def load_rknn(self, path):
        note("load_rknn", path)
        return script().get("load", 0)

    def init_runtime(self, core_mask=None):
        note("init_runtime", core_mask)
        os.write(2, script().get("printed", "").encode())
        return script().get("init", 0)

    def inference(self, inputs):
        (pixels,) = inputs
        note("inference", list(pixels.shape), str(pixels.dtype), pixels[0, 0, 0].tolist(), pixels[0, 7, 14].tolist())
        shape = script().get("shape", [1, 4, 8])
        if shape is None:
            return None
        if script().get("npz"):
            return list(np.load(script()["npz"]).values())
        shapes = script().get("shapes", [shape])
        return [np.full(shape, script().get("value", 0.5), dtype=np.float16) for shape in shapes]

    def release(self):
        note("release")
"""


class Standin:
    def __init__(self, folder: Path):
        self.folder = folder

    def script(self, **values: Any) -> None:
        (self.folder / "script").write_text(json.dumps(values))

    @property
    def calls(self) -> list[list[Any]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    folder = tmp_path / "packages" / "rknnlite"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "api.py").write_text(STANDIN)
    monkeypatch.syspath_prepend(folder.parent)
    yield Standin(folder)
    for name in ("rknnlite.api", "rknnlite"):
        sys.modules.pop(name, None)


def image(width: int = 56, height: int = 28, form: str = "PNG", colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, form)
    return buffer.getvalue()


def test_a_picture_becomes_what_the_runtime_takes(standin: Standin) -> None:
    encoder = VisionEncoder(Path("/models/v.rknn"), FORM, "RK3588")
    assert standin.calls == []
    picture = encoder.picture("What is <image>?", [image()])
    assert picture.text == "What is <image>?"
    assert (picture.embeddings.shape, picture.embeddings.dtype) == ((1, 4, 8), np.float32)
    assert (picture.embeddings == 0.5).all()
    assert (picture.width, picture.height) == (28, 14)
    assert picture.marks == tuple(mark.encode() for mark in QWEN)
    red = [255, 0, 0]
    assert standin.calls == [
        ["load_rknn", "/models/v.rknn"],
        ["init_runtime", 7],
        ["inference", [1, 14, 28, 3], "uint8", red, red],
    ]
    assert encoder.picture("And?", [image(), image()]).text == "<image><image>And?"
    assert [call[0] for call in standin.calls].count("load_rknn") == 1
    encoder.close()
    encoder.close()
    assert [call[0] for call in standin.calls].count("release") == 1


@pytest.mark.parametrize("shape", [(1, 4, 8), (4, 8), (1, 2, 2, 8)])
def test_several_outputs_are_joined_token_by_token(standin: Standin, tmp_path: Path, shape: tuple[int, ...]) -> None:
    """As of Qwen3-VL. The list and the shape (1, tokens, size) of float32 are those that rknn-toolkit2 2.5.0 gave for
    an encoder with 4 outputs in its simulator; there the joined embeddings agreed with onnxruntime's."""
    tokens = np.arange(4 * 4 * 8, dtype=np.float32).reshape(4, 4, 8)
    np.savez(tmp_path / "out.npz", *(output.reshape(shape) for output in tokens))
    standin.script(npz=str(tmp_path / "out.npz"))
    picture = VisionEncoder(Path("v.rknn"), FORM).picture("", [image(), image()])
    assert picture.embeddings.shape == (2, 4, 32)
    for token, embedding in enumerate(picture.embeddings[1]):
        assert embedding.tolist() == [*tokens[0, token], *tokens[1, token], *tokens[2, token], *tokens[3, token]]


def test_outputs_of_other_sizes_are_joined_too(standin: Standin) -> None:
    standin.script(shapes=[[1, 4, 8], [1, 4, 24]])
    assert VisionEncoder(Path("v.rknn"), FORM).picture("", [image()]).embeddings.shape == (1, 4, 32)


@pytest.mark.parametrize(("chip", "mask"), [("RK3576", 3), ("RK3562", None), ("", None)])
def test_the_cores_are_those_of_the_chip(standin: Standin, chip: str, mask: int | None) -> None:
    VisionEncoder(Path("v.rknn"), FORM, chip).picture("", [image()])
    assert ["init_runtime", mask] in standin.calls


def test_a_picture_of_other_proportions_gets_a_grey_frame(standin: Standin) -> None:
    VisionEncoder(Path("v.rknn"), FORM).picture("", [image(28, 28, "JPEG", "white")])
    _, _, _, corner, middle = standin.calls[-1]
    assert corner == [127, 127, 127]
    assert min(middle) > 250


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_formats(standin: Standin, form: str) -> None:
    assert VisionEncoder(Path("v.rknn"), FORM).picture("", [image(form=form)]).embeddings.shape == (1, 4, 8)


@pytest.mark.parametrize(
    ("images", "text", "words"),
    [
        ([b"hello"], "", "the picture cannot be read"),
        ([image()[:60]], "", "the picture cannot be read"),
        ([b""], "", "the picture cannot be read"),
        ([], "", "no picture"),
        ([image()], "<image> <image>", "2 <image> tags for 1 pictures"),
        ([image(form="TIFF")], "", "send a complete PNG"),
    ],
)
def test_what_is_no_picture(standin: Standin, images: list[bytes], text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        VisionEncoder(Path("v.rknn"), FORM).picture(text, images)
    assert "\n" not in str(caught.value)
    assert standin.calls == []


def test_a_picture_that_would_fill_the_memory(standin: Standin) -> None:
    huge = bytearray(image())
    huge[16:24] = (20_000).to_bytes(4, "big") * 2  # the header's width and height
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    with pytest.raises(UserError, match=r"20000×20000|exceeds limit"):
        VisionEncoder(Path("v.rknn"), FORM).picture("", [bytes(huge)])
    with pytest.raises(UserError, match="make it smaller"):
        VisionEncoder(Path("v.rknn"), FORM).picture("", [bytes(33 << 20)])


# known(ran): rknn-toolkit-lite2 2.5.0: what it prints without librknnrt, the device tree or a container's files
# known(log): airockchip/rknn-toolkit2#254, airockchip/rknn-toolkit2#405: lines that init_runtime prints
# known(log): rockchip-linux/rknn-toolkit2#16, rockchip-linux/rknn-toolkit2#260: lines that init_runtime prints
# known(guess): lines of librknnrt with another error, or with none
# As rknn-toolkit-lite2 and librknnrt print it (airockchip/rknn-toolkit2, issues 254 and 405;
# rockchip-linux/rknn-toolkit2, issues 16 and 260).
TRACEBACK = """E Catch exception when init runtime!
E Traceback (most recent call last):
  File "rknnlite/api/rknn_runtime.py", line 607, in rknnlite.api.rknn_runtime.RKNNRuntime._load_library
"""


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (
            f"{TRACEBACK}Exception: Can not find dynamic library on RK3588!\nPlease download the librknnrt.so from …\n",
            "cannot be started on the NPU: librknnrt.so is missing; put librknnrt.so into /usr/lib",
        ),
        (
            f"{TRACEBACK}OSError: /usr/lib/librknnrt.so: invalid ELF header\n",
            "made for another system: /usr/lib/librknnrt.so; inst",
        ),
        (
            f"E RKNN: [21:32:53.643] Invalid RKNN model version 6\n{TRACEBACK}Exception: RKNN init failed.\n",
            "NPU: model converted for another version of the NPU runtime; install the runtime",
        ),
        (
            "E RKNN: [16:06:38.734] This rknn model is for RK3588, but current platform is RK3576\n",
            "NPU: model converted for another chip",
        ),
        (
            "E RKNN: [16:12:13.845] failed to open rknpu module, need to insmod rknpu dirver!\n",
            "NPU: NPU driver cannot be opened; check that the driver is loaded",
        ),
        (
            f"{TRACEBACK}AttributeError: /usr/lib/librknnrt.so: undefined symbol: rknn_run\n",
            "librknnrt.so is older than rknn-toolkit-lite2, or another library: rknn_run; put librknnrt.so",
        ),
        (
            f"{TRACEBACK}Exception: Please specify the target in init_runtime!\n",
            "NPU: rknn-toolkit-lite2 cannot tell the chip, or does not run on it; it reads /proc/device-tree",
        ),
        (
            f"!!! It is detected that some necessary files are missing in the container.\n{TRACEBACK}RuntimeError\n",
            "NPU: the container lacks files that rknn-toolkit-lite2 looks for; start it with --device /dev/dri",
        ),
        (
            f"{TRACEBACK}Exception: RKNN init failed. error code: RKNN_ERR_FAIL\n",
            "the NPU runtime cannot take the model: RKNN_ERR_FAIL; convert it for this chip",
        ),
        ("E RKNN: [16:12:13.845] something new\n", "the NPU runtime reports an error: something new"),
        ("W RKNN: [16:12:13.845] slow\n", "cannot be started on the NPU (code -1); use one for this chip and runtime"),
    ],
)
def test_the_reason_that_is_only_printed_is_told(
    standin: Standin, capfd: pytest.CaptureFixture[str], printed: str, words: str
) -> None:
    """rknnlite returns -1 for everything."""
    standin.script(init=-1, printed=printed)
    with pytest.raises(RunError) as caught:
        VisionEncoder(Path("v.rknn"), FORM).picture("", [image()])
    assert words in str(caught.value)
    assert capfd.readouterr().err == printed


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"load": -1}, r"v.rknn cannot be loaded \(code -1\)"),
        ({"init": -5}, r"cannot be started on the NPU \(code -5\)"),
        ({"shape": None}, "gave no output"),
        ({"shapes": [[1, 4, 8], [1, 3, 8]]}, "gave outputs of 3 to 4 tokens"),
        ({"shapes": [[1, 4, 8], [8]]}, r"no usable embeddings \(shape \(8,\)\)"),
        ({"shapes": []}, "gave no output"),
        ({"shape": [8]}, "no usable embeddings"),
        ({"shape": [0, 8]}, "no usable embeddings"),
        ({"value": float("nan")}, "no usable embeddings"),
    ],
)
def test_an_encoder_that_fails(standin: Standin, script: dict[str, Any], words: str) -> None:
    standin.script(**script)
    with pytest.raises(RunError, match=words):
        VisionEncoder(Path("v.rknn"), FORM).picture("", [image()])
    if "load" in script or "init" in script:
        assert standin.calls[-1] == ["release"]


def test_without_the_package_the_reason_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"run: .*pip install rknn-toolkit-lite2"):
        VisionEncoder(Path("v.rknn"), FORM)
    assert install_rknnlite((3, 12)).endswith("pip install rknn-toolkit-lite2")
    assert "in an environment of Python 3.12, since its release 2.5.0 has nothing for 3.13" in install_rknnlite((3, 13))


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., tuple[Path, ModelText]]:
    """A model whose tokenizer has these tokens, and these files beside it."""

    def model(*tokens: str, **files: Any) -> tuple[Path, ModelText]:
        tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        tokenizer.add_special_tokens(list(tokens))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        path = tmp_path / "m.rkllm"
        return path, ModelText.beside(path)

    return model


@pytest.mark.parametrize(
    ("preprocessor", "size"),
    [
        ({"size": {"width": 392, "height": 280}}, (392, 280)),
        ({"crop_size": 448, "size": {"shortest_edge": 500}}, (448, 448)),
        ({"size": 224}, (224, 224)),
    ],
)
def test_the_form_from_the_models_own_files(
    model: Callable[..., tuple[Path, ModelText]], preprocessor: dict[str, Any], size: tuple[int, int]
) -> None:
    form = read_form(*model(*QWEN, preprocessor_config=preprocessor))
    assert form == VisionForm(*size, QWEN)


def test_words_of_another_family(model: Callable[..., tuple[Path, ModelText]]) -> None:
    words = ("<img>", "</img>", "<IMG_CONTEXT>")
    assert read_form(*model(*words, preprocessor_config={"size": 448})).marks == words


def test_a_file_of_ones_own_goes_first(model: Callable[..., tuple[Path, ModelText]]) -> None:
    own = {"width": 64, "height": 32, "start": "[", "end": "]", "content": "*"}
    assert read_form(*model(vision=own)) == VisionForm(64, 32, ("[", "]", "*"))
    assert read_form(*model(*QWEN, vision={"width": 64, "height": 32})).marks == QWEN


def test_the_encoder_states_the_size_itself(model: Callable[..., tuple[Path, ModelText]]) -> None:
    facts = RknnFacts(platforms=("rk3588",), toolkit="2.5.0", outputs=1, width=392, height=280)
    assert read_form(*model(*QWEN, vision={"width": 64, "height": 32}), facts) == VisionForm(392, 280, QWEN)
    unknown = replace(facts, width=None, height=None)
    assert read_form(*model(*QWEN, vision={"width": 64, "height": 32}), unknown) == VisionForm(64, 32, QWEN)


def test_an_encoder_for_another_chip_is_refused(
    standin: Standin, model: Callable[..., tuple[Path, ModelText]], tmp_path: Path
) -> None:
    facts = {"target_platform": ["rk3576"], "version": "2.5.0", "input_num": 1, "output_num": 1}
    text = json.dumps(facts | {"norm_tensor": [{"size": [1, 3, 28, 28]}]}).encode()
    head = (b"RKNN\0\0\0\0" + struct.pack("<2Q", 6, 0)).ljust(64, b"\0")
    (tmp_path / "e.rknn").write_bytes(head + struct.pack("<Q", len(text)) + text)
    path, tokens = model(*QWEN)
    encoder, reason = open_encoder(path, str(tmp_path / "e.rknn"), "RK3588", tokens)
    assert (encoder, reason) == (None, "e.rknn is for the RK3576, and this is an RK3588; convert it for rk3588")
    assert open_encoder(path, str(tmp_path / "e.rknn"), "RK3576", tokens)[0] is not None


def test_what_is_left_open_is_asked_for(model: Callable[..., tuple[Path, ModelText]]) -> None:
    with pytest.raises(UserError, match=r"size of pictures .* is unknown; write vision.json beside m.rkllm"):
        read_form(*model(*QWEN, preprocessor_config={"min_pixels": 3136}))
    with pytest.raises(UserError, match=r"texts for a picture are unknown; write vision.json"):
        read_form(*model(preprocessor_config={"size": 224}))
    path, text = model(*QWEN)
    (path.parent / "vision.json").write_text("{")
    with pytest.raises(UserError, match=r"vision.json cannot be read"):
        read_form(path, text)


def test_a_conversation_with_pictures(standin: Standin) -> None:
    def part(colour: str) -> dict[str, Any]:
        url = f"data:image/png;base64,{base64.b64encode(image(colour=colour)).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    messages = [
        {"role": "user", "content": [part("red"), {"type": "text", "text": "Which colour?"}]},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": [{"type": "text", "text": "And this? "}, part("blue")]},
    ]
    picture = VisionEncoder(Path("v.rknn"), FORM).chat(messages)
    assert picture.text == "User: <image>Which colour?\n\nAssistant: Red.\n\nUser: And this? <image>"
    assert picture.embeddings.shape == (2, 4, 8)
    assert [call[3] for call in standin.calls if call[0] == "inference"] == [[255, 0, 0], [0, 0, 255]]
    assert images_in([{"role": "user", "content": "no picture"}, {"role": "user"}]) == []


def test_why_images_cannot_be_taken(standin: Standin, model: Callable[..., tuple[Path, ModelText]]) -> None:
    path, text = model(*QWEN, preprocessor_config={"size": 224})
    encoder, reason = open_encoder(path, "v.rknn", "RK3588", text)
    assert (encoder is not None, reason, standin.calls) == (True, "", [])
    assert open_encoder(path, "", "RK3588", text) == (
        None,
        "images need a vision encoder; put the .rknn file of the model beside m.rkllm",
    )
    path, text = model(*QWEN, preprocessor_config={})
    assert "write vision.json" in open_encoder(path, "v.rknn", "RK3588", text)[1]


def test_the_bytes_of_a_data_url() -> None:
    coded = base64.b64encode(image()).decode()
    assert image_bytes(f"data:image/png;base64,{coded}") == image()
    assert image_bytes(f"data:image/svg+xml;charset=utf-8;base64,{coded}") == image()


@pytest.mark.parametrize(
    "url", ["http://example.org/a.png", "file:///etc/passwd", "/etc/passwd", "data:text/html;base64,AAAA", ""]
)
def test_nothing_is_fetched_and_no_file_is_read(url: str) -> None:
    with pytest.raises(UserError, match="send the picture itself"):
        image_bytes(url)


def test_broken_base64() -> None:
    with pytest.raises(UserError, match="not base64"):
        image_bytes("data:image/png;base64,%%%")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_pictures_are_refused_or_read(standin: Standin, data: st.DataObject) -> None:
    content = bytearray(image(form=data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    encoder = VisionEncoder(Path("v.rknn"), FORM)
    try:
        assert encoder.picture("", [bytes(content)]).embeddings.shape == (1, 4, 8)
    except UserError as error:
        assert "picture" in str(error)
