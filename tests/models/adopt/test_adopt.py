"""Models of other programs: folders as those programs make them, found, named, and left as they are."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from other_ggufs import write_adapter, write_gguf, write_imatrix, write_projector

from trilithon.errors import ModelError
from trilithon.models.adopt.places import Adoption, find_adopted
from trilithon.models.adopt.remembered import adopted_folders, forget_folder, remember_folder
from trilithon.models.adopt.rkllama import read_dotenv
from trilithon.models.files.model_file import read_model_file
from trilithon.models.names import name_part, parse_reference
from trilithon.models.store.manifest import Manifest, PresetMessage
from trilithon.models.store.resolve import model_name
from trilithon.models.synthetic.architectures import find_architecture
from trilithon.models.synthetic.true_size import plan_synthetic, write_synthetic
from trilithon.settings import Configuration

GGUF = b"GGUF\3\0\0\0" + bytes(60)


def look(home: Path, *folders: Path, **variables: object) -> Adoption:
    configuration = Configuration(data=home / "data", cache=home / "cache", models=folders)
    environment = {"HOME": str(home)} | {name: str(value) for name, value in variables.items()}
    return find_adopted(configuration, environment, system=home / "system")


def names(found: Adoption) -> list[str]:
    return [str(manifest.name) for manifest in found.manifests]


def reasons(found: Adoption) -> Mapping[str, str]:
    return {each.path.name: each.reason for each in found.skipped}


def get(found: Adoption, name: str) -> Manifest:
    model = found.get(model_name(name))
    assert model is not None, names(found)
    return model.manifest


def roles(manifest: Manifest) -> list[tuple[str, str]]:
    return [(file.role, file.name) for file in manifest.files]


def write(path: Path, content: bytes | str = GGUF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def blob(store: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    write(store / "blobs" / f"sha256-{digest}", content)
    return f"sha256:{digest}"


def ollama_model(store: Path, name: str = "registry.ollama.ai/library/qwen2.5/0.5b", **layers: Any) -> Path:
    """As `ollama pull` leaves it; `layers` by their kind, each bytes or what becomes JSON."""
    layers = {"model": GGUF + name.encode()} | layers
    listed = []
    for kind, content in layers.items():
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        digest = blob(store, content)
        listed.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": len(content)})
    config = json.dumps({"model_format": "gguf", "model_family": "qwen2", "file_type": "Q4_K_M"}).encode()
    manifest = {"schemaVersion": 2, "config": {"digest": blob(store, config), "size": len(config)}, "layers": listed}
    return write(store / "manifests" / name, json.dumps(manifest))


def hub_file(cache: Path, repository: str, path: str, content: bytes = GGUF, revision: str = "a" * 40) -> Path:
    """As huggingface_hub keeps it: a link in the snapshot to a blob."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    target = write(folder / "blobs" / hashlib.sha256(content + path.encode()).hexdigest(), content)
    link = folder / "snapshots" / revision / path
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent))
    write(folder / "refs" / "main", revision)
    return link


# Ollama


def test_a_model_of_ollamas_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    store = tmp_path / ".ollama/models"
    ollama_model(
        store,
        projector=GGUF + b"eyes",
        adapter=GGUF + b"lora",
        template=b"{{ .System }}{{ .Prompt }}",
        system=b"Be brief.",
        params={"stop": ["<|im_end|>"], "temperature": 0.7, "num_ctx": 4096},
        messages=[{"role": "user", "content": "hi"}],
        license=b"Apache",
    )
    found = look(tmp_path)
    manifest = get(found, "qwen2.5:0.5b")
    assert roles(manifest) == [
        ("weights", "qwen2.5-0.5b.gguf"),
        ("projector", "qwen2.5-0.5b-mmproj.gguf"),
        ("adapter", "qwen2.5-0.5b-adapter.gguf"),
        ("template", "ollama-template.txt"),
        ("license", "qwen2.5-0.5b-license.txt"),
    ]
    weights = manifest.files[0]
    assert weights.path is not None
    assert weights.path.name == f"sha256-{weights.digest}"
    assert hashlib.sha256(weights.path.read_bytes()).hexdigest() == weights.digest
    assert weights.quantization == "Q4_K_M"
    assert manifest.template == ""
    assert manifest.system == "Be brief."
    assert manifest.parameters == {"stop": ["<|im_end|>"], "temperature": 0.7, "num_ctx": 4096}
    assert manifest.messages == (PresetMessage("user", "hi"),)
    assert manifest.adopted
    assert found.skipped == ()


def test_names_of_other_hosts_and_users(tmp_path: Path) -> None:
    store = tmp_path / ".ollama/models"
    ollama_model(store, "hf.co/some.one/Qwen2.5-GGUF/Q4_K_M")
    ollama_model(store, "registry.ollama.ai/mine/mario/latest")
    ollama_model(store, "localhost:5000/library/x/1b")
    found = look(tmp_path)
    assert names(found) == ["hf.co/some-one/Qwen2.5-GGUF:Q4_K_M", "localhost:5000/library/x:1b", "mine/mario:latest"]
    assert all(found.get(model_name(name)) for name in names(found))


@pytest.mark.parametrize(
    "place", ["usr/share/ollama/.ollama/models", "var/lib/ollama", "var/lib/ollama/.ollama/models"]
)
def test_the_store_of_the_systems_service(tmp_path: Path, place: str) -> None:
    ollama_model(tmp_path / "system" / place)
    assert names(look(tmp_path)) == ["qwen2.5:0.5b"]


def test_the_store_that_a_variable_names(tmp_path: Path) -> None:
    ollama_model(tmp_path / "big disk")
    assert names(look(tmp_path, OLLAMA_MODELS=tmp_path / "big disk")) == ["qwen2.5:0.5b"]


def test_a_store_through_a_link_is_found_once(tmp_path: Path) -> None:
    ollama_model(tmp_path / "system/usr/share/ollama/.ollama/models")
    (tmp_path / ".ollama").mkdir()
    (tmp_path / ".ollama/models").symlink_to(tmp_path / "system/usr/share/ollama/.ollama/models")
    found = look(tmp_path)
    assert (names(found), found.skipped) == (["qwen2.5:0.5b"], ())


