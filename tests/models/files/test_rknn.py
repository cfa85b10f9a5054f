import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trilithon.errors import ModelError
from trilithon.models.files.rknn import RknnFacts, read_rknn

FACTS: dict[str, Any] = {
    "target_platform": ["rk3588"],
    "version": "2.5.0",
    "input_num": 1,
    "output_num": 4,
    "norm_tensor": [{"size": [1, 3, 280, 392], "url": "pixel"}, {"size": [1, 140, 1536], "url": "out"}],
}


def rknn(facts: object = FACTS, model: bytes = b"m" * 100) -> bytes:
    """Laid out as files of rknn-toolkit2 2.5.0 are."""
    text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    head = b"RKNN\0\0\0\0" + struct.pack("<2Q", 6, len(model))
    return head.ljust(64, b"\0") + model + struct.pack("<Q", len(text)) + text


def test_the_facts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "v.rknn"
    file.write_bytes(rknn())
    assert read_rknn(file) == RknnFacts(platforms=("rk3588",), toolkit="2.5.0", outputs=4, width=392, height=280)


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({"norm_tensor": [{"size": [1, 280, 392, 3]}]}, (392, 280)),
        ({"norm_tensor": [{"size": [1, 1024, 1176]}]}, (None, None)),
        ({"norm_tensor": [{"size": [1, 4, 280, 392]}]}, (None, None)),
        ({"norm_tensor": [{"size": [1, 3, 0, 392]}]}, (None, None)),
        ({"norm_tensor": [{"size": [1, 3, 8193, 392]}]}, (None, None)),
        ({"input_num": 2}, (None, None)),
    ],
)
def test_the_size_of_pictures_is_told_by_a_single_input(
    tmp_path: Path, change: dict[str, Any], size: tuple[int | None, int | None]
) -> None:
    file = tmp_path / "v.rknn"
    file.write_bytes(rknn(FACTS | change))
    facts = read_rknn(file)
    assert (facts.width, facts.height) == size


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an RKNN file"),
        (b"GGUF" + bytes(200), "is not an RKNN file"),
        (rknn()[:12], "is cut short"),
        (rknn()[:100], "is cut short"),
        (rknn()[:170], "is cut short"),
        (rknn()[:-1], "is cut short"),
        (rknn(b"{"), "has no description"),
        (rknn([]), "has no description"),
        (rknn({}), "has no description"),
        (rknn(FACTS | {"norm_tensor": []}), "has no description"),
        (rknn(FACTS | {"output_num": None}), "has no description"),
        (rknn(b"[" * 100_000), "has no description"),
        (b"RKNN\0\0\0\0" + b"\xff" * 200, "is cut short"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "v.rknn"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_rknn(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_rknn(tmp_path / "v.rknn")


@given(place=st.integers(0, len(rknn()) - 1), byte=st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_a_model_error_or_nothing(tmp_path: Path, place: int, byte: int) -> None:
    content = bytearray(rknn())
    content[place] = byte
    file = tmp_path / "v.rknn"
    file.write_bytes(content)
    with contextlib.suppress(ModelError):
        read_rknn(file)
