"""`trilithon adopt`, and what `list`, `show`, `rm`, `cp` and `bench` make of the models of other programs."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Program = Callable[..., Any]


@pytest.fixture
def theirs(home: Path, tiny: Path) -> Path:
    """A store of Ollama's with one model in it."""
    store = home / ".ollama/models"
    layers = []
    for kind, content in (("model", tiny.read_bytes()), ("params", b'{"temperature": 0.5}'), ("system", b"Be brief.")):
        digest = hashlib.sha256(content).hexdigest()
        (store / "blobs").mkdir(parents=True, exist_ok=True)
        (store / "blobs" / f"sha256-{digest}").write_bytes(content)
        media = f"application/vnd.ollama.image.{kind}"
        layers.append({"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)})
    manifest = store / "manifests/registry.ollama.ai/library/tiny/1b"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": layers}))
    return store


def picture(root: Path) -> dict[Path, object]:
    return {path: (path.is_file() and path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*")}


def test_adopt_shows_what_there_is_and_what_was_passed_over(trilithon: Program, theirs: Path) -> None:
    broken = theirs / "manifests/registry.ollama.ai/library/tiny/broken"
    broken.write_text("{")
    done = trilithon("adopt")
    assert done.code == 0
    (line,) = done.stdout.splitlines()
    assert line.split()[0] == "tiny:1b"
    assert line.endswith(f"Ollama        {theirs / 'manifests/registry.ollama.ai/library/tiny/1b'}")
    assert f"skipped: {broken} its manifest is damaged; pull it again with Ollama" in done.stderr
    assert f"searched: {theirs} (Ollama)" in done.stderr


def test_names_of_files_command_no_terminal(trilithon: Program, home: Path) -> None:
    folder = home / "odd"
    folder.mkdir()
    (folder / "red\x1b[31m-Q4_0.gguf").write_bytes(b"GGUF" + bytes(100))
    (folder / "empty\x1b[2J\n-Q4_0.gguf").touch()
    done = trilithon("adopt", folder)
    assert done.code == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[0].startswith("skipped: ")
    assert done.stderr.splitlines()[0].endswith("is empty; download it again")


def test_verify_says_that_it_has_nothing_to_compare_with(trilithon: Program, theirs: Path) -> None:
    done = trilithon("verify", "tiny:1b")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "tiny:1b belongs to another program, and its checksums are unknown" in done.stderr


def test_adopt_as_json(trilithon: Program, theirs: Path) -> None:
    found = json.loads(trilithon("adopt", "--json").stdout)
    (model,) = found["models"]
    assert (model["name"], model["source"]) == ("tiny:1b", "Ollama")
    assert Path(model["files"][0]).parent == theirs / "blobs"
    assert found["skipped"] == []
    assert {"source": "Ollama", "folder": str(theirs)} in found["places"]


def test_a_folder_is_remembered_until_it_is_forgotten(trilithon: Program, home: Path, tiny: Path) -> None:
    folder = home / "usb stick"
    folder.mkdir()
    (folder / "gemma-3-1b-it-Q4_0.gguf").write_bytes(tiny.read_bytes())
    done = trilithon("adopt", folder)
    assert "gemma-3-1b-it:Q4_0" in done.stdout
    assert "gemma-3-1b-it:Q4_0" in trilithon("list").stdout
    assert "is in the list already" in trilithon("adopt", folder).stderr
    done = trilithon("adopt", "--forget", folder)
    assert (done.code, done.stdout) == (0, "")
    assert "no model of another program was found" in done.stderr
    assert "gemma" not in trilithon("list").stdout
    assert (folder / "gemma-3-1b-it-Q4_0.gguf").exists()
    done = trilithon("adopt", "--forget", folder)
    assert (done.code, done.stderr) == (2, f"error: {folder} was not adopted; adopted folders: none\n")
    done = trilithon("adopt", home / "nowhere")
    assert done.code == 2
    assert done.stderr.startswith("error: ")


def test_an_adopted_model_is_listed_shown_and_never_removed(trilithon: Program, theirs: Path) -> None:
    before = picture(theirs)
    (row,) = json.loads(trilithon("list", "--json").stdout)
    assert (row["name"], row["adopted"], row["complete"]) == ("tiny:1b", True, True)
    assert str(theirs) in row["source"]
    shown = trilithon("show", "tiny:1b")
    assert shown.code == 0
    assert "Be brief." in shown.stdout
    assert str(theirs / "blobs") in shown.stdout
    done = trilithon("rm", "TINY:1b")
    assert done.code == 2
    assert done.stderr.startswith("error: TINY:1b belongs to Ollama (")
    assert "remove it with that program" in done.stderr
    assert picture(theirs) == before


def test_a_copy_is_another_name_for_the_same_files(trilithon: Program, theirs: Path) -> None:
    before = picture(theirs)
    assert trilithon("cp", "tiny:1b", "mine").code == 0
    rows = {row["name"]: row for row in json.loads(trilithon("list", "--json").stdout)}
    assert set(rows) == {"tiny:1b", "mine:latest"}
    assert trilithon("rm", "mine").code == 0
    assert trilithon("prune", "--all").code == 0
    assert picture(theirs) == before


def test_the_stores_own_model_goes_before_one_of_that_name(trilithon: Program, theirs: Path) -> None:
    assert trilithon("cp", "tiny:1b", "mine").code == 0
    other = theirs / "manifests/registry.ollama.ai/library/mine/latest"
    other.parent.mkdir()
    other.write_bytes((theirs / "manifests/registry.ollama.ai/library/tiny/1b").read_bytes())
    assert [line.split()[0] for line in trilithon("list").stdout.splitlines()[1:]] == ["mine:latest", "tiny:1b"]
    assert trilithon("rm", "mine").code == 0  # the store's
    assert "belongs to Ollama" in trilithon("rm", "mine").stderr  # theirs, which now is what the name means


def test_a_setting_names_folders_too(trilithon: Program, home: Path, tiny: Path) -> None:
    folder = home / "models here"
    folder.mkdir()
    (folder / "x-Q8_0.gguf").write_bytes(tiny.read_bytes())
    path = home / "config" / "trilithon" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(f'models = ["{folder}"]\n')
    assert "x:Q8_0" in trilithon("adopt").stdout
    done = trilithon("adopt", "--forget", folder)
    assert (done.code, done.stderr) == (2, f"error: {folder} comes from the setting models; remove it there\n")


def test_a_name_that_is_not_quite_theirs_is_helped(trilithon: Program, theirs: Path) -> None:
    done = trilithon("show", "tiny")
    assert (done.code, done.stderr) == (
        2,
        "error: there is no tiny:latest; other programs have tiny:1b; or fetch it: trilithon pull tiny:latest\n",
    )