def test_what_is_wrong_in_ollamas_store_is_said_and_the_rest_is_used(tmp_path: Path) -> None:
    store = tmp_path / ".ollama/models"
    ollama_model(store)
    prefix = store / "manifests/registry.ollama.ai/library"
    write(prefix / "x/garbage", b"{\xff")
    write(prefix / "x/list", "[]")
    write(prefix / "x/empty", "{}")
    write(prefix / "x/deep", "[" * 100_000)
    write(prefix / "x/odd", '{"layers": [{"mediaType": 5}]}')
    write(prefix / "x/escape", '{"layers": [{"mediaType": "m", "digest": "sha256:../../x", "size": 1}]}')
    write(prefix / "..x/bad name", (prefix / "qwen2.5/0.5b").read_bytes())
    ollama_model(store, "registry.ollama.ai/library/x/damaged-params", params=["no object"])
    ollama_model(store, "registry.ollama.ai/library/x/mlx", tensor=b"x")
    gone = ollama_model(store, "registry.ollama.ai/library/x/gone")
    cut = ollama_model(store, "registry.ollama.ai/library/x/cut")
    for path, act in ((gone, "unlink"), (cut, "cut")):
        digest = json.loads(path.read_text())["layers"][0]["digest"].replace(":", "-")
        if act == "unlink":
            (store / "blobs" / digest).unlink()
        else:
            os.truncate(store / "blobs" / digest, 10)
    ollama_model(store, "registry.ollama.ai/library/ok/odd-parameter", params={"seed": 1, "num_ctx": "x", "numa": 1})
    found = look(tmp_path)
    assert names(found) == ["ok:odd-parameter", "qwen2.5:0.5b", "x:mlx"]
    assert get(found, "ok:odd-parameter").parameters == {"seed": 1}
    said = reasons(found)
    assert said["garbage"] == said["list"] == "its manifest is damaged; pull it again with Ollama"
    assert said["deep"] == "its manifest is damaged; pull it again with Ollama"
    assert "has no layers" in said["empty"]
    assert "without type, digest or size" in said["odd"]
    assert "without type, digest or size" in said["escape"]
    assert "its parameters is damaged" in said["damaged-params"]
    assert "is missing; pull it again" in said["gone"]
    assert "has 10 of" in said["cut"]
    assert "is used without one parameter: parameter num_ctx = 'x' does not fit" in said["odd-parameter"]


def test_a_model_in_ollamas_cloud_and_one_of_tensors(tmp_path: Path) -> None:
    store = tmp_path / ".ollama/models"
    config = blob(store, b'{"remote_host": "https://ollama.com"}')
    layer = {"mediaType": "application/vnd.ollama.image.license", "digest": blob(store, b"x"), "size": 1}
    cloud = {"config": {"digest": config, "size": 1}, "layers": [layer]}
    write(store / "manifests/registry.ollama.ai/library/big/cloud", json.dumps(cloud))
    layer = {"mediaType": "application/vnd.ollama.image.tensor", "digest": blob(store, b"x"), "size": 1}
    write(store / "manifests/registry.ollama.ai/library/big/mlx", json.dumps({"layers": [layer]}))
    said = reasons(look(tmp_path))
    assert said["cloud"] == "runs on Ollama's servers; pull one that runs here"
    assert "separate tensors" in said["mlx"]


# Hugging Face's cache


def test_repositories_in_the_cache_by_quantisation(tmp_path: Path) -> None:
    cache = tmp_path / ".cache/huggingface/hub"
    repository = "Qwen/Qwen2.5-0.5B-Instruct-GGUF"
    hub_file(cache, repository, "qwen2.5-0.5b-instruct-q4_k_m.gguf")
    hub_file(cache, repository, "qwen2.5-0.5b-instruct-q8_0.gguf")
    hub_file(cache, repository, "mmproj-qwen2.5-0.5b-instruct-f16.gguf")
    for number in (1, 2):
        hub_file(cache, repository, f"fp16/qwen2.5-0.5b-instruct-fp16-0000{number}-of-00002.gguf")
    hub_file(cache, repository, "README.md", b"# Qwen")
    found = look(tmp_path)
    assert sorted(names(found)) == [f"hf.co/{repository}:{tag}" for tag in ("F16", "Q4_K_M", "Q8_0")]
    manifest = get(found, f"hf.co/{repository}:q4_k_m")
    assert roles(manifest) == [
        ("weights", "qwen2.5-0.5b-instruct-q4_k_m.gguf"),
        ("projector", "mmproj-qwen2.5-0.5b-instruct-f16.gguf"),
    ]
    shards = get(found, f"hf.co/{repository}:F16").files
    assert [file.name[-19:] for file in shards] == ["-00001-of-00002.gguf"[1:], "-00002-of-00002.gguf"[1:]]
    assert all(file.path is not None and file.path.is_symlink() for file in shards)
    assert found.skipped == ()


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_the_cache_that_a_variable_names(tmp_path: Path, variable: str) -> None:
    hub_file(tmp_path / "big/hub", "user/repo", "model-Q4_0.gguf")
    value = tmp_path / ("big/hub" if variable == "HF_HUB_CACHE" else "big")
    assert names(look(tmp_path, **{variable: value})) == ["hf.co/user/repo:Q4_0"]


def test_the_newest_revision_goes_first_and_older_ones_fill_up(tmp_path: Path) -> None:
    cache = tmp_path / ".cache/huggingface/hub"
    hub_file(cache, "user/repo", "model-Q4_0.gguf", GGUF + b"old", revision="0" * 40)
    hub_file(cache, "user/repo", "model-Q8_0.gguf", GGUF + b"old", revision="0" * 40)
    newest = hub_file(cache, "user/repo", "model-Q4_0.gguf", GGUF + b"new", revision="1" * 40)
    found = look(tmp_path)
    assert sorted(names(found)) == ["hf.co/user/repo:Q4_0", "hf.co/user/repo:Q8_0"]
    assert get(found, "hf.co/user/repo:Q4_0").files[0].path == newest


