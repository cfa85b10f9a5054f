import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.errors import ModelError
from trilithon.models.names import ModelName
from trilithon.models.store.manifest import Manifest, PresetMessage, StoredFile, now, safe_file_name

NAME = ModelName("registry.ollama.ai", "library", "qwen2.5", "0.5b")
WEIGHTS = StoredFile(
    role="weights", digest="a" * 64, size_bytes=5, name="qwen.gguf", format="gguf", quantization="Q4_K_M"
)
CHIP = StoredFile(
    role="weights", digest="b" * 64, size_bytes=7, name="qwen.rkllm", format="rkllm", target_platform="RK3588"
)
ADOPTED = StoredFile(
    role="weights", digest="", size_bytes=1, name="there.gguf", format="gguf", path=Path("/models/there.gguf")
)
MANIFEST = Manifest(
    name=NAME,
    files=(WEIGHTS, CHIP),
    source="hf.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF",
    created="2026-01-02T03:04:05+00:00",
    parameters={"temperature": 0.5, "stop": ["a", "b"], "num_ctx": 2048},
    system="Be kind.",
    template="{{ messages }}",
    messages=(PresetMessage("user", "hello"),),
    synthetic=True,
)


def refusal(data: object) -> str:
    with pytest.raises(ModelError) as caught:
        Manifest.from_json(data if isinstance(data, str | bytes) else json.dumps(data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(**values: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(MANIFEST.to_json())
    return data | values


@pytest.mark.parametrize("manifest", [MANIFEST, replace(MANIFEST, files=(ADOPTED,)), replace(MANIFEST, messages=())])
def test_what_is_written_is_read(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_what_a_manifest_looks_like_on_the_disk() -> None:
    """The next release reads what this one wrote."""
    manifest = Manifest(name=NAME, files=(replace(ADOPTED, digest="c" * 64), CHIP), source="s", created="2026-01-02")
    assert manifest.to_json().startswith('{\n "kind": "trilithon model",\n "version": 1,\n "name": {\n  "host"')
    assert json.loads(manifest.to_json()) == {
        "kind": "trilithon model",
        "version": 1,
        "name": {"host": "registry.ollama.ai", "namespace": "library", "model": "qwen2.5", "tag": "0.5b"},
        "files": [
            {
                "role": "weights",
                "digest": "c" * 64,
                "size_bytes": 1,
                "name": "there.gguf",
                "format": "gguf",
                "path": "/models/there.gguf",
            },
            {
                "role": "weights",
                "digest": "b" * 64,
                "size_bytes": 7,
                "name": "qwen.rkllm",
                "format": "rkllm",
                "target_platform": "RK3588",
            },
        ],
        "source": "s",
        "created": "2026-01-02",
        "parameters": {},
        "system": "",
        "template": "",
        "messages": [],
        "placement_options": {},
        "synthetic": False,
    }


def test_a_hub_name_is_kept() -> None:
    name = ModelName("hf.co", "Qwen", "Qwen2.5-0.5B-GGUF", "Q4_K_M")
    assert Manifest.from_json(replace(MANIFEST, name=name).to_json()).name == name


def test_a_newer_one_is_refused_with_the_fix() -> None:
    assert "upgrade Trilithon" in refusal(changed(version=2, files="quite another thing"))


def test_fields_of_later_days_do_not_disturb() -> None:
    data = changed(mood="good")
    data["files"][0]["mood"] = "good"
    assert Manifest.from_json(json.dumps(data)) == MANIFEST


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        "[" * 100_000,
        [],
        {},
        {"kind": "else"},
        changed(version="1"),
        changed(kind=None),
        changed(name="qwen"),
        changed(name={"host": "h", "namespace": "..", "model": "m", "tag": "t"}),
        changed(name={"host": "h", "namespace": "n", "model": "../../etc", "tag": "t"}),
        changed(files={}),
        changed(files=[3]),
        changed(files=[{"role": "weights"}]),
        changed(files=[{"role": "weights", "digest": "A" * 64, "size_bytes": 1, "name": "a", "format": "gguf"}]),
        changed(files=[{"role": "weights", "digest": "../../x", "size_bytes": 1, "name": "a", "format": "gguf"}]),
        changed(files=[{"role": "weights", "digest": "a" * 64, "size_bytes": -1, "name": "a", "format": "gguf"}]),
        changed(files=[{"role": "weights", "digest": "a" * 64, "size_bytes": True, "name": "a", "format": "gguf"}]),
        changed(files=[{"role": "weights", "digest": "a" * 64, "size_bytes": 1, "name": "../a", "format": "gguf"}]),
        changed(files=[{"role": "weights", "digest": "a" * 64, "size_bytes": 1, "name": "a", "format": "zip"}]),
        changed(files=[{"role": "boss", "digest": "a" * 64, "size_bytes": 1, "name": "a", "format": "gguf"}]),
        changed(
            files=[{"role": "weights", "digest": "", "size_bytes": 1, "name": "a", "format": "gguf", "path": "a/b"}]
        ),
        changed(
            files=[{"role": "weights", "digest": "a" * 64, "size_bytes": 1, "name": "a", "format": "gguf", "path": 0}]
        ),
        changed(files=[{"role": "weights", "digest": "a" * 64, "size_bytes": 1, "name": "a\ud800", "format": "gguf"}]),
        changed(created="yesterday"),
        changed(system=5),
        changed(synthetic="no"),
        changed(parameters={"a": {}}),
        changed(parameters={"stop": ["a", 1]}),
        changed(messages=[{"role": "user", "content": 1}]),
        changed(messages=[{"role": "user"}]),
    ],
)
def test_what_is_no_manifest_is_refused(data: object) -> None:
    assert refusal(data)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each), max_leaves=3))
