"""Images that a message names by their paths: found in the text, read, and sent as the server takes them, in base64."""

import base64
import re
from pathlib import Path

from trilithon.errors import UserError
from trilithon.units import format_bytes

__all__ = ["image_paths", "take_images"]

_SUFFIX = r"\.(?:png|jpe?g|gif|bmp|webp)"
# In quotes, or with a backslash before each space, as a terminal writes a file that is dropped on it.
_PATH = re.compile(
    rf"""'(?P<single>[^'\n]+{_SUFFIX})'|"(?P<double>[^"\n]+{_SUFFIX})"|(?P<bare>(?:\\.|[^\s'"\\])+{_SUFFIX})(?![\w/])""",
    re.IGNORECASE,
)
_MOST_BYTES = 20 << 20  # as the server bounds one image


def image_paths(text: str) -> list[tuple[str, str]]:
    """What looks like the path of an image: as it stands in the text, and the path that it means."""
    paths = []
    for match in _PATH.finditer(text):
        path = match["single"] or match["double"] or re.sub(r"\\(.)", r"\1", match["bare"])
        paths.append((match[0], path))
    return paths


def take_images(text: str) -> tuple[str, tuple[str, ...]]:
    """The text without the paths of images that exist, and these images in base64. A path that leads nowhere stays:
    it may be what the message is about. Raises UserError for a file that cannot be sent."""
    images = []
    for written, path in image_paths(text):
        try:
            file = Path(path).expanduser()
            if not file.is_file():
                continue
            images.append(_encoded(file))
        except RuntimeError:  # ~nobody
            continue
        except OSError as error:
            raise UserError(
                "{path} cannot be read: {reason}; check its permissions (ls -l)", path=path, reason=error.strerror
            ) from error
        text = text.replace(written, "")
    return text.strip(), tuple(images)


def _encoded(file: Path) -> str:
    size = file.stat().st_size
    if size > _MOST_BYTES:
        raise UserError(
            "{file} has {size}; an image may have {limit}: send a smaller copy",
            file=file,
            size=format_bytes(size),
            limit=format_bytes(_MOST_BYTES),
        )
    return base64.b64encode(file.read_bytes()).decode("ascii")
