import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import CONTENT, DIGEST, add, manifest_of, name_of, refusal, weights

from trilithon.models.files.model_file import read_model_file
from trilithon.models.store.manifest import FileFormat, Manifest, Role, StoredFile
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import (
    Companions,
    companions,
    find_model,
    locate,
    model_name,
    openable_path,
    read_weights,
    resolve,
)
from trilithon.models.store.upkeep import prune
from trilithon.models.synthetic.tiny import write_tiny_model


def test_a_name_becomes_a_file_with_its_suffix(store: ModelStore) -> None:
    add(store, "m")
    path = locate("m", store, lambda _: True)
    assert path.name == "m.gguf"
    assert path.read_bytes() == CONTENT
    assert locate("m", store, lambda _: True) == path


def test_the_first_that_suits_is_taken(store: ModelStore) -> None:
    files = []
    for name, form, platform in (
        ("a.gguf", "gguf", ""),
        ("x.rkllm", "rkllm", "RK3588"),
        ("y.rkllm", "rkllm", "RK3576"),
        ("tokenizer.json", "json", ""),
        ("x.rknn", "rknn", "RK3588"),
        ("y.rknn", "rknn", "RK3576"),
    ):
        role = {"json": "tokenizer", "rknn": "vision"}.get(form, "weights")
        digest = store.add_bytes(name.encode())
        files.append(
            StoredFile(
                role=role,  # type: ignore[arg-type]
                digest=digest,
                size_bytes=len(name),
                name=name,
                format=form,  # type: ignore[arg-type]
                target_platform=platform,
            )
        )
    store.put(manifest_of("m", *files))
    assert locate("m", store, lambda file: file.format == "gguf").name == "a.gguf"
    assert locate("m", store, lambda file: file.format == "none").name == "a.gguf"
    path = locate("m", store, lambda file: file.target_platform == "RK3576")
    assert sorted(each.name for each in path.parent.iterdir()) == ["tokenizer.json", "y.rkllm", "y.rknn"]
    (path.parent / "z.rknn").symlink_to("/etc/passwd")
    assert locate("m", store, lambda file: file.target_platform == "RK3576") == path
    assert not (path.parent / "z.rknn").is_symlink()


def test_shards_lie_together(store: ModelStore) -> None:
    names = [f"m-{number:05}-of-00003.gguf" for number in (3, 1, 2)] + ["other-00001-of-00003.gguf"]
    files = [weights(store.add_bytes(name.encode()), len(name), name) for name in names]
    store.put(manifest_of("m", *files))
    path = locate("m", store, lambda _: True)
    assert path.name == names[1]
    assert sorted(each.name for each in path.parent.iterdir()) == sorted(names[:3])


