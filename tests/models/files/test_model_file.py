import hashlib
from pathlib import Path

import pytest

from trilithon.errors import ModelError
from trilithon.models.files.gguf import bytes_per_token, read_gguf
from trilithon.models.files.model_file import read_model_file
from trilithon.models.files.prompt_form import BASE_TEMPLATE
from trilithon.models.synthetic.tiny import write_tiny_model


def test_a_file_as_an_engine_has_to_know_it(tiny: Path, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    found = read_model_file(tiny, tmp_path, lambda done, total: progress.append((done, total)))
    assert (found.path, found.format, found.architecture) == (tiny, "gguf", "llama")
    assert (found.name, found.quantization, found.vocabulary, found.context_train) == ("Tiny", "F16", 512, 2048)
    assert found.size_bytes == tiny.stat().st_size
    assert found.sha256 == hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert found.bytes_per_token == bytes_per_token(read_gguf(tiny))
    assert found.parameters == read_gguf(tiny).parameters
    assert found.sliding_window is None
    assert progress[-1] == (found.size_bytes, found.size_bytes)


def test_a_relative_path_becomes_absolute(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    assert read_model_file(Path(tiny.name), tmp_path).path == tiny


def test_a_prompt_form_only_where_the_file_has_no_template(tiny: Path, tmp_path: Path) -> None:
    form = read_model_file(tiny, tmp_path).prompt_form
    assert form is not None
    assert form.template == BASE_TEMPLATE
    own = write_tiny_model(tmp_path / "own.gguf", template="{{ messages }}")
    assert read_model_file(own, tmp_path).prompt_form is None


def test_a_sliding_window(tmp_path: Path) -> None:
    assert read_model_file(write_tiny_model(tmp_path / "w.gguf", architecture="gemma3"), tmp_path).sliding_window == 256


@pytest.mark.parametrize("fault", ["missing", "folder", "empty", "text", "cut"])
def test_what_is_no_model_is_one_line(tiny: Path, tmp_path: Path, fault: str) -> None:
    path = tmp_path / "m.gguf"
    if fault == "folder":
        path.mkdir()
    elif fault != "missing":
        path.write_bytes({"empty": b"", "text": b"hello\n" * 100, "cut": tiny.read_bytes()[:-1000]}[fault])
    with pytest.raises(ModelError) as caught:
        read_model_file(path, tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_it_can_do_is_read_from_the_template_and_what_lies_beside(tmp_path: Path) -> None:
    template = "{% if tools %}{{ tools }}{% endif %}<think>{% if item.type == 'image' %}{% endif %}"
    path = write_tiny_model(tmp_path / "m.gguf", template=template)
    found = read_model_file(path, tmp_path)
    assert (found.capabilities, found.vision_encoder) == ({"thinking", "tools"}, None)
    (tmp_path / "mmproj-m-f16.gguf").touch()
    found = read_model_file(path, tmp_path)
    assert found.capabilities == {"thinking", "tools", "vision"}
    assert found.vision_encoder == tmp_path / "mmproj-m-f16.gguf"
    text_only = read_model_file(write_tiny_model(tmp_path / "t.gguf", template="{{ messages }}"), tmp_path)
    assert (text_only.capabilities, text_only.vision_encoder) == (frozenset(), None)
    assert text_only.parts == (tmp_path / "t.gguf",)


def test_an_rkllm_file_can_do_what_the_template_beside_it_says(tmp_path: Path) -> None:
    path = tmp_path / "m.rkllm"
    path.write_bytes(b"\xda\xee\xb3\x36" + bytes(100))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{% if tools %}{% endif %}"}', encoding="utf-8")
    (tmp_path / "vision.rknn").touch()
    assert read_model_file(path, tmp_path / "cache").capabilities == {"tools", "vision"}
