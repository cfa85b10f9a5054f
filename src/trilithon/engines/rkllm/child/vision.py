"""Pictures for a language model on the NPU: a vision encoder (.rknn), run with rknn-toolkit-lite2.

The calls are those of the vendor's demo (rknn-llm, examples/multimodal_model_demo); they were never run on an NPU. The
encoder is loaded for the first picture and stays loaded."""

import base64
import binascii
import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilithon.board.chips import platform_of, platforms
from trilithon.engines.rkllm.child.log import NativeLog, explain, last_error
from trilithon.engines.rkllm.child.structs import Picture
from trilithon.engines.rkllm.child.template import IMAGE_TAG, ModelText, plain_prompt
from trilithon.engines.rkllm.options import install_rknnlite
from trilithon.errors import ModelError, RunError, UserError
from trilithon.models.files.rkllm import companion
from trilithon.models.files.rknn import RknnFacts, read_rknn

__all__ = ["VisionEncoder", "VisionForm", "image_bytes", "images_in", "open_encoder", "read_form"]

_SETTINGS = "vision.json"
_PREPROCESSOR = "preprocessor_config.json"
# Texts before, after and for a picture: of Qwen, from the vendor's demo, and of InternVL, from its tokenizer.
_MARKS = (("<|vision_start|>", "<|vision_end|>", "<|image_pad|>"), ("<img>", "</img>", "<IMG_CONTEXT>"))
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_MOST_BYTES = 32 << 20
_MOST_PIXELS = 50_000_000
_GREY = (127, 127, 127)  # the padding of the vendor's demo
_DATA_URL = re.compile(r"data:image/[\w.+-]+(?:;[\w=.+-]+)*;base64,")


@dataclass(frozen=True, slots=True)
class VisionForm:
    """The size of pictures of an encoder, in pixels, and the model's texts before, after and for a picture."""

    width: int
    height: int
    marks: tuple[str, str, str]


def read_form(model: Path, text: ModelText, encoder: RknnFacts | None = None) -> VisionForm:
    """The size is the encoder's, else from vision.json beside the model, else from its preprocessor_config.json. The
    texts are from vision.json, else from its tokenizer. Raises UserError, naming the file to write, where none says it.
    """
    settings = _object(companion(model, _SETTINGS))
    stated = (encoder.width, encoder.height) if encoder and encoder.width and encoder.height else None
    width, height = stated or _size(settings) or _size(_object(companion(model, _PREPROCESSOR))) or (0, 0)
    named = tuple(settings.get(name) for name in ("start", "end", "content"))
    known = next((marks for marks in _MARKS if all(text.token(mark) is not None for mark in marks)), None)
    fix = f'write {_SETTINGS} beside {model.name}: {{"width": 392, "height": 392, "start": …, "end": …, "content": …}}'
    if not (0 < width <= 8192 and 0 < height <= 8192):
        raise UserError(f"the size of pictures for the vision encoder is unknown; {fix}")
    if all(isinstance(mark, str) for mark in named):
        return VisionForm(width, height, (str(named[0]), str(named[1]), str(named[2])))
    if known is None:
        raise UserError(f"the model's texts for a picture are unknown; {fix}")
    return VisionForm(width, height, known)


