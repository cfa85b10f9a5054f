import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from drafting_model import write_drafting_model
from other_ggufs import write_adapter, write_gguf, write_imatrix, write_projector

from trilithon.cli.models.commands import complete_model, complete_model_or_file
from trilithon.models.adopt import places as adopt
from trilithon.models.names import ModelName, parse_reference
from trilithon.models.store.manifest import Manifest, StoredFile, now
from trilithon.models.store.model_store import ModelStore
from trilithon.settings import load_configuration

Program = Callable[..., Any]


def is_one_line(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1


@pytest.fixture(autouse=True)
def only_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other programs keep on this machine: test_adopt.py is about that."""
    monkeypatch.setattr(adopt, "places", lambda *_: iter(()))


@pytest.fixture
def store(home: Path) -> ModelStore:
    return ModelStore.open(load_configuration())


def keep(store: ModelStore, text: str, content: bytes, *, synthetic: bool = False) -> Manifest:
    name = parse_reference(text)
    assert isinstance(name, ModelName)
    with store:
        file = StoredFile(
            role="weights",
            digest=store.add_bytes(content),
            size_bytes=len(content),
            name=f"{name.model}.gguf",
            format="gguf",
            quantization="Q8_0",
        )
        return store.put(
            Manifest(
                name=name,
                files=(file,),
                source="hf.co/a/b",
                created=now(),
                synthetic=synthetic,
                parameters={"temperature": 0.5},
                system="Be kind.\nAnd brief.",
            )
        )


def test_an_empty_store_says_what_to_do(trilithon: Program, home: Path) -> None:
    done = trilithon("list")
    assert (done.code, done.stdout) == (0, "")
    assert "trilithon pull" in done.stderr
    assert trilithon("list", "--json").stdout == "[]\n"
    assert not (home / "data").exists()


def test_list_shows_each_model_in_a_line(trilithon: Program, store: ModelStore) -> None:
    keep(store, "qwen2.5:0.5b", b"x" * 2048)
    keep(store, "me/made:up", b"y", synthetic=True)
    first, second, third = trilithon("list").stdout.splitlines()
    assert first.split() == ["name", "size", "quant", "format", "since", "from"]
    assert second.startswith("qwen2.5:0.5b  2.0 KiB  Q8_0   gguf")
    assert "(synthetic)" in third  # random weights stand last, whatever the name
    rows = json.loads(trilithon("list", "--json").stdout)
    assert {row["name"]: row["synthetic"] for row in rows} == {"qwen2.5:0.5b": False, "me/made:up": True}
    assert all(row["complete"] and not row["read_only"] for row in rows)


def test_list_says_where_each_file_lies(trilithon: Program, store: ModelStore) -> None:
    kept = keep(store, "one", b"x" * 2048)
    keep(store, "two", b"y")
    place = store.file_path(kept.files[0])
    store.file_path(store.list()[1].files[0]).unlink()
    assert str(place) not in trilithon("list").stdout
    lines = trilithon("list", "-v").stdout.splitlines()
    assert lines[2].split() == ["weights", "2.0", "KiB", str(place)]
    assert lines[4].strip() == "weights  1 B  two.gguf is missing"
    rows = json.loads(trilithon("list", "--json").stdout)
    assert [row["files"][0]["place"] for row in rows] == [str(place), ""]
    assert json.loads(trilithon("show", "one", "--json").stdout)["files"][0]["place"] == str(place)


def test_what_others_wrote_commands_no_terminal(trilithon: Program, store: ModelStore) -> None:
    manifest = keep(store, "odd", b"x")
    with store:
        store.put(replace(manifest, source="\x1b[2Jgone", created="0001-01-01T00:00:00+00:00", system="\x1b]0;x\x07"))
    for words in (("list",), ("show", "odd")):
        done = trilithon(*words)
        assert done.code == 0
        assert "gone" in done.stdout
        assert "\x1b" not in done.stdout


def test_list_tells_what_is_wrong(trilithon: Program, store: ModelStore) -> None:
    keep(store, "good", b"x")
    keep(store, "half", b"y")
    path = store.file_path(store.list()[1].files[0])
    path.unlink()
    broken = store.local.root / "manifests" / "h" / "n" / "m" / "t.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    done = trilithon("list")
    assert done.code == 0
    assert "(incomplete)" in done.stdout
    assert done.stderr.startswith("warning: ")
    assert str(broken) in done.stderr


def test_a_layer_is_marked(trilithon: Program, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(ModelStore(home / "layer"), "shared", b"x")
    monkeypatch.setenv("TRILITHON_STORES", str(home / "layer"))
    assert "(read only)" in trilithon("list").stdout
    done = trilithon("rm", "shared")
    assert done.code == 2
    assert is_one_line(done.stderr)
    assert "read only" in done.stderr


def test_show_says_what_it_is(trilithon: Program, store: ModelStore, tiny: Path) -> None:
    keep(store, "tiny", tiny.read_bytes(), synthetic=True)
    said = trilithon("show", "tiny").stdout
    assert said.startswith("tiny:latest\n")
    for text in (
        "architecture",
        "parameters",
        "random weights",
        "hf.co/a/b",
        "weights  tiny.gguf",
        "Be kind. …",
        "0.5",
    ):
        assert text in said
    data = json.loads(trilithon("show", "tiny", "--json").stdout)
    assert data["files"][0]["facts"]["architecture"]
    assert data["files"][0]["fit"]["memory"][0]["total_bytes"] > tiny.stat().st_size
    assert data["files"][0]["fit"]["placements"]
    assert data["complete"] is True
    assert data["parameters"] == {"temperature": 0.5}


def test_show_says_what_a_file_is(trilithon: Program, tiny: Path, tmp_path: Path) -> None:
    said = trilithon("show", tiny).stdout
    assert said.startswith(f"{tiny}\n  architecture  llama\n")
    assert "KV cache" in said and "llama.cpp/cpu  yes" in said
    data = json.loads(trilithon("show", tiny, "--json").stdout)
    assert (data["path"], data["size_bytes"]) == (str(tiny), tiny.stat().st_size)
    assert data["facts"]["architecture"] == "llama" and data["fit"]["memory"]
    assert trilithon("show", tiny, "--modelfile").stdout == f"FROM {tiny}\n"
    other = tmp_path / "text.gguf"
    other.write_text("no model")
    for words in (("show", other), ("show", tmp_path / "none.gguf"), ("show", other, "--json")):
        done = trilithon(*words)
        assert done.code == 2 and is_one_line(done.stderr)


@pytest.mark.parametrize(
    ("write", "kind", "label", "fix"),
    [
        (write_adapter, "adapter", "a LoRA adapter", "name it with ADAPTER in a Modelfile"),
        (write_projector, "projector", "a vision projector", "keep it beside its model"),
        (write_imatrix, "imatrix", "an importance matrix (imatrix)", "name the model that it was measured on"),
    ],
)
def test_show_says_what_a_file_is_that_is_no_model(
    trilithon: Program, tmp_path: Path, write: Callable[[Path], Path], kind: str, label: str, fix: str
) -> None:
    path = write(tmp_path / "x.gguf")
    printed = trilithon("show", path).stdout
    assert f"{label}\n" in printed
    assert "runs nowhere: no engine runs it alone" in printed and fix in printed
    assert "tokens" not in printed and "llama.cpp/cpu" not in printed
    content = json.loads(trilithon("show", path, "--json").stdout)
    assert (content["kind"], content["facts"]["kind"]) == (kind, label)
    assert fix in content["problem"] and "fit" not in content
    done = trilithon("show", path, "--modelfile")
    assert done.code == 2 and is_one_line(done.stderr) and f"is {label}" in done.stderr


def test_a_stored_file_that_is_no_model_says_so(trilithon: Program, store: ModelStore, tmp_path: Path) -> None:
    keep(store, "style", write_adapter(tmp_path / "x.gguf").read_bytes())
    printed = trilithon("show", "style").stdout
    assert "is a LoRA adapter: no engine runs it alone" in printed
    assert "llama.cpp/cpu" not in printed


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"general.architecture": "llama"}, "base model (completes text): it has no chat template"),
        ({"general.architecture": "llama", "tokenizer.chat_template": "{{ messages }}"}, "chat model"),
        ({"general.architecture": "bert"}, "embedding model (makes vectors of texts)"),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 4}, "reranking model (ranks texts)"),
    ],
)
def test_show_says_what_a_model_does(trilithon: Program, tmp_path: Path, values: dict[str, Any], kind: str) -> None:
    assert f"kind          {kind}\n" in trilithon("show", write_gguf(tmp_path / "m.gguf", values)).stdout


def test_show_says_that_a_model_guesses_ahead(trilithon: Program, tiny: Path, tmp_path: Path) -> None:
    guessing = write_drafting_model(tmp_path / "m.gguf", right=False)
    assert "draft layers  for speculative decoding: spec=draft-mtp" in trilithon("show", guessing).stdout
    assert "guesses" not in trilithon("show", tiny).stdout


def test_show_of_a_damaged_file_says_so(trilithon: Program, store: ModelStore) -> None:
    keep(store, "bad", b"PK\x03\x04")
    assert "problem" in trilithon("show", "bad").stdout
    store.file_path(store.list()[0].files[0]).unlink()
    assert "trilithon pull bad" in trilithon("show", "bad").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "none"), "there is no none:latest"),
        (("rm", "none"), "there is no none:latest"),
        (("cp", "none", "other"), "there is no none:latest"),
        (("verify", "none"), "there is no none:latest"),
        (("show", "../x"), "does not exist"),
        (("show", "../x", "--modelfile"), "does not exist"),
        (("rm", "../x"), "not the name of a model"),
        (("rm", "a/../b"), "does not fit"),
        (("cp", "kept", "a b"), "does not fit"),
        (("cp", "kept", "kept"), "exists already"),
        (("bench", "none"), "there is no none:latest"),
    ],
)
def test_what_cannot_be_is_one_line(
    trilithon: Program, store: ModelStore, words: tuple[str, ...], message: str
) -> None:
    keep(store, "kept", b"x")
    done = trilithon(*words)
    assert done.code == 2
    assert is_one_line(done.stderr), done.stderr
    assert message in done.stderr
    assert done.stdout == ""


def test_cp_and_rm(trilithon: Program, store: ModelStore) -> None:
    keep(store, "one", b"x" * 5000)
    assert trilithon("cp", "one", "two").code == 0
    assert "0 B freed" in trilithon("rm", "one").stderr
    done = trilithon("rm", "two", "none")
    assert done.code == 2
    assert [str(each.name) for each in store.list()] == ["two:latest"]  # nothing went
    assert "4.9 KiB freed" in trilithon("rm", "two", "TWO").stderr
    assert store.list() == ()


def test_verify_and_its_fix(trilithon: Program, store: ModelStore) -> None:
    kept = keep(store, "one", b"x" * 5000)
    done = trilithon("verify")
    assert (done.code, done.stdout, done.stderr) == (0, "", "every file has the right checksum\n")
    assert json.loads(trilithon("verify", "--json", "one").stdout) == []
    path = store.file_path(kept.files[0])
    path.chmod(0o644)
    path.write_bytes(b"y" * 5000)
    done = trilithon("verify", "one")
    assert done.code == 1
    assert done.stdout.startswith("one:latest: one.gguf is damaged")
    assert "trilithon verify --remove-damaged, then trilithon pull one:latest" in done.stderr
    done = trilithon("verify", "--remove-damaged", "--json")
    assert done.code == 1
    assert json.loads(done.stdout)[0]["models"] == ["one:latest"]
    assert not path.exists()
    assert "is missing" in trilithon("verify").stdout


def test_prune(trilithon: Program, store: ModelStore) -> None:
    keep(store, "one", b"x")
    with store:
        store.add_bytes(b"y" * 2048)
        with store.receive("a" * 64) as partial:
            partial.append(b"z")
    nothing = "0 unfinished downloads and 0 unfinished conversions"
    assert trilithon("prune", "--dry-run").stdout == f"would remove 1 file, {nothing}, 2.0 KiB\n"
    assert trilithon("prune").stdout.startswith(f"removed 1 file, {nothing}")
    assert trilithon("prune", "--all").stdout.startswith("removed 0 files, 1 unfinished download and 0 unfinished")
    assert not any((store.local.root / "partial").iterdir())


def test_bench_takes_a_name(trilithon: Program, store: ModelStore, tiny: Path) -> None:
    keep(store, "tiny", tiny.read_bytes())
    words = (
        "-p",
        "8",
        "-n",
        "4",
        "-r",
        "1",
        "--test",
        "tg",
        "--no-quality",
        "--placement",
        "scripted/cpu",
        "-o",
        "json",
    )
    done = trilithon("bench", "tiny", *words)
    assert done.code == 0, done.stderr
    assert "tiny.gguf" in done.stderr


def test_names_are_completed(store: ModelStore) -> None:
    keep(store, "qwen2.5:0.5b", b"x")
    keep(store, "other", b"y")
    command = click.Command("x")
    context, parameter = click.Context(command), click.Argument(["name"])
    assert complete_model(context, parameter, "qw") == ["qwen2.5:0.5b"]
    kinds = [(item.value, item.type) for item in complete_model_or_file(context, parameter, "o")]
    assert kinds == [("other:latest", "plain"), ("o", "file")]