def test_models_of_one_quantisation_are_told_apart_by_their_files(tmp_path: Path) -> None:
    cache = tmp_path / ".cache/huggingface/hub"
    for size in ("0.6B", "1.7B"):
        hub_file(cache, "user/repo", f"Qwen3-{size}-Q4_0.gguf", GGUF + size.encode())
    found = look(tmp_path)
    assert sorted(names(found)) == ["hf.co/user/repo:Qwen3-0.6B-Q4_0", "hf.co/user/repo:Qwen3-1.7B-Q4_0"]


def test_converted_models_with_chip_tokenizer_and_encoder(tmp_path: Path) -> None:
    cache = tmp_path / ".cache/huggingface/hub"
    repository = "c01zaut/Qwen2-VL-2B-Instruct-rk3588-1.1.4"
    hub_file(cache, repository, "Qwen2-VL-2B-Instruct-rk3588-w8a8_g128-opt-1-hybrid-ratio-0.5.rkllm", bytes(64))
    hub_file(cache, repository, "Qwen2-VL-2B-Instruct-rk3588-w8a8-opt-0-hybrid-ratio-0.0.rkllm", bytes(65))
    hub_file(cache, repository, "qwen2_vl_2b_vision_rk3588.rknn", bytes(66))
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        hub_file(cache, repository, name, b"{}")
    found = look(tmp_path)
    assert sorted(names(found)) == [f"hf.co/{repository}:rk3588-w8a8", f"hf.co/{repository}:rk3588-w8a8_g128"]
    manifest = get(found, f"hf.co/{repository}:rk3588-w8a8")
    assert [role for role, _ in roles(manifest)] == ["weights", "vision", "tokenizer", "tokenizer"]
    weights = manifest.files[0]
    assert (weights.format, weights.quantization, weights.target_platform) == ("rkllm", "w8a8", "RK3588")


def test_what_is_wrong_in_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / ".cache/huggingface/hub"
    hub_file(cache, "user/good", "model-Q4_0.gguf")
    hub_file(cache, "user/weights-only", "model.safetensors", b"x")
    dangling = hub_file(cache, "user/dangling", "model-Q4_0.gguf", GGUF + b"2")
    dangling.resolve().unlink()
    planted = hub_file(cache, "user/planted", "model-Q4_0.gguf", GGUF + b"3")
    secret = write(tmp_path / "outside/secret.gguf")
    planted.unlink()
    planted.symlink_to(secret)
    hub_file(cache, "user/part", "big-Q4_0-00001-of-00003.gguf", GGUF + b"4")
    hub_file(cache, "user/page", "model-Q4_0.gguf", b"<!DOCTYPE html>\n<html>")
    hub_file(cache, "user/pointer", "model.rkllm", b"version https://git-lfs.github.com/spec/v1\n")
    hub_file(cache, "user/empty", "model-Q5_0.gguf", b"")
    (cache / "models--..--..").mkdir()
    (cache / "datasets--a--b").mkdir()
    (cache / "models--gpt2").mkdir()
    found = look(tmp_path)
    assert names(found) == ["hf.co/user/good:Q4_0"]
    said = {str(each.path.relative_to(cache)).split("/")[0][14:]: each.reason for each in found.skipped}
    snapshot = next(cache.glob("models--user--weights-only/snapshots/*"))
    assert said["weights-only"].endswith(
        f"convert it with: trilithon convert '{snapshot}' --to gguf --output weights-only-f16.gguf"
    )
    assert said["dangling"] == "is a link to a missing file; fetch the file again"
    assert said["planted"] == f"is a link that leaves {cache}; trilithon adopt '{secret.parent}'"
    assert said["part"] == "has 1 of 3 parts; download the others into its folder"
    assert "is a web page" in said["page"]
    assert "Git LFS pointer" in said["pointer"]
    assert said["empty"] == "is empty; download it again"


# LM Studio, RKLLAMA, and folders


def test_lm_studios_folder(tmp_path: Path) -> None:
    models = tmp_path / ".lmstudio/models"
    write(models / "lmstudio-community/gemma-3-4b-it-GGUF/gemma-3-4b-it-Q4_K_M.gguf")
    write(models / "lmstudio-community/gemma-3-4b-it-GGUF/mmproj-model-f16.gguf")
    write(tmp_path / ".cache/lm-studio/models/TheBloke/Llama-2-7B-GGUF/llama-2-7b.Q5_K_S.gguf")
    found = look(tmp_path)
    assert names(found) == [
        "hf.co/lmstudio-community/gemma-3-4b-it-GGUF:Q4_K_M",
        "hf.co/TheBloke/Llama-2-7B-GGUF:Q5_K_S",
    ]
    assert roles(found.manifests[0])[1] == ("projector", "mmproj-model-f16.gguf")


def rkllama_model(folder: Path, modelfile: str) -> Path:
    write(folder / "Qwen2.5-1.5B-rk3588-w8a8.rkllm", bytes(64))
    write(folder / "vision.rknn", bytes(64))
    write(folder / "tokenizer/tokenizer.json", "{}")
    write(folder / "tokenizer/tokenizer_config.json", "{}")
    write(folder / "tokenizer/chat_template.jinja", "{{ messages }}")
    return write(folder / "Modelfile", modelfile)


def test_rkllamas_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    folder = tmp_path / "RKLLAMA/models/qwen2.5:1.5b"
    rkllama_model(
        folder,
        'FROM="Qwen2.5-1.5B-rk3588-w8a8.rkllm"\n'
        "HUGGINGFACE_PATH=Qwen/Qwen2.5-1.5B-Instruct\n\n"
        'export SYSTEM="You are ${SECRET}\nand $(reboot)"\n'
        "TEMPERATURE=0.5 # warm\nNUM_CTX=4096\nMAX_NEW_TOKENS='1024'\nENABLE_THINKING=False\nTOP_K=seven\n",
    )
    before = dict(os.environ)
    found = look(tmp_path)
    assert dict(os.environ) == before
    manifest = get(found, "qwen2.5:1.5b")
    assert sorted(role for role, _ in roles(manifest)) == ["template", "tokenizer", "tokenizer", "vision", "weights"]
    assert manifest.system == "You are ${SECRET}\nand $(reboot)"
    assert manifest.parameters == {"temperature": 0.5, "num_ctx": 4096, "num_predict": 1024, "think": False}
    assert "Qwen/Qwen2.5-1.5B-Instruct" in manifest.source
    assert found.models[0].place == folder
    assert reasons(found) == {
        "Modelfile": "is used without TOP_K: parameter top_k = 'seven' does not fit; write integer from -1"
    }