class VisionEncoder:
    """An encoder, for one thread. Raises UserError for invalid pictures, RunError when the encoder fails."""

    def __init__(self, path: Path, form: VisionForm, chip: str = ""):
        """Raises UserError where the package that runs it is missing."""
        if importlib.util.find_spec("rknnlite") is None:
            raise UserError(f"images need rknnlite to run {path.name}; {install_rknnlite()}")
        self._path = path
        self._form = form
        self._chip = chip
        self._loaded: Any = None

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> Picture:
        """A conversation with its pictures; the runtime applies its chat template to the text of such a prompt."""
        return self.picture(plain_prompt(messages), images_in(messages))

    def picture(self, text: str, images: Sequence[bytes]) -> Picture:
        """`text`, with one image tag for each of `images`, and their embeddings. Missing tags are put in front."""
        if not images:
            raise UserError("the request has no picture; add one")
        tags = text.count(IMAGE_TAG)
        if tags not in (0, len(images)):
            raise UserError(f"the prompt has {tags} {IMAGE_TAG} tags for {len(images)} pictures; write one for each")
        encoded = [self._encode(self._pixels(image)) for image in images]
        if len({embedding.shape for embedding in encoded}) > 1:
            raise RunError("the vision encoder gave pictures of one size different shapes", cause="vision encoder")
        start, end, content = (mark.encode() for mark in self._form.marks)
        return Picture(
            text=text if tags else IMAGE_TAG * len(images) + text,
            embeddings=np.stack(encoded),
            width=self._form.width,
            height=self._form.height,
            marks=(start, end, content),
        )

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.release()
            self._loaded = None

    def _pixels(self, image: bytes) -> NDArray[np.uint8]:
        """The whole picture, padded to the size of the encoder: of the shape (rows, columns, 3), RGB."""
        from PIL import Image, ImageOps

        if len(image) > _MOST_BYTES:
            raise UserError(
                f"the picture has {len(image) >> 20} MiB, at most {_MOST_BYTES >> 20} are possible; make it smaller"
            )
        try:
            opened = Image.open(BytesIO(image), formats=_FORMATS)
            if opened.width * opened.height > _MOST_PIXELS:
                raise UserError(f"the picture has {opened.width}×{opened.height} pixels; make it smaller")
            upright = ImageOps.exif_transpose(opened).convert("RGB")
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise UserError(f"the picture cannot be read: {error}; send a complete {', '.join(_FORMATS)}") from error
        size = (self._form.width, self._form.height)
        return np.asarray(ImageOps.pad(upright, size, Image.Resampling.BICUBIC, color=_GREY), dtype=np.uint8)

    def _encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of the shape (tokens, size of an embedding). Qwen3-VL's encoders have an output for each of several layers
        ("deepstack"); the vendor's demo joins them token by token, side by side, in the order of the outputs."""
        if self._loaded is None:
            self._loaded = self._load()
        outputs = self._loaded.inference(inputs=[pixels[np.newaxis]])
        embeddings = [_by_token(np.asarray(output, dtype=np.float32)) for output in outputs or ()]
        tokens = sorted({len(embedding) for embedding in embeddings})
        if len(tokens) != 1:
            counts = f"outputs of {tokens[0]} to {tokens[-1]} tokens" if tokens else "no output"
            raise _failure(f"gave {counts}; convert it for this runtime")
        return np.concatenate(embeddings, axis=1)

    def _load(self) -> Any:
        from rknnlite.api import RKNNLite

        encoder = RKNNLite()
        platform = platforms().get(self._chip)
        cores = platform.vision_cores if platform else ""
        mask = {"core_mask": getattr(RKNNLite, cores)} if cores else {}
        log = NativeLog()
        try:
            status, what = encoder.load_rknn(str(self._path)), "loaded"
            if status == 0:
                status, what = encoder.init_runtime(**mask), "started on the NPU"
            if status == 0:
                return encoder
            encoder.release()
            reason = _printed_reason(log)
        finally:
            log.close()
        why = f": {reason}" if reason else f" (code {status}); use one for this chip and runtime"
        raise _failure(f"{self._path.name} cannot be {what}{why}")


def _printed_reason(log: NativeLog) -> str:
    """rknnlite returns -1 for every failure, and prints the reason."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    printed = log.text()
    reason = explain(printed)
    return reason.message if reason else last_error(printed)


def _by_token(output: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the shape (tokens, size). Raises RunError for an output that is none."""
    if output.ndim < 2 or output.size == 0 or not np.isfinite(output).all():
        raise _failure(f"gave no usable embeddings (shape {output.shape}); convert it again")
    return output.reshape(-1, output.shape[-1])


def _failure(what: str) -> RunError:
    return RunError(f"the vision encoder {what}", cause="vision encoder failed")


def open_encoder(model: Path, encoder: str, chip: str, text: ModelText) -> tuple[VisionEncoder | None, str]:
    """The encoder at the path `encoder`, not loaded yet, or the reason why images are not supported."""
    if not encoder:
        return None, f"images need a vision encoder; put the .rknn file of the model beside {model.name}"
    try:
        facts = _facts_for(Path(encoder), chip)
        return VisionEncoder(Path(encoder), read_form(model, text, facts), chip), ""
    except UserError as error:
        return None, str(error)


def _facts_for(encoder: Path, chip: str) -> RknnFacts | None:
    """None for a file that cannot be read: the layout is not published, and the runtime decides. Raises UserError for
    one that was converted for another chip."""
    try:
        facts = read_rknn(encoder)
    except ModelError:
        return None
    platform = platform_of(chip).lower()
    if platform and facts.platforms and platform not in facts.platforms:
        names = ", ".join(facts.platforms).upper()
        raise UserError(f"{encoder.name} is for the {names}, and this is an {chip}; convert it for {platform}")
    return facts


def images_in(messages: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """The pictures of a conversation in order; empty where there are none. Raises UserError."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    images = []
    for part in parts:
        if isinstance(part, Mapping) and part.get("type") == "image_url":
            url = part.get("image_url")
            images.append(image_bytes(str(url.get("url", "") if isinstance(url, Mapping) else url)))
    return images


def image_bytes(url: str) -> bytes:
    """The picture in a data: URL. Other URLs are refused: a request must not make this machine fetch or read anything.

    Raises UserError."""
    if not (head := _DATA_URL.match(url)):
        raise UserError("pictures are supported as data:image/…;base64, URLs only; send the picture itself")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"the picture is not base64: {error}; encode it again") from error


def _size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height, in the forms of Hugging Face's preprocessors."""
    for size in (settings, settings.get("crop_size"), settings.get("size"), settings.get("image_size")):
        if isinstance(size, int) and not isinstance(size, bool):
            return size, size
        if isinstance(size, Mapping):
            width, height = size.get("width"), size.get("height")
            if isinstance(width, int) and isinstance(height, int):
                return width, height
    return None


def _object(path: Path | None) -> Mapping[str, Any]:
    """Empty where there is no file. Raises UserError for one that is damaged."""
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; write it again") from error
    return content if isinstance(content, dict) else {}
