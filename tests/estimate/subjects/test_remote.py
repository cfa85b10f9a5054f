"""Models on servers: their sizes by range requests, from config.json, and by the name where no server answers."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter
from standin_hub import HubRepository, HubStandIn
from standin_registry import RegistryStandIn
from standin_web import Fault, WebStandIn

from trilithon.cli.main import run
from trilithon.errors import ModelError, UserError
from trilithon.estimate.answer import Subject
from trilithon.estimate.subjects import remote
from trilithon.estimate.subjects.configuration import size_of_configuration
from trilithon.estimate.subjects.subject import subject_of
from trilithon.models.fetch.choose import Target
from trilithon.models.fetch.reachable import is_reachable
from trilithon.models.files.gguf import read_gguf
from trilithon.models.store.model_store import ModelStore
from trilithon.models.synthetic.architectures import architectures
from trilithon.models.synthetic.true_size import plan_synthetic

RK3588 = Target(chip="RK3588")
# Qwen2.5-1.5B-Instruct: huggingface.co/Qwen/Qwen2.5-1.5B-Instruct/blob/main/config.json
QWEN = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than that to connect to itself."""
    monkeypatch.setattr(remote, "_CONNECT_SECONDS", 30.0)


@pytest.fixture
def storage() -> Iterator[WebStandIn]:
    with WebStandIn() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    with ModelStore(tmp_path / "models") as opened:
        yield opened


def asked(text: str, store: ModelStore, target: Target = RK3588) -> Subject:
    return subject_of(text, store, lambda: target)


def test_of_a_url_only_the_header_is_read(storage: WebStandIn, store: ModelStore) -> None:
    """A vocabulary of 262,144 tokens before 240 MB of weights: the header comes in several ranges."""
    planned = plan_synthetic(architectures()["gemma3-270m"], "Q4_0")
    content = planned.head.ljust(planned.size_bytes, b"\0")
    url = storage.put("/gemma-3-270m-it-Q4_0.gguf", content, etag="")
    subject = asked(url, store)
    assert (subject.size.key, subject.size.layers, subject.quantization) == ("gemma-3-270m", 18, "Q4_0")
    assert subject.weights is not None
    assert subject.weights.held == pytest.approx(planned.size_bytes - len(planned.head), rel=1e-4)
    assert len(planned.head) <= storage.sent_bytes < len(planned.head) + (5 << 20)
    assert len(storage.asked) > 1


def test_a_repository_has_the_sizes_of_the_file_that_would_be_pulled(
    hub: HubStandIn, store: ModelStore, tiny: Path
) -> None:
    facts = read_gguf(tiny)
    files = {"m-Q4_K_M.gguf": tiny.read_bytes(), "m-Q8_0.gguf": b"GGUF" + bytes(9000), "mmproj-F16.gguf": bytes(9000)}
    hub.repositories["u/M-7B-GGUF"] = HubRepository(files)
    subject = asked("hf.co/u/M-7B-GGUF", store)
    assert subject.size.parameters == facts.parameters
    assert subject.reference == "hf.co/u/M-7B-GGUF"
    assert subject.sizes_from == "sizes from the header of the GGUF on the server"
    guessed = asked("hf.co/u/M-7B-GGUF:Q8_0", store, Target(chip="RK3588", quantization="Q8_0"))
    assert guessed.size.parameters == 7e9
    assert guessed.sizes_from is not None and "big-endian GGUF" in guessed.sizes_from


@pytest.mark.parametrize("place", ["itself", "base model"])
def test_a_converted_model_has_the_sizes_of_its_configuration(hub: HubStandIn, store: ModelStore, place: str) -> None:
    configuration = {"config.json": json.dumps(QWEN).encode(), "tokenizer.json": b"{}"}
    files = {"custom-rk3588-w8a8.rkllm": b"x" * 5000}
    hub.repositories["u/custom-rkllm"] = HubRepository(
        files | (configuration if place == "itself" else {}), base_model="maker/Original"
    )
    hub.repositories["maker/Original"] = HubRepository(configuration)
    subject = asked("hf.co/u/custom-rkllm", store)
    assert (subject.size.layers, subject.size.kv, subject.size.embedding) == (28, 512, 1536)
    # published: 1.54 billion (qwenlm.github.io/blog/qwen2.5-llm)
    assert subject.size.parameters == pytest.approx(1.54e9, rel=0.005)
    assert (subject.converted, subject.quantization) == (True, "w8a8")
    assert subject.size.window_layers == 0


def test_a_repository_that_is_not_converted_is_known_by_its_configuration(hub: HubStandIn, store: ModelStore) -> None:
    hub.repositories["maker/Original"] = HubRepository(
        {"config.json": json.dumps(QWEN).encode(), "model.safetensors": b"x"}
    )
    subject = asked("hf.co/maker/Original", store)
    assert (subject.size.layers, subject.converted, subject.quantization) == (28, False, None)