# Forms that python-dotenv drops or cuts are kept whole (its README has the grammar; RKLLAMA reads with it).
@pytest.mark.parametrize(
    ("written", "means"),
    [
        ('"You are called "Ada".\nAnswer in one line."', 'You are called "Ada".\nAnswer in one line.'),
        ('"Say "yes"\nor "no"."', 'Say "yes"\nor "no".'),
        ('"He said "no"" # a remark', 'He said "no"'),
        ("'You're Ada, aren't you?'", "You're Ada, aren't you?"),
        ('"She\\"s \\\\ Ada\\nand brief"', 'She"s \\ Ada\nand brief'),
        ('"""You are "Ada".\nBe brief."""', 'You are "Ada".\nBe brief.'),
        ("'''It's Ada.'''", "It's Ada."),
        ('You are "Ada", the first', 'You are "Ada", the first'),
        ("“You are Ada.”", "“You are Ada.”"),
        ('"a" # say "b"', "a"),
        ('"You are Ada', "You are Ada"),
        ('"You are Ada\nand brief', "You are Ada\nand brief"),
        ('"x = y"', "x = y"),
        ('"first\n\nA sum: a=b\n"', "first\n\nA sum: a=b\n"),
        ('""', ""),
        ("''", ""),
        ('"', ""),
        ('"only" inside', 'only" inside'),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_quotes_in_rkllamas_modelfile(written: str, means: str, line_end: str) -> None:
    text = f"\ufeffFROM=x.rkllm\n# of a user\nSYSTEM={written}\n\nexport TOP_K = 7\nNUM_CTX='4096'\n"
    expected = {"FROM": "x.rkllm", "SYSTEM": means, "TOP_K": "7", "NUM_CTX": "4096"}
    assert read_dotenv(text.replace("\n", line_end)) == expected


@given(st.text(alphabet="a\"'# \\", max_size=30), st.sampled_from("\"'"))
def test_no_quoted_text_is_lost_or_takes_the_next_value(text: str, quote: str) -> None:
    escaped = text.replace("\\", "\\\\") if quote == '"' else text
    values = read_dotenv(f"SYSTEM={quote}x{escaped}x{quote}\nNUM_CTX=1\n")
    assert values["NUM_CTX"] == "1"
    assert set(values) == {"SYSTEM", "NUM_CTX"}


# RKLLAMA's folders of GGUF models, with the configuration of its release 0.0.74
CONFIG = """\
[ENV]
RKNPU_HYBRID=W8A8_STANDARD

[ARGS]
mmap =
no-repack=
cache-type-k = q8_0
cache-type-v = q8_0
ctx-size = 8192
temp = 0.7
mmproj = mmproj.gguf
"""


def test_rkllamas_folders_of_gguf_models(tmp_path: Path) -> None:
    models = tmp_path / "RKLLAMA/models"
    for name, config in (("qwen3.5-4b:q8_0", CONFIG), ("gemma-4-e2b:q4_0", ""), ("plain", None)):
        write(models / name / "model.gguf")
        write(models / name / "mmproj.gguf")
        if config is not None:
            write(models / name / "config.ini", config)
    found = look(tmp_path)
    assert sorted(names(found)) == ["gemma-4-e2b:q4_0", "plain:latest", "qwen3.5-4b:q8_0"]
    manifest = get(found, "qwen3.5-4b:q8_0")
    assert manifest.parameters == {"num_ctx": 8192, "temperature": 0.7, "use_mmap": True}
    options = {"pipeline": "W8A8_STANDARD", "repack": "off", "ctk": "q8_0", "ctv": "q8_0"}
    assert manifest.placement_options == options
    assert roles(manifest) == [("weights", "model.gguf"), ("projector", "mmproj.gguf")]
    assert manifest.files[0].quantization == "Q8_0"
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert get(found, "gemma-4-e2b:q4_0").placement_options == {}
    assert reasons(found) == {}


@pytest.mark.parametrize(
    ("config", "parameters", "options", "said"),
    [
        ("", {}, {}, ""),
        ("ctx-size = 1\n", {}, {}, "is not used: line 1 is not NAME = VALUE below [ENV] or [ARGS]; correct it"),
        ("[ARGS]\n= 5\n", {}, {}, "is not used"),
        ("[ARGS]\nctx-size = many\n", {}, {}, "is used without ctx-size: parameter num_ctx = 'many' does not fit"),
        ("[ARGS]\nctx-size = -1\n", {}, {}, "is used without ctx-size"),
        ("[ARGS]\nctx-size\n", {}, {}, "is used without ctx-size"),
        ("[args]\n--ctx_size = 4096 ; as before\n", {"num_ctx": 4096}, {}, ""),
        ("[ARGS]\nc = 1024\nc = 2048\n", {"num_ctx": 2048}, {}, ""),
        ('[ARGS]\ntemp = "0.5"\ntop-k=40\n', {"temperature": 0.5, "top_k": 40}, {}, ""),
        ("[ARGS]\ntop-p = 7\n", {}, {}, "is used without top-p"),
        ("[ARGS]\ntemp = %(x)s\n", {}, {}, "is used without temp"),
        ("[ARGS]\ncache-type-k = Q4_0\n", {}, {"ctk": "q4_0"}, ""),
        ("[ARGS]\ncache-type-k = turbo\n", {}, {}, "is used without cache-type-k: 'turbo' is no KV type"),
        ("[ARGS]\nflash-attn =\n", {}, {"fa": "on"}, ""),
        ("[ARGS]\nflash-attn = auto\n", {}, {"fa": "auto"}, ""),
        ("[ARGS]\nflash-attn = perhaps\n", {}, {}, "is used without flash-attn: 'perhaps' does not fit; write on or"),
        ("[ARGS]\nthreads = 4\nubatch-size=256\n", {}, {"t": "4", "ub": "256"}, ""),
        ("[ARGS]\nthreads = -1\n", {}, {}, "is used without threads: '-1' does not fit; write a number from 1"),
        ("[ARGS]\nthreads = 99999999999999999999\n", {}, {}, "is used without threads"),
        ("[ARGS]\nno-mmap = false\nrepack = off\n", {"use_mmap": True}, {"repack": "off"}, ""),
        ("[ARGS]\nport = 9000\njinja =\n", {}, {}, ""),
        ("[ARGS]\nspec-type = draft-mtp\n", {}, {}, "is used without spec-type: Trilithon has no setting for this"),
        ("[ARGS]\nmmproj = ../../secret.gguf\n", {}, {}, "is used without mmproj: 'secret.gguf' is no projector"),
        ("[ENV]\nRKNPU_HYBRID = W8A8_STANDARD, W4A4_HADAMARD\n", {}, {"pipeline": "W8A8_STANDARD+W4A4_HADAMARD"}, ""),
        ("[env]\nrknpu_cores='0,2'\nRKNPU_DEVICE=RK3588\n", {}, {"cores": "0+2"}, ""),
        ("[ENV]\nRKNPU_CPU_DECODE=32\nRKNPU_X=1\n", {}, {"cpu_decode": "32", "RKNPU_X": "1"}, ""),
        ("[ENV]\nRKNPU_HYBRID=\n", {}, {}, "is used without RKNPU_HYBRID"),
        ("[ENV]\nRKNPU_HYBRID=a b\n", {}, {}, "is used without RKNPU_HYBRID"),
        ("[ENV]\nLD_PRELOAD=/tmp/x.so\n", {}, {}, "is used without LD_PRELOAD: Trilithon has no setting for this"),
        ("[DEFAULT]\nctx-size=1\n", {}, {}, "is used without ctx-size: [DEFAULT] is neither [ENV] nor [ARGS]"),
        ("\ufeff[ARGS]\r\nctx-size=4096\r\n", {"num_ctx": 4096}, {}, ""),
        ("\x00\xff[ARGS", {}, {}, "is not used"),
    ],
)
def test_odd_values_in_config_ini(
    tmp_path: Path, config: str, parameters: dict[str, Any], options: dict[str, str], said: str
) -> None:
    folder = tmp_path / "RKLLAMA/models/mine"
    write(folder / "model.gguf")
    write(folder / "config.ini", config)
    found = look(tmp_path)
    assert names(found) == ["mine:latest"]
    manifest = found.manifests[0]
    assert (manifest.parameters, manifest.placement_options) == (parameters, options)
    assert reasons(found).get("config.ini", "").startswith(said)
    assert bool(reasons(found)) == bool(said)


@given(st.text(max_size=200))
def test_any_configuration_leaves_the_model(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "RKLLAMA/models/mine/model.gguf")
        write(Path(folder) / "RKLLAMA/models/mine/config.ini", "[ARGS]\n" + text)
        found = look(Path(folder))
        assert names(found) == ["mine:latest"]
        assert all("\n" not in skipped.reason for skipped in found.skipped)


def test_a_folder_of_rkllamas_with_several_models_or_files(tmp_path: Path) -> None:
    models = tmp_path / "RKLLAMA/models"
    write(models / "loose-Q4_0.gguf")  # not in a folder of its own
    for name in ("a-Q4_0.gguf", "b-Q8_0.gguf"):
        write(models / "two" / name)
        write(models / "one" / name)
    write(models / "one/config.ini", "[ARGS]\nmodel = /anywhere/b-Q8_0.gguf\n")
    write(models / "eyes/model.gguf")
    for name in ("mmproj-f16.gguf", "mmproj-q8_0.gguf"):
        write(models / "eyes" / name)
    write(models / "eyes/config.ini", "[ARGS]\nmmproj = mmproj-q8_0.gguf\n")
    write(models / "blind/model.gguf")
    write(models / "blind/mmproj-f16.gguf")
    write(models / "blind/config.ini", "[ARGS]\nno-mmproj =\n")
    found = look(tmp_path)
    tagged = ["two:Q4_0", "two:Q8_0"]
    assert sorted(names(found)) == ["blind:latest", "eyes:latest", "loose:Q4_0", "one:latest", *tagged]
    assert roles(get(found, "one")) == [("weights", "b-Q8_0.gguf")]
    assert roles(get(found, "eyes")) == [("weights", "model.gguf"), ("projector", "mmproj-q8_0.gguf")]
    assert roles(get(found, "blind")) == [("weights", "model.gguf")]


def test_a_named_folder_with_config_ini_is_rkllamas(tmp_path: Path) -> None:
    write(tmp_path / "usb/qwen3:4b/model.gguf")
    write(tmp_path / "usb/qwen3:4b/config.ini", CONFIG.replace("mmproj = mmproj.gguf\n", ""))
    write(tmp_path / "usb/other/model.gguf")
    found = look(tmp_path, tmp_path / "usb")
    assert sorted(names(found)) == ["model:latest", "qwen3:4b"]


# What a file is, whatever its name


def test_ollamas_weights_that_are_no_model(tmp_path: Path) -> None:
    ollama_model(tmp_path / ".ollama/models", model=write_adapter(tmp_path / "a.gguf").read_bytes())
    found = look(tmp_path)
    assert names(found) == []
    assert "is a LoRA adapter: no engine runs it alone" in reasons(found)["0.5b"]


def test_the_beginning_of_a_file_says_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write_gguf(folder / "alpaca-lora-7b-Q4_0.gguf", {"general.architecture": "llama", "general.type": "model"})
    write_adapter(folder / "mystyle.gguf")
    write_imatrix(folder / "numbers.gguf")
    write_gguf(folder / "words.gguf", {"general.architecture": "llama", "general.type": "model"}, ())
    write_gguf(folder / "flux.gguf", {"general.architecture": "flux"})
    write(folder / "mtp-Qwen3.6-27B-Q8_0.gguf")
    write(folder / "sight/seer-Q4_0.gguf")
    write_projector(folder / "sight/seer-eyes.gguf")
    found = look(tmp_path, folder)
    assert sorted(names(found)) == ["alpaca-lora-7b:Q4_0", "seer:Q4_0"]
    assert roles(get(found, "seer:Q4_0")) == [("weights", "seer-Q4_0.gguf"), ("projector", "seer-eyes.gguf")]
    stated = reasons(found)
    assert stated["mystyle.gguf"].startswith("is a LoRA adapter: no engine runs it alone; name it with ADAPTER")
    assert stated["numbers.gguf"].startswith("is an importance matrix (imatrix): no engine runs it alone")
    assert stated["words.gguf"].startswith("is a vocabulary without weights: no engine runs it alone")
    assert stated["flux.gguf"].startswith("is an image generation model: no engine here runs it")
    assert stated["mtp-Qwen3.6-27B-Q8_0.gguf"].startswith("is a draft head for speculative decoding")
    assert len(stated) == 5


@pytest.mark.parametrize("says", ["../../secret.rkllm", "/etc/passwd", "", "other.rkllm"])
def test_from_in_rkllamas_modelfile_leads_nowhere_else(tmp_path: Path, says: str) -> None:
    write(tmp_path / "RKLLAMA/secret.rkllm", bytes(64))
    rkllama_model(tmp_path / "RKLLAMA/models/mine", f"FROM={says}\n")
    found = look(tmp_path)
    assert names(found) == ["mine:latest"]
    assert found.manifests[0].files[0].name == "Qwen2.5-1.5B-rk3588-w8a8.rkllm"


def test_from_that_leaves_open_which_model(tmp_path: Path) -> None:
    rkllama_model(tmp_path / "RKLLAMA/models/mine", "FROM=neither.rkllm\n")
    write(tmp_path / "RKLLAMA/models/mine/Other-w4a16.rkllm", bytes(64))
    found = look(tmp_path)
    assert names(found) == []
    assert "is none of the 2 models in its folder" in reasons(found)["mine"]


@given(st.text(max_size=200))
def test_any_dotenv_is_read(text: str) -> None:
    assert all(key == key.upper() for key in read_dotenv(text))


def test_a_hostile_dotenv_takes_no_long_time() -> None:
    began = time.process_time_ns()
    for text in ('A="\\' * 20_000, "A='\n" * 20_000, " " * 200_000, "A=" * 100_000, 'A="' + "x\\" * 100_000):
        read_dotenv(text)
    assert time.process_time_ns() - began < 3e9


def test_a_folder_of_the_settings(tmp_path: Path) -> None:
    folder = tmp_path / "my models"
    write(folder / "Qwen2.5-0.5B-Instruct-Q4_K_M.gguf")
    write(folder / "deep/er/tinyllama-1.1b-chat-v1.0.Q8_0.gguf")
    write(folder / "deep/er/tinyllama-1.1b-chat-v1.0.Q8_0-lora.gguf")
    write(folder / "plain.gguf")
    write(folder / ".hidden/secret.gguf")
    write(folder / "llama/ggml-vocab-bert.gguf")
    write(folder / "qwen/imatrix.gguf")
    write(folder / "eyes/mmproj-f16.gguf")
    write(folder / "notes.txt", "no model")
    found = look(tmp_path, folder)
    assert sorted(names(found)) == [*("Qwen2.5-0.5B-Instruct:Q4_K_M", "plain:latest", "tinyllama-1.1b-chat-v1.0:Q8_0")]
    assert ("adapter", "tinyllama-1.1b-chat-v1.0.Q8_0-lora.gguf") in roles(get(found, "tinyllama-1.1b-chat-v1.0:Q8_0"))
    assert set(reasons(found)) == {"ggml-vocab-bert.gguf", "imatrix.gguf", "mmproj-f16.gguf"}


def test_a_named_folder_may_be_another_programs(tmp_path: Path) -> None:
    ollama_model(tmp_path / "usb/ollama")
    hub_file(tmp_path / "usb/hub", "user/repo", "model-Q4_0.gguf")
    rkllama_model(tmp_path / "usb/rk/qwen", "FROM=Qwen2.5-1.5B-rk3588-w8a8.rkllm")
    found = look(tmp_path, *(tmp_path / "usb" / each for each in ("ollama", "hub", "rk")))
    assert names(found) == ["qwen2.5:0.5b", "hf.co/user/repo:Q4_0", "qwen:latest"]
    assert {model.source for model in found.models} == {"folder"}


def test_an_encoder_belongs_to_the_model_of_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    for name in (
        "Qwen2-VL-2B-Q4_0.gguf",
        "Qwen2-VL-2B-Q8_0.gguf",
        "gemma-3-1b-Q4_0.gguf",
        "mmproj-Qwen2-VL-2B-f16.gguf",
    ):
        write(folder / name, GGUF + name.encode())
    found = look(tmp_path, folder)
    with_eyes = {str(each.name) for each in found.manifests if each.of_role("projector")}
    assert with_eyes == {"Qwen2-VL-2B:Q4_0", "Qwen2-VL-2B:Q8_0"}


def test_a_projector_is_not_given_to_a_model_whose_name_is_the_beginning_of_anothers(tmp_path: Path) -> None:
    """llama.cpp refuses to load a model with another's projector."""
    for name in ("qwen2-Q4_0", "qwen2-vl-Q4_0", "qwen2-vl-Q8_0", "gemma-Q4_0", "mmproj-Qwen2-VL-F16", "mmproj-other"):
        write(tmp_path / f"m/{name}.gguf")
    found = look(tmp_path, tmp_path / "m")
    sees = {str(each.name) for each in found.manifests if each.of_role("projector")}
    assert sees == {"qwen2-vl:Q4_0", "qwen2-vl:Q8_0"}
    assert reasons(found).keys() == {"mmproj-other.gguf"}


def test_many_projectors_take_no_long_time(tmp_path: Path) -> None:
    for number in range(400):
        write(tmp_path / f"m/model{number}-Q4_0.gguf", GGUF)
        write(tmp_path / f"m/mmproj-model{number}.gguf", GGUF)
    began = time.process_time_ns()
    found = look(tmp_path, tmp_path / "m")
    assert all(len(each.of_role("projector")) == 1 for each in found.manifests)
    assert time.process_time_ns() - began < 5e9  # 0.2 s on an idle machine, and 30 s where each is compared with each


def test_links_are_followed_only_within_a_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "m", tmp_path / "outside"
    write(outside / "secret-Q4_0.gguf")
    write(outside / "tokenizer/tokenizer.json", "{}")
    write(folder / "kept/real-Q4_0.gguf")
    write(folder / "npu/model-w8a8.rkllm", bytes(64))
    (folder / "inside-Q8_0.gguf").symlink_to(folder / "kept/real-Q4_0.gguf")
    (folder / "leaves-Q4_0.gguf").symlink_to(outside / "secret-Q4_0.gguf")
    (folder / "leaves").symlink_to(outside)
    (folder / "npu/tokenizer").symlink_to(outside / "tokenizer")
    (folder / "circle").symlink_to(folder)
    (folder / "round-Q4_0.gguf").symlink_to(folder / "round-Q4_0.gguf")
    os.mkfifo(folder / "pipe-Q4_0.gguf")
    found = look(tmp_path, folder)
    assert sorted(names(found)) == ["inside:Q8_0", "model:w8a8", "real:Q4_0"]
    assert get(found, "model:w8a8").of_role("tokenizer") == ()
    said = reasons(found)
    assert said["leaves-Q4_0.gguf"] == f"is a link that leaves {folder}; trilithon adopt '{outside}'"
    assert said["tokenizer"] == f"is a link that leaves {folder}; trilithon adopt '{outside / 'tokenizer'}'"
    assert said["pipe-Q4_0.gguf"] == "is not a plain file"
    assert "round-Q4_0.gguf" in said


def test_ollamas_blobs_elsewhere_are_not_read(tmp_path: Path) -> None:
    ollama_model(tmp_path / "disk")
    store = tmp_path / ".ollama/models"
    store.mkdir(parents=True)
    (store / "manifests").symlink_to(tmp_path / "disk/manifests")
    (store / "blobs").symlink_to(tmp_path / "disk/blobs")
    found = look(tmp_path)
    assert names(found) == []
    assert (
        reasons(found)["manifests"] == f"is a link that leaves {store}; trilithon adopt '{tmp_path / 'disk/manifests'}'"
    )


def test_one_name_in_two_places_is_said(tmp_path: Path) -> None:
    ollama_model(tmp_path / ".ollama/models")
    twin = write(tmp_path / "m/qwen2.5/qwen2.5-0.5b.gguf")
    twin.rename(tmp_path / "m/qwen2.5/x.gguf")
    ollama_model(tmp_path / "usb")
    found = look(tmp_path, tmp_path / "usb", tmp_path / "m")
    assert names(found) == ["qwen2.5:0.5b", "x:latest"]
    assert found.models[0].source == "Ollama"
    assert reasons(found)["0.5b"].startswith("qwen2.5:0.5b is already the name of ")


def test_a_folder_inside_another_is_looked_into_once(tmp_path: Path) -> None:
    write(tmp_path / "m/sub/x-Q4_0.gguf")
    ollama_model(tmp_path / "m/ollama")
    found = look(tmp_path, tmp_path / "m", tmp_path / "m/sub", tmp_path / "m/ollama")
    assert sorted(names(found)) == ["qwen2.5:0.5b", "x:Q4_0"]
    assert found.skipped == ()


def test_trilithons_own_folders_are_not_adopted(tmp_path: Path) -> None:
    write(tmp_path / "data/models/links/x/model-Q4_0.gguf")
    write(tmp_path / "cache/x-Q4_0.gguf")
    write(tmp_path / "mine-Q4_0.gguf")
    assert names(look(tmp_path, tmp_path)) == ["mine:Q4_0"]


def test_a_named_folder_that_is_gone(tmp_path: Path) -> None:
    found = look(tmp_path, tmp_path / "usb")
    assert reasons(found) == {"usb": f"is not a folder; trilithon adopt --forget '{tmp_path / 'usb'}'"}


def test_a_folder_that_may_not_be_read() -> None:
    with tempfile.TemporaryDirectory() as made, as_nobody(Path(made)):
        folder = Path(made) / "m"
        write(folder / "closed/x-Q4_0.gguf")
        write(folder / "open-Q4_0.gguf")
        (folder / "closed").chmod(0)
        found = look(Path(made), folder)
        (folder / "closed").chmod(0o755)
    assert names(found) == ["open:Q4_0"]
    assert reasons(found)["closed"] == "cannot be read: Permission denied; check its permissions (ls -ld)"


def test_what_nobody_may_look_into_is_as_good_as_not_there() -> None:
    """The home of Ollama's own user is closed to others on many systems."""
    with tempfile.TemporaryDirectory() as made:
        ollama_model(Path(made) / "system/usr/share/ollama/.ollama/models")
        (Path(made) / "system/usr/share/ollama").chmod(0o700)
        (Path(made) / "mine").mkdir()
        closed = write(Path(made) / "closed/manifests/x").parent.parent
        closed.chmod(0o700)
        if os.geteuid() == 0:
            os.chown(Path(made) / "mine", 65534, 65534)
        with as_nobody(Path(made)):
            write(Path(made) / "mine/x-Q4_0.gguf")
            hub_file(Path(made) / ".cache/huggingface/hub", "user/repo", "x-Q4_0.gguf")
            (Path(made) / ".cache/huggingface/hub/models--user--repo/snapshots").chmod(0o600)
            found = look(Path(made), Path(made) / "mine", closed, closed / "blobs")
            (Path(made) / ".cache/huggingface/hub/models--user--repo/snapshots").chmod(0o700)
            with pytest.raises(ModelError, match="is not a folder; name one that has models"):
                remember_folder(Configuration(data=Path(made) / "data", cache=Path(made)), closed / "manifests/x")
    assert names(found) == ["x:Q4_0"]
    said = [each.reason for each in found.skipped]
    if os.geteuid() == 0:
        assert len([each for each in said if "Permission denied" in each]) == 3
        assert any("trilithon adopt --forget" in each for each in said)


def test_synthetic_weights_are_known_by_their_beginning(tmp_path: Path, tiny: Path) -> None:
    """Whatever their file is called, and whoever keeps them."""
    model = find_architecture("qwen2.5-0.5b")
    small = replace(model, layers=1, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=1000)
    made = write_synthetic(plan_synthetic(small), tmp_path / "s.gguf").read_bytes()
    write(tmp_path / "m/plain-F16.gguf", tiny.read_bytes())
    write(tmp_path / "m/named-synthetic-F16.gguf", tiny.read_bytes())
    write(tmp_path / "m/mine-F16.gguf", made)
    ollama_model(tmp_path / ".ollama/models", model=made)
    hub_file(tmp_path / ".cache/huggingface/hub", "user/repo", "x-F16.gguf", made)
    found = look(tmp_path, tmp_path / "m")
    assert {str(each.name): each.synthetic for each in found.manifests} == {
        "qwen2.5:0.5b": True,
        "hf.co/user/repo:F16": True,
        "mine:F16": True,
        "named-synthetic:F16": False,
        "plain:F16": False,
    }


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Root reads everything: for once be somebody else, to whom the folder belongs."""
    if os.geteuid() != 0:
        yield
        return
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["layers", "config", "digest", "size", "mediaType"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=50)
@given(JSON, JSON)
def test_any_json_of_ollamas_is_used_or_passed_over(manifest: object, small: object) -> None:
    with tempfile.TemporaryDirectory() as made:
        store = Path(made) / ".ollama/models"
        ollama_model(store, params=json.dumps(small).encode(), messages=json.dumps(small).encode())
        write(store / "manifests/registry.ollama.ai/library/x/any", json.dumps(manifest))
        found = look(Path(made))
        assert len(found.models) + len({each.path for each in found.skipped}) >= 2
        assert all("\n" not in each.reason for each in found.skipped)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=40)
@given(st.lists(NAMES | st.sampled_from(["..", "-", "a-Q4_0", "mmproj", "lora", "x-00001-of-00002"]), max_size=4))
def test_any_names_of_files_and_folders(parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as made:
        for place in ("m", ".lmstudio/models", "RKLLAMA/models"):
            folder = (Path(made) / place).joinpath(*(part for part in parts if part not in (".", "..")))
            for suffix in (".gguf", ".rkllm", "-w8a8.rkllm"):
                write(folder / f"{parts[0] if parts else 'x'}{suffix}")
        for model in look(Path(made), Path(made) / "m").models:
            assert parse_reference(str(model.manifest.name))
            for file in model.manifest.files:
                assert file.path is not None
                assert file.path.resolve().is_relative_to(Path(made).resolve())
                assert file.size_bytes == file.path.stat().st_size


# Nothing changes, nothing is slow


def picture(root: Path) -> dict[str, object]:
    """Everything in it: kind, content, times, owner and mode."""
    seen: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        seen[str(path)] = (content, status.st_mtime_ns, status.st_mode, status.st_ino)
    return seen


def test_nothing_of_anothers_is_changed(tmp_path: Path, tiny: Path) -> None:
    ollama_model(tmp_path / "theirs/.ollama/models", model=tiny.read_bytes())
    hub_file(tmp_path / "theirs/.cache/huggingface/hub", "user/repo", "model-Q4_0.gguf", tiny.read_bytes())
    rkllama_model(tmp_path / "theirs/RKLLAMA/models/x", "FROM=x.rkllm")
    write(tmp_path / "theirs/.lmstudio/models/a/b/c-Q4_0.gguf", tiny.read_bytes())
    before = picture(tmp_path / "theirs")
    configuration = Configuration(data=tmp_path / "data", cache=tmp_path / "cache", models=(tmp_path / "theirs",))
    found = find_adopted(configuration, {"HOME": str(tmp_path / "theirs")}, tmp_path)
    assert len(found.models) == 4
    for model in found.models:
        file = model.manifest.files[0]
        if file.format == "gguf":
            assert file.path is not None
            assert read_model_file(file.path, tmp_path / "cache").architecture == "llama"
        with pytest.raises(ModelError, match="remove it with that program"):
            found.refuse_removal(model.manifest.name)
    assert picture(tmp_path / "theirs") == before


def test_more_than_a_thousand_models_are_all_found(tmp_path: Path) -> None:
    store, cache = tmp_path / ".ollama/models", tmp_path / ".cache/huggingface/hub"
    one = ollama_model(store, params={"seed": 1}, template=b"{{ .Prompt }}").read_bytes()
    for number in range(999):
        write(store / f"manifests/registry.ollama.ai/library/m{number}/1b", one)
    assert len(look(tmp_path).models) == 1000
    for number in range(300):
        hub_file(cache, f"user/r{number}", "model-Q4_0.gguf", GGUF + str(number).encode())
        write(tmp_path / f"m/d{number}/x{number}-Q4_0.gguf")
    assert len(look(tmp_path, tmp_path / "m", OLLAMA_MODELS=tmp_path / "none").models) == 1600


# Names and folders that are remembered


@given(st.text(max_size=120))
def test_any_text_becomes_a_part_of_a_name(text: str) -> None:
    part = name_part(text)
    assert str(parse_reference(f"x:{part}")) == f"x:{part}"
    assert str(getattr(parse_reference(f"a/b/{part}:t"), "model", part)) == part


def test_folders_are_remembered_and_forgotten(tmp_path: Path) -> None:
    configuration = Configuration(data=tmp_path / "data", cache=tmp_path / "cache")
    assert adopted_folders(configuration) == ()
    write(tmp_path / "m/x-Q4_0.gguf")
    assert remember_folder(configuration, tmp_path / "m")
    assert not remember_folder(configuration, tmp_path / "m")
    assert adopted_folders(configuration) == (tmp_path / "m",)
    assert names(find_adopted(configuration, {"HOME": str(tmp_path / "h")}, tmp_path / "s")) == ["x:Q4_0"]
    forget_folder(configuration, tmp_path / "m")
    assert adopted_folders(configuration) == ()
    with pytest.raises(ModelError, match="was not adopted; adopted folders: none"):
        forget_folder(configuration, tmp_path / "m")
    with pytest.raises(ModelError, match="is not a folder"):
        remember_folder(configuration, tmp_path / "nowhere")
    with pytest.raises(ModelError, match="Trilithon's own store"):
        remember_folder(configuration, tmp_path / "data/models")


@pytest.mark.parametrize("content", [b"{", b"{}", b"[1]", b'["\\u0000"]', b"[" * 100_000])
def test_a_damaged_list_of_folders(tmp_path: Path, content: bytes) -> None:
    configuration = Configuration(data=tmp_path / "data", cache=tmp_path / "cache")
    write(tmp_path / "data/models/adopted.json", content)
    with pytest.raises(ModelError, match=r"adopted.json is damaged .*; remove it, and adopt the folders again"):
        adopted_folders(configuration)