def test_what_is_written_is_a_path_or_a_name(
    tmp_path: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add(store, "m")
    assert locate("none.gguf", store, lambda _: True) == tmp_path / "none.gguf"
    assert locate("./m", store, lambda _: True) == tmp_path / "m"
    (tmp_path / "m").write_bytes(b"")
    assert locate("m", store, lambda _: True) == tmp_path / "m"
    assert "trilithon pull https://" in refusal(locate, "https://example.org/a.gguf", store, lambda _: True)
    assert "hf.co/a/b" in refusal(locate, "hf.co/a/b", store, lambda _: True)
    assert "not the name of a model" in refusal(model_name, "./m")
    assert model_name("hf.co/a.b/c").namespace == "a-b"
    assert model_name("m:tag") == name_of("m:tag")
    for odd in ("x" * 300, "a\0b"):
        refusal(locate, odd, store, lambda _: True)


def test_models_of_others_come_last(store: ModelStore) -> None:
    other = manifest_of("other", replace(weights(), digest="", path=Path("/nowhere/m.gguf")))
    assert find_model(name_of("OTHER"), store, lambda: [other]) == other
    refusal(find_model, name_of("third"), store, lambda: [other])
    kept = add(store, "other")
    assert find_model(name_of("other"), store, lambda: [other]) == kept


def test_models_of_others_with_a_near_name_are_told(store: ModelStore) -> None:
    add(store, "mine")
    others = [manifest_of(name, weights()) for name in ("Other:1b", "other:2b", "else")]
    assert refusal(find_model, name_of("other"), store, lambda: others) == (
        "there is no other:latest; other programs have Other:1b, other:2b; or fetch it: trilithon pull other:latest"
    )
    assert refusal(find_model, name_of("third"), store, lambda: others) == refusal(store.get, name_of("third"))
    assert refusal(find_model, name_of("third"), store) == refusal(store.get, name_of("third"))


def test_a_file_is_linked_only_where_an_engine_needs_names_or_neighbours(tmp_path: Path, store: ModelStore) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    adopted = replace(weights(), digest="", path=path)
    neighbour = StoredFile(role="tokenizer", digest="", size_bytes=1, name="t.json", format="json", path=path)
    in_place = [
        (adopted,),
        (adopted, neighbour),
        (adopted, beside(store, "license", "LICENSE", "text")),
        (adopted, neighbour, beside(store, "license", "LICENSE", "text")),
    ]
    for files in in_place:
        assert openable_path(manifest_of("m", *files), adopted, store) == path
    key = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    folder = store.local.root / "links/registry.ollama.ai/library/m/latest"
    tokenizer = beside(store, "tokenizer", "tokenizer.json", "json")
    for files in ((adopted, tokenizer), (adopted, neighbour, tokenizer)):
        assert openable_path(manifest_of("m", *files), adopted, store) == folder / key / "m.gguf"
        assert (folder / key / "tokenizer.json").read_bytes() == b"tokenizer.json"
    other_name = replace(adopted, name="n.gguf")
    assert openable_path(manifest_of("m", other_name), other_name, store) == folder / key / "n.gguf"
    store.add_bytes(CONTENT)
    assert openable_path(manifest_of("m", weights()), weights(), store) == folder / DIGEST[:16] / "m.gguf"


def test_synthetic_is_what_the_file_or_the_manifest_says(tmp_path: Path, store: ModelStore) -> None:
    content = write_tiny_model(tmp_path / "m.gguf").read_bytes()
    file = weights(store.add_bytes(content), len(content))
    said = [
        read_weights(replace(manifest_of("m", file), synthetic=synthetic), file, store, tmp_path).synthetic
        for synthetic in (True, False)
    ]
    assert said == [True, read_model_file(tmp_path / "m.gguf", tmp_path).synthetic]


def test_links_to_other_programs_outlive_a_prune(tmp_path: Path, store: ModelStore) -> None:
    blob = tmp_path / "ollama" / "sha256-abc"
    blob.parent.mkdir()
    blob.write_bytes(CONTENT)
    other = manifest_of("other", replace(weights(), digest="", path=blob))
    path = locate("other", store, lambda _: True, lambda: [other])
    assert (path.name, path.read_bytes()) == ("m.gguf", CONTENT)
    prune(store)
    assert path.read_bytes() == CONTENT
    blob.unlink()
    prune(store)
    assert not path.is_symlink()


def test_without_links_a_single_gguf_is_opened_as_a_blob(tmp_path: Path) -> None:
    """As on a disk that is only read, or one without symbolic links."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "links").write_bytes(b"")
    with ModelStore(tmp_path / "layer") as layer:
        add(layer, "m")
        layer.put(manifest_of("npu", replace(weights(), name="m.rkllm", format="rkllm")))
    with ModelStore(tmp_path / "own", (tmp_path / "layer",)) as store:
        assert locate("m", store, lambda _: True) == tmp_path / "layer" / "blobs" / f"sha256-{DIGEST}"
        assert "TRILITHON_DATA" in refusal(locate, "npu", store, lambda _: True)


def beside(store: ModelStore, role: Role, name: str, form: FileFormat = "gguf", **more: str) -> StoredFile:
    digest = store.add_bytes(name.encode())
    return StoredFile(role=role, digest=digest, size_bytes=len(name), name=name, format=form, **more)  # type: ignore[arg-type]


def companions_of(manifest: Manifest, name: str, store: ModelStore) -> Companions:
    return companions(manifest, next(each for each in manifest.files if each.name == name), store)


def test_adapters_and_the_projector_of_a_file(tmp_path: Path, store: ModelStore) -> None:
    theirs = tmp_path / "theirs-lora.gguf"
    theirs.write_bytes(b"lora")
    files = [
        weights(store.add_bytes(b"w"), 1),
        replace(weights(store.add_bytes(b"r"), 1, "m.rkllm"), format="rkllm", target_platform="RK3588"),
        beside(store, "projector", "eyes-Q8_0.gguf", quantization="Q8_0"),
        beside(store, "projector", "eyes-F16.gguf", quantization="F16"),
        beside(store, "projector", "odd.gguf", quantization="Q3_K"),
        beside(store, "vision", "any.rknn", "rknn"),
        beside(store, "vision", "3588.rknn", "rknn", target_platform="RK3588"),
        beside(store, "vision", "3576.rknn", "rknn", target_platform="RK3576"),
        beside(store, "adapter", "style.gguf"),
        beside(store, "adapter", "style.rkllm", "rkllm"),
        StoredFile(role="adapter", digest="", size_bytes=4, name="theirs.gguf", format="gguf", path=theirs),
    ]
    manifest = store.put(manifest_of("m", *files))
    paths = {each.name: store.file_path(each) for each in files}
    assert companions_of(manifest, "m.gguf", store) == Companions(
        adapters=((paths["style.gguf"], 1.0), (theirs, 1.0)), projector=paths["eyes-F16.gguf"]
    )
    assert companions_of(manifest, "m.rkllm", store) == Companions(
        adapters=((paths["style.rkllm"], 1.0),), projector=paths["3588.rknn"]
    )
    only = replace(manifest, files=tuple(each for each in files if each.name in ("m.rkllm", "3576.rknn")))
    assert companions_of(only, "m.rkllm", store) == Companions()
    theirs.unlink()
    assert "is missing" in refusal(companions_of, manifest, "m.gguf", store)


def test_what_is_named_does_not_lie_beside(store: ModelStore, tmp_path: Path) -> None:
    """An adapter there would be taken for another model, and the template for nobody's."""
    content = write_tiny_model(tmp_path / "m.gguf", template="its own").read_bytes()
    manifest = manifest_of(
        "m",
        weights(store.add_bytes(content), len(content), "m-F16.gguf"),
        beside(store, "adapter", "style.gguf"),
        beside(store, "draft", "small.gguf"),
        beside(store, "projector", "eyes.gguf"),
        beside(store, "projector", "more-mmproj.gguf"),
        beside(store, "template", "chat_template.jinja", "text"),
    )
    manifest = store.put(manifest)
    path = locate("m", store, lambda _: True)
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "chat_template.jinja",
        "m-F16.gguf",
        "mmproj-eyes.gguf",
    ]
    found = resolve("m", store, lambda _: True, cache=tmp_path)
    assert found == read_weights(manifest, manifest.files[0], store, tmp_path)
    assert found.prompt_form is not None
    assert found.prompt_form.template == "chat_template.jinja"
    assert found.adapters == ((store.file_path(manifest.files[1]), 1.0),)
    assert found.vision_encoder == store.file_path(manifest.files[3])
    assert found.capabilities == {"vision"}
    assert resolve(str(path), store, lambda _: True, cache=tmp_path).adapters == ()