def test_embeddings_are_tied_where_the_configuration_does_not_say() -> None:
    """transformers writes no value that is its default."""
    left_out = {name: value for name, value in QWEN.items() if name != "tie_word_embeddings"}
    assert size_of_configuration(left_out, "custom") == size_of_configuration(QWEN, "custom")
    untied = size_of_configuration(QWEN | {"tie_word_embeddings": False}, "custom")
    assert untied is not None and not untied.tied


def test_one_part_of_a_model_is_not_taken_for_all(storage: WebStandIn, store: ModelStore, tiny: Path) -> None:
    part = tiny.with_name("part.gguf")
    reader = GGUFReader(tiny)
    writer = GGUFWriter(part, "llama")
    writer.add_block_count(1)
    writer.add_uint16("split.count", 3)
    writer.add_uint16("split.no", 0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    url = storage.put("/thing-00001-of-00003.gguf", part.read_bytes())
    with pytest.raises(ModelError, match=r"thing-00001-of-00003\.gguf is one of 3 parts"):
        asked(url, store)


@pytest.mark.parametrize("text", [b"[]", b"{", b"{}", json.dumps(QWEN | {"hidden_size": -1}).encode()])
def test_a_configuration_without_sizes(hub: HubStandIn, store: ModelStore, text: bytes) -> None:
    hub.repositories["u/custom-rkllm"] = HubRepository({"m-rk3588-w8a8.rkllm": b"x", "config.json": text})
    with pytest.raises(ModelError, match=r"config.json states no sizes|only"):
        asked("hf.co/u/custom-rkllm", store)


def test_a_registry_has_the_sizes_of_its_blob(store: ModelStore, storage: WebStandIn, tiny: Path) -> None:
    with RegistryStandIn(storage) as registry:
        layers: list[tuple[str, bytes | str]] = [("model", tiny.read_bytes()), ("license", "MIT")]
        registry.add("library/odd", "7b", layers, {"file_type": "F16"})
        name = f"{registry.host}/library/odd:7b"
        subject = asked(name, store)
        assert subject.size.parameters == read_gguf(tiny).parameters
        assert subject.reference == name
        storage.fault = lambda seen: Fault(status=500)
        fallback = asked(name, store)
    assert fallback.size.parameters == 7e9
    assert fallback.sizes_from is not None and "status 500" in fallback.sizes_from


def test_a_server_without_ranges(storage: WebStandIn, store: ModelStore, tiny: Path) -> None:
    url = storage.put("/tiny.gguf", tiny.read_bytes(), ranges=False)
    with pytest.raises(UserError, match="sends no parts of files"):
        asked(url, store)


def test_what_the_server_does_not_have(hub: HubStandIn, store: ModelStore) -> None:
    """A model that the table has is estimated all the same; of another one the server's answer is the error."""
    subject = asked("hf.co/nobody/Qwen2.5-1.5B-Instruct-GGUF", store)
    assert subject.size.key == "qwen2-1.5b"
    assert subject.sizes_from is not None and "there is no repository" in subject.sizes_from
    with pytest.raises(ModelError, match="there is no repository"):
        asked("hf.co/nobody/Thing", store)


@pytest.mark.parametrize("text", ["qwen2.5-1.5b", "my-model-3b"])
def test_a_plain_name_asks_no_server(text: str, store: ModelStore) -> None:
    def target() -> Target:
        raise AssertionError

    assert subject_of(text, store, target).sizes_from is None


def test_without_a_network_the_table_answers_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, store: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
        assert run(["estimate", "hf.co/Qwen/Qwen2.5-1.5B-Instruct-GGUF", "--chip", "rk3588", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["model"] == "qwen2-1.5b"
        assert answer["sizes_from"] == f"{address} cannot be reached; check the network: sizes by the name"
        assert run(["estimate", "hf.co/u/Thing", "--chip", "rk3588"]) == 2
        assert "cannot be reached" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_not_waited_for() -> None:
    """A queue of connections that is full answers nothing, as a firewall that drops packets."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(8)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(full.getsockname())
        start = time.monotonic()
        assert not is_reachable(f"http://127.0.0.1:{full.getsockname()[1]}", 0.2)
        assert time.monotonic() - start < 60  # the kernel itself gives up after two minutes
        for connection in waiting:
            connection.close()


@pytest.mark.parametrize("address", ["https://h:99999/m.gguf", "https://a:b/c/d", "http://[::1/m.gguf"])
def test_no_address_is_not_reachable(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    assert not is_reachable(address, 0.2)
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTPS_PROXY", address)
    assert not is_reachable("https://hub.invalid", 0.2)


def test_a_proxy_is_asked_in_place_of_the_host(storage: WebStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy", "no_proxy", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", storage.url)
    assert is_reachable("https://hub.invalid", 2)
    monkeypatch.setenv("NO_PROXY", "example.org, .invalid")
    assert not is_reachable("https://hub.invalid", 2)
