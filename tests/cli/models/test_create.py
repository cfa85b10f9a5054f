"""`trilithon create`: Modelfiles as people write them, over files and models that are here."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from other_ggufs import write_adapter, write_imatrix, write_projector
from standin_quantizer import QuantizerStandIn

from trilithon.models.files.gguf_writer import header
from trilithon.models.files.model_file import read_model_file
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import locate
from trilithon.models.synthetic.tiny import requantise, write_tiny_model
from trilithon.settings import load_configuration

Program = Callable[..., Any]

JINJA = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
GO = "{{- range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}"


@pytest.fixture
def folder(home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = home / "work"
    made.mkdir()
    (made / "tiny-F16.gguf").write_bytes(tiny.read_bytes())
    monkeypatch.chdir(made)
    return made


def shown(trilithon: Program, name: str) -> Any:
    done = trilithon("show", name, "--json")
    assert done.code == 0, done.stderr
    return json.loads(done.stdout)


def opened(name: str) -> Any:
    """As an engine gets it."""
    configuration = load_configuration()
    with ModelStore.open(configuration) as store:
        return read_model_file(locate(name, store, lambda _: True), configuration.cache)


def test_a_model_of_a_file_and_all_that_a_modelfile_says(trilithon: Program, folder: Path) -> None:
    (folder / "Modelfile").write_text(
        "FROM ./tiny-F16.gguf\nPARAMETER temperature 0.2\nPARAMETER stop <a>\nPARAMETER stop <b>\n"
        f'SYSTEM """Be brief.\nAnd kind."""\nTEMPLATE """{JINJA}"""\nMESSAGE user hi\nLICENSE MIT\nREQUIRES 0.14.0\n'
    )
    done = trilithon("create", "mario")
    assert done.code == 0, done.stderr
    assert "note: stored, but without effect: REQUIRES 0.14.0" in done.stderr
    assert f"note: {folder / 'tiny-F16.gguf'} is used in place" in done.stderr
    found = shown(trilithon, "mario")
    assert found["parameters"] == {"temperature": 0.2, "stop": ["<a>", "<b>"]}
    assert (found["system"], found["template"]) == ("Be brief.\nAnd kind.", JINJA)
    assert found["messages"] == [{"role": "user", "content": "hi"}]
    assert [(file["role"], file["name"]) for file in found["files"]] == [
        ("weights", "tiny-F16.gguf"),
        ("template", "chat_template.jinja"),
        ("license", "license.txt"),
    ]


def test_the_template_reaches_the_engine(trilithon: Program, folder: Path) -> None:
    own = folder / "own.gguf"
    write_tiny_model(own, template="{{ 'its own' }}")
    for source, before in (("tiny-F16.gguf", "Q: "), ("own.gguf", None)):
        (folder / "Modelfile").write_text(f"FROM {source}\n")
        assert trilithon("create", "plain").code == 0
        form = opened("plain").prompt_form
        assert (before is None) == (form is None)
        for more in ([], ["--copy"]):
            (folder / "Modelfile").write_text(f"FROM {source}\nTEMPLATE {JINJA}\n")
            assert trilithon("create", "mario", *more).code == 0
            form = opened("mario").prompt_form
            assert form is not None
            assert (form.template, form.stop, form.repeat_penalty) == (JINJA, (), 1.0)


def test_a_template_in_gos_language(trilithon: Program, folder: Path) -> None:
    write_tiny_model(folder / "own.gguf", template="{{ 'its own' }}")
    for source, said in (("tiny-F16.gguf", "write TEMPLATE in Jinja"), ("own.gguf", "template in Jinja is used")):
        (folder / "Modelfile").write_text(f'FROM {source}\nTEMPLATE """{GO}"""\n')
        done = trilithon("create", "mario")
        assert done.code == 0
        assert said in done.stderr
        files = {file["name"]: file for file in shown(trilithon, "mario")["files"]}
        digest = files["ollama-template.txt"]["digest"]
        blob = load_configuration().data / "models" / "blobs" / f"sha256-{digest}"
        assert blob.read_text() == GO
    assert opened("mario").prompt_form is None


def test_a_model_of_a_model_keeps_what_is_left_unsaid(trilithon: Program, folder: Path) -> None:
    (folder / "Modelfile").write_text(
        f"FROM ./tiny-F16.gguf\nSYSTEM first\nPARAMETER seed 1\nPARAMETER top_k 5\nTEMPLATE {JINJA}\nLICENSE MIT\n"
    )
    assert trilithon("create", "one", "--copy").code == 0
    (folder / "second").write_text("FROM one\nPARAMETER seed 2\nLICENSE Apache\n")
    assert trilithon("create", "two", "-f", "second").code == 0
    found = shown(trilithon, "two")
    assert (found["system"], found["template"]) == ("first", JINJA)
    assert found["parameters"] == {"seed": 2, "top_k": 5}
    assert [file["name"] for file in found["files"]][-2:] == ["license.txt", "license-2.txt"]
    (folder / "third").write_text('FROM two\nSYSTEM ""\nTEMPLATE ""\n')
    assert trilithon("create", "three", "-f", "third").code == 0
    found = shown(trilithon, "three")
    assert (found["system"], found["template"]) == ("", "")
    assert "chat_template.jinja" not in [file["name"] for file in found["files"]]
    assert trilithon("rm", "one", "two").code == 0
    assert opened("three").architecture == "llama"


def test_show_prints_the_modelfile_that_makes_it_again(trilithon: Program, folder: Path) -> None:
    (folder / "Modelfile").write_text(
        f'FROM ./tiny-F16.gguf\nSYSTEM """a "b"\nc"""\nPARAMETER stop " x "\nMESSAGE assistant yes\nTEMPLATE {JINJA}\n'
    )
    assert trilithon("create", "one").code == 0
    written = trilithon("show", "one", "--modelfile").stdout
    assert written.startswith("FROM one:latest\n")
    (folder / "again").write_text(written)
    assert trilithon("create", "two", "-f", "again").code == 0
    one, two = shown(trilithon, "one"), shown(trilithon, "two")
    for key in ("parameters", "system", "template", "messages", "files"):
        assert one[key] == two[key]


def test_projector_adapter_and_a_folder(trilithon: Program, folder: Path, tiny: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model/vl-Q4_0.gguf").write_bytes(tiny.read_bytes())
    write_projector(folder / "model/mmproj-vl-F16.gguf")
    write_adapter(folder / "other.gguf")
    (folder / "Modelfile").write_text("FROM ./model\nADAPTER other.gguf\n")
    done = trilithon("create", "vl")
    assert done.code == 0
    assert "obeys" not in done.stderr
    assert [file["role"] for file in shown(trilithon, "vl")["files"]] == ["weights", "projector", "adapter"]


def test_a_converted_model_with_its_tokenizer(trilithon: Program, folder: Path) -> None:
    (folder / "Qwen-rk3588-w8a8.rkllm").write_bytes(bytes(2000))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    (folder / "tokenizer/chat_template.jinja").write_text("theirs")
    (folder / "Modelfile").write_text(f"FROM ./Qwen-rk3588-w8a8.rkllm\nTEMPLATE {JINJA}\n")
    assert trilithon("create", "qwen").code == 0
    configuration = load_configuration()
    with ModelStore.open(configuration) as store:
        path = locate("qwen", store, lambda _: True)
    assert path.name == "Qwen-rk3588-w8a8.rkllm"
    assert path.with_name("chat_template.jinja").read_text() == JINJA
    assert path.with_name("tokenizer.json").exists()
    assert (folder / "tokenizer/chat_template.jinja").read_text() == "theirs"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FROM nowhere", "there is no nowhere:latest in the store"),
        ("FROM ./nowhere.gguf", "does not exist"),
        ("FROM https://example.org/x.gguf", "fetch it first"),
        ("FROM hf.co/user/repo:Q4_0", "trilithon pull hf.co/user/repo:Q4_0"),
        ("FROM .", "has 3 models; name one file"),
        ("FROM ./empty", "has no model; name one file"),
        ("FROM ./tensors", "has no GGUF; convert it: trilithon convert"),
        ("FROM ./words.gguf", "is not a GGUF"),
        ("FROM ../../x\0", "this is not a Modelfile"),
        (f"FROM {'a' * 5000}", "does not fit"),
        ("FROM tiny-F16.gguf\nADAPTER model.gguf", "is a 'model' and not an adapter; name it with FROM"),
        (
            "FROM tiny-F16.gguf\nADAPTER im.gguf",
            "is an importance matrix (imatrix): no engine runs it alone: quantisers",
        ),
        ("FROM tiny-F16.gguf\nADAPTER eyes.gguf", "is a vision projector and not an adapter; name it with FROM"),
        ("FROM ./mystyle.gguf", "mystyle.gguf is a LoRA adapter: no engine runs it alone; name it with ADAPTER"),
        ("FROM ./tiny-F16-lora.gguf", "tiny-F16-lora.gguf is a LoRA adapter: no engine runs it alone"),
        ("FROM im.gguf", "im.gguf is an importance matrix (imatrix): no engine runs it alone"),
        ("FROM eyes.gguf", "has no weights; name the model too"),
        ("FROM tiny-F16.gguf\nADAPTER ./a.safetensors", "is not a GGUF; convert it with convert_lora_to_gguf.py"),
        ("FROM tiny-F16.gguf\nADAPTER ./none.gguf", "is missing"),
        ("FROM tiny-F16.gguf\nPARAMETER num_cxt 1", "line 2 of the Modelfile: unknown parameter 'num_cxt'"),
        ("hello", "unknown command 'HELLO'"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(trilithon: Program, folder: Path, text: str, said: str) -> None:
    (folder / "empty").mkdir()
    (folder / "tensors").mkdir()
    (folder / "tensors/model.safetensors").write_bytes(b"x")
    (folder / "words.gguf").write_text("hello" * 300_000)
    said_model = {"general.architecture": "llama", "general.type": "model"}
    (folder / "model.gguf").write_bytes(header(said_model, [("x", (1,), "F32")]) + bytes(32))
    write_adapter(folder / "mystyle.gguf")
    write_adapter(folder / "tiny-F16-lora.gguf")
    write_imatrix(folder / "im.gguf")
    write_projector(folder / "eyes.gguf")
    (folder / "Modelfile").write_text(text)
    done = trilithon("create", "mario")
    assert done.code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert trilithon("list").stdout == ""


def test_modelfiles_that_cannot_be_read(trilithon: Program, folder: Path) -> None:
    assert "Modelfile cannot be read: No such file or directory" in trilithon("create", "x").stderr
    (folder / "Modelfile").write_bytes(b"FROM \xff")
    assert "is not a text in UTF-8" in trilithon("create", "x").stderr
    assert "../x is not the name of a model" in trilithon("create", "../x").stderr


def test_paths_outlive_the_folder_of_the_modelfile(trilithon: Program, folder: Path) -> None:
    below = folder / "for now"
    below.mkdir()
    adapter = write_adapter(folder / "style.gguf")
    (below / "Modelfile").write_text("FROM ../tiny-F16.gguf\nADAPTER ./../style.gguf\n")
    assert trilithon("create", "up", "-f", "for now/../for now/Modelfile").code == 0
    (below / "Modelfile").unlink()
    below.rmdir()
    assert opened("up").architecture == "llama"
    assert {file["path"] for file in shown(trilithon, "up")["files"]} == {str(folder / "tiny-F16.gguf"), str(adapter)}


@pytest.fixture
def quantizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> QuantizerStandIn:
    standin = QuantizerStandIn(folder / "bin")
    standin.install()
    monkeypatch.setenv("PATH", f"{standin.folder}{os.pathsep}{os.environ['PATH']}")
    return standin


def test_the_finest_of_several_weights_is_quantised(
    trilithon: Program, folder: Path, quantizer: QuantizerStandIn
) -> None:
    requantise(folder / "tiny-F16.gguf", folder / "tiny-Q4_0.gguf", "Q4_0")
    (folder / "Modelfile").write_text("FROM ./tiny-Q4_0.gguf\nFROM ./tiny-F16.gguf\n")
    done = trilithon("create", "small", "-q", "Q8_0")
    assert done.code == 0, done.stderr
    assert quantizer.source.name == "tiny-F16.gguf"
    assert [file["quantization"] for file in shown(trilithon, "small")["files"]] == ["Q8_0"]
    (folder / "Modelfile").write_text("FROM ./tiny-Q4_0.gguf\n")
    assert "is already Q4_0, and gets worse if quantised again" in trilithon("create", "small", "-q", "Q8_0").stderr


@pytest.mark.usefixtures("quantizer")
def test_weights_in_fewer_bits(trilithon: Program, folder: Path) -> None:
    (folder / "Modelfile").write_text("FROM ./tiny-F16.gguf\nSYSTEM hi\n")
    done = trilithon("create", "small", "-q", "Q8_0")
    assert done.code == 0, done.stderr
    assert "used where it lies" not in done.stderr
    found = shown(trilithon, "small")
    assert [(file["name"], file["quantization"], file["path"]) for file in found["files"]] == [
        ("small-q8_0.gguf", "Q8_0", None)
    ]
    assert opened("small").quantization == "Q8_0"
    assert list((load_configuration().cache / "conversions").glob("*/")) == []
    done = trilithon("create", "smaller", "-q", "Q99")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