def test_any_value_anywhere_is_refused_or_fits(value: object) -> None:
    for field in ("name", "files", "source", "created", "parameters", "messages", "synthetic", "template"):
        try:
            found = Manifest.from_json(json.dumps(changed(**{field: value})))
        except ModelError:
            continue
        assert Manifest.from_json(found.to_json()) == found


def test_two_files_never_share_a_name() -> None:
    with pytest.raises(ModelError, match="two files named"):
        replace(MANIFEST, files=(WEIGHTS, replace(CHIP, name="QWEN.gguf")))


def test_the_name_that_two_files_share_is_said() -> None:
    with pytest.raises(ModelError, match=r"two files named 'qwen\.gguf'"):
        replace(MANIFEST, files=(CHIP, WEIGHTS, replace(CHIP, name="QWEN.gguf")))


def test_a_file_of_the_store_needs_a_digest_and_an_adopted_one_a_right_one() -> None:
    for wrong in (replace(ADOPTED, name="x"), WEIGHTS):
        with pytest.raises(ModelError, match="not a SHA-256"):
            replace(wrong, digest="abc" if wrong.path else "")
    assert replace(WEIGHTS, size_bytes=0).size_bytes == 0


def test_a_model_is_adopted_when_one_of_its_files_is() -> None:
    assert replace(MANIFEST, files=(WEIGHTS, ADOPTED)).adopted
    assert not Manifest(name=NAME, files=(), source="", created=now()).synthetic


def test_the_size_counts_each_blob_once() -> None:
    manifest = replace(MANIFEST, files=(WEIGHTS, CHIP, replace(WEIGHTS, name="again.gguf")))
    assert manifest.size_bytes == 12
    assert not manifest.adopted
    assert replace(MANIFEST, files=(ADOPTED,)).adopted
    assert [file.name for file in manifest.of_role("weights")] == ["qwen.gguf", "qwen.rkllm", "again.gguf"]


@given(st.text(max_size=400))
def test_any_text_gives_a_safe_name(text: str) -> None:
    name = safe_file_name(text)
    assert replace(WEIGHTS, name=name).name == name
    assert safe_file_name(name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen Q4.gguf", "Qwen Q4.gguf"),
        ("onnx/model.json", "model.json"),
        ("..", "file"),
        ("../../etc/passwd", "passwd"),
        ("C:\\a\\b.gguf", "b.gguf"),
        ("a\nb.gguf", "a_b.gguf"),
        ("x" * 500 + ".gguf", "x" * 195 + ".gguf"),
        ("x" * 300 + "." + "s" * 11, "x" * 188 + "." + "s" * 11),
        ("x" * 300 + "." + "s" * 12, "x" * 188 + "." + "s" * 11),  # no suffix at first, being too long
        ("a." + "y" * 300, "a." + "y" * 198),
        ("x" * 201, "x" * 200),
    ],
)
def test_safe_names_stay_near(text: str, name: str) -> None:
    assert safe_file_name(text) == name


def test_now_is_a_time() -> None:
    assert replace(MANIFEST, created=now()).created.endswith("+00:00")
