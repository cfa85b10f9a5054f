import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.cli.chat.images import image_paths, take_images
from trilithon.errors import UserError

PICTURE = b"\x89PNG and no more"


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("what is in ./a.png?", ["./a.png"]),
        ("/tmp/a.JPG and ~/b.jpeg", ["/tmp/a.JPG", "~/b.jpeg"]),
        (r"/tmp/my\ cat.webp", ["/tmp/my cat.webp"]),
        ("'/tmp/my cat.gif' \"b c.bmp\"", ["/tmp/my cat.gif", "b c.bmp"]),
        ("no picture here, nor a.pngx nor .png/", []),
    ],
)
def test_paths_in_a_text(text: str, paths: list[str]) -> None:
    assert [path for _, path in image_paths(text)] == paths


def test_images_that_exist_are_taken_out_of_the_text(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "number two.jpg"
    for path in (one, two):
        path.write_bytes(PICTURE)
    text, images = take_images(f"compare {one} with '{two}' and logo.png")
    assert text == "compare  with  and logo.png"
    assert [base64.b64decode(image) for image in images] == [PICTURE, PICTURE]


def test_an_image_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate((20 << 20) + 1)
    with pytest.raises(UserError, match=r"large\.png has 20\.0 MiB.*smaller"):
        take_images(str(path))


def test_folders_and_strangers_homes_are_text(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for text in (f"{tmp_path}/folder.png", "~nobody-of-that-name/a.png"):
        assert take_images(text) == (text, ())


@given(st.text(alphabet=st.sampled_from("ab./\\ '\"~png.jpg\n"), max_size=60))
def test_any_text_goes_through_without_files(text: str) -> None:
    assert all(written in text for written, _ in image_paths(text))
