from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.errors import ModelError
from trilithon.models.names import ModelName, ModelPath, ModelUrl, Repository, parse_reference

OLLAMA = "registry.ollama.ai"


def test_a_signed_address_may_be_long() -> None:
    url = "https://example.org/a.gguf?X-Amz-Signature=" + "0" * 3000
    assert parse_reference(url) == ModelUrl(url)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qwen2.5", ModelName(OLLAMA, "library", "qwen2.5", "latest")),
        ("qwen2.5:0.5b", ModelName(OLLAMA, "library", "qwen2.5", "0.5b")),
        ("me/mine:v1", ModelName(OLLAMA, "me", "mine", "v1")),
        ("host.local:5000/me/mine:v1", ModelName("host.local:5000", "me", "mine", "v1")),
        ("a@sha256:" + "0" * 64, ModelName(OLLAMA, "library", "a", "latest", "0" * 64)),
        ("hf.co/Qwen/Qwen2.5-0.5B-GGUF", Repository("Qwen", "Qwen2.5-0.5B-GGUF")),
        ("hf.co/Qwen/Qwen2.5-0.5B-GGUF:Q8_0", Repository("Qwen", "Qwen2.5-0.5B-GGUF", "Q8_0")),
        ("hf.co/a/b:c-Q4_K_M.gguf", Repository("a", "b", "c-Q4_K_M.gguf")),
        ("huggingface.co/a/b", Repository("a", "b")),
        ("https://huggingface.co/a/b", Repository("a", "b")),
        ("https://huggingface.co/a/b/tree/main", Repository("a", "b")),
        ("https://huggingface.co/a/b/blob/main/c-Q4_K_M.gguf", Repository("a", "b", "c-Q4_K_M.gguf")),
        ("https://hf.co/a/b/resolve/main/c.RKLLM?download=true", Repository("a", "b", "c.RKLLM")),
        ("https://hf.co/a/b/blob/v2/c.gguf", ModelUrl("https://hf.co/a/b/resolve/v2/c.gguf")),
        ("https://hf.co/a/b/blob/main/blob/c.gguf", ModelUrl("https://hf.co/a/b/resolve/main/blob/c.gguf")),
        ("https://hf.co/a/b/resolve/main/c%20d.gguf", ModelUrl("https://hf.co/a/b/resolve/main/c%20d.gguf")),
        ("https://hf.co.evil.org/a/b", ModelUrl("https://hf.co.evil.org/a/b")),
        ("https://example.org/a.gguf", ModelUrl("https://example.org/a.gguf")),
        ("/models/a.gguf", ModelPath(Path("/models/a.gguf"))),
        ("./a", ModelPath(Path("a"))),
        ("a.gguf", ModelPath(Path("a.gguf"))),
        ("folder/A.RKLLM", ModelPath(Path("folder/A.RKLLM"))),
        ("./my models/a.gguf", ModelPath(Path("my models/a.gguf"))),
    ],
)
def test_what_people_write(text: str, expected: object) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "a:",
        "a/b/c/d",
        "a/../b",
        "a..b/c",
        "-a",
        "a b",
        "a\n",
        "name.space/model",
        "a" * 81,
        "ä",
        "hf.co/a",
        "hf.co/a/b/c",
        "hf.co/../b",
        "hf.co/a/b:..",
        "a@md5:00",
        "x" * 5000,
        "https://example.org/" + "x" * 9000,
        "a\0.gguf",
    ],
)
def test_what_does_not_fit_is_one_line_with_the_fix(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_reference(text)
    assert "\n" not in str(caught.value)
    assert "write" in str(caught.value)


@pytest.mark.parametrize("text", ["qwen2.5:0.5b", "me/mine:v1", "host:5000/me/mine:latest"])
def test_a_name_is_written_as_it_was(text: str) -> None:
    assert str(parse_reference(text)) == text


part = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,20}", fullmatch=True)


@given(host=part, namespace=part, model=part, tag=part)
def test_text_and_name_are_the_same_thing(host: str, namespace: str, model: str, tag: str) -> None:
    name = ModelName(host, namespace, model, tag)
    if host.lower() not in ("hf.co", "huggingface.co"):
        assert parse_reference(str(name)) == name


@given(st.text(max_size=200))
def test_no_name_leads_out_of_the_store(text: str) -> None:
    try:
        found = parse_reference(text)
    except ModelError:
        return
    if isinstance(found, Repository):
        found = found.local_name
    if isinstance(found, ModelName):
        root = Path("/store/manifests")
        inside = root.joinpath(*found.parts)
        assert len(inside.parts) == len(root.parts) + 4
        assert all(part not in ("", ".", "..") and "/" not in part and part.isprintable() for part in found.parts)


def test_case_makes_no_other_name() -> None:
    assert ModelName(OLLAMA, "library", "Qwen", "A").same_as(ModelName(OLLAMA, "library", "qwen", "a"))
