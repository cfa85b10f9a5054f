"""Pulling from Hugging Face, by its own library from a stand-in hub: choice, tokens, shards, tokenizers, errors."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from standin_hub import HubRepository, HubStandIn
from standin_web import Content, Fault, WebStandIn

from trilithon.errors import DownloadError, ModelError
from trilithon.models.fetch.choose import Target
from trilithon.models.fetch.download import Download
from trilithon.models.fetch.download_list import PullOptions
from trilithon.models.fetch.http_client import RetryPolicy
from trilithon.models.fetch.pull import Pulled, PullStep, pull
from trilithon.models.names import parse_reference
from trilithon.models.store.model_store import ModelStore
from trilithon.models.store.resolve import locate

QUICK = Download(retry=RetryPolicy(attempts=3, first_wait_seconds=0.01, longest_wait_seconds=0.02, silence_seconds=2))
RK3588 = Target(chip="RK3588", memory_bytes=16 << 30)


def weights(seed: int, length: int = 40_000) -> bytes:
    return b"GGUF" + random.Random(seed).randbytes(length)


TOKENIZER = json.dumps({"model": "x" * 3000}).encode()
CONFIG = b'{"chat_template": "{{ messages }}"}'
TOKENIZERS = {"tokenizer.json": TOKENIZER, "tokenizer_config.json": CONFIG, "config.json": b"{}", "a.safetensors": b"w"}


@pytest.fixture
def storage() -> Iterator[WebStandIn]:
    with WebStandIn() as server:
        server.fault = lambda asked: Fault(status=400) if "authorization" in asked.headers else None
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    with ModelStore(tmp_path / "models") as opened:
        yield opened


def fetch(store: ModelStore, text: str, wanted: Target = RK3588) -> Pulled:
    reference = parse_reference(text)
    wanted = Target(chip=wanted.chip, memory_bytes=wanted.memory_bytes, quantization=getattr(reference, "choice", ""))
    return pull(reference, store, PullOptions(target=wanted, transfer=QUICK), lambda _: None)


def test_a_gguf_chosen_by_the_board(hub: HubStandIn, store: ModelStore) -> None:
    files = {"m-Q4_K_M.gguf": weights(1), "m-Q8_0.gguf": weights(2), "mmproj-F16.gguf": weights(3), "README.md": b"#"}
    hub.repositories["some.one/M-GGUF"] = HubRepository(files)
    pulled = fetch(store, "hf.co/some.one/M-GGUF")
    assert str(pulled.manifest.name) == "hf.co/some-one/M-GGUF:latest"
    assert [(file.role, file.name, file.quantization) for file in pulled.manifest.files] == [
        ("weights", "m-Q4_K_M.gguf", "Q4_K_M"),
        ("projector", "mmproj-F16.gguf", "F16"),
    ]
    assert pulled.why == "Q4_K_M: small, with a quality near the original"
    assert pulled.manifest.source == "hf.co/some.one/M-GGUF at c0ffee000000"
    for file in pulled.manifest.files:
        assert store.file_path(file).read_bytes() == files[file.name]
    assert pulled.fetched_bytes == sum(file.size_bytes for file in pulled.manifest.files)


def test_once_is_enough(hub: HubStandIn, storage: WebStandIn, store: ModelStore) -> None:
    hub.repositories["u/M"] = HubRepository({"m-Q4_K_M.gguf": weights(1)})
    fetch(store, "hf.co/u/M")
    came = storage.sent_bytes
    pulled = fetch(store, "https://huggingface.co/u/M")
    assert pulled.fetched_bytes == 0
    assert storage.sent_bytes == came


def test_the_choice_becomes_the_tag(hub: HubStandIn, store: ModelStore) -> None:
    hub.repositories["u/M"] = HubRepository({"m-Q4_K_M.gguf": weights(1), "m-Q8_0.gguf": weights(2)})
    pulled = fetch(store, "hf.co/u/M:Q8_0")
    assert str(pulled.manifest.name) == "hf.co/u/M:Q8_0"
    assert pulled.manifest.files[0].name == "m-Q8_0.gguf"


def test_shards_belong_together(hub: HubStandIn, store: ModelStore) -> None:
    files = {f"Q6_K/big-Q6_K-0000{number}-of-00003.gguf": weights(number) for number in (1, 2, 3)}
    hub.repositories["u/Big"] = HubRepository(files)
    pulled = fetch(store, "hf.co/u/Big")
    assert [file.name for file in pulled.manifest.files] == [path.partition("/")[2] for path in files]


@pytest.mark.parametrize("base", ["maker/Base", ["maker/Base"]])
def test_an_rkllm_file_gets_its_tokenizer_from_the_base_model(
    hub: HubStandIn, store: ModelStore, base: str | list[str]
) -> None:
    hub.repositories["maker/Base"] = HubRepository(TOKENIZERS)
    files = {"M-rk3588-w8a8.rkllm": weights(1), "M-rk3576-w4a16.rkllm": weights(2), "enc-rk3588.rknn": weights(3)}
    hub.repositories["u/M-rkllm"] = HubRepository(files, base_model=base)
    pulled = fetch(store, "hf.co/u/M-rkllm")
    assert [(file.role, file.name, file.target_platform) for file in pulled.manifest.files] == [
        ("weights", "M-rk3588-w8a8.rkllm", "RK3588"),
        ("vision", "enc-rk3588.rknn", "RK3588"),
        ("tokenizer", "tokenizer.json", ""),
        ("tokenizer", "tokenizer_config.json", ""),
        ("tokenizer", "config.json", ""),
    ]
    assert store.file_path(pulled.manifest.files[3]).read_bytes() == CONFIG
    assert pulled.notes == ()


def test_the_tokenizer_is_fetched_once(hub: HubStandIn, store: ModelStore) -> None:
    hub.repositories["maker/Base"] = HubRepository(TOKENIZERS)
    for chip, wanted in (("rk3588", RK3588), ("rk3576", Target(chip="RK3576"))):
        hub.repositories[f"u/M-{chip}"] = HubRepository({f"M-{chip}-w8a8.rkllm": weights(1)}, base_model="maker/Base")
        fetch(store, f"hf.co/u/M-{chip}", wanted)
    fetched = [path for path in hub.paths() if path.startswith("/maker/Base/resolve") and path.endswith("_config.json")]
    assert len(fetched) == 1


def test_a_base_of_a_base(hub: HubStandIn, store: ModelStore) -> None:
    hub.repositories["maker/Base"] = HubRepository(TOKENIZERS)
    hub.repositories["tuner/Tuned"] = HubRepository({"adapter.bin": b"x"}, base_model="maker/Base")
    hub.repositories["u/M"] = HubRepository({"M-rk3588-w8a8.rkllm": weights(1)}, base_model="tuner/Tuned")
    assert fetch(store, "hf.co/u/M").manifest.of_role("tokenizer")


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (None, "there is no tokenizer.json and its card names no base_model: chat uses the runtime's own template"),
        (
            "maker/Gated",
            "without its tokenizer, chat uses the runtime's own template: maker/Gated has restricted access",
        ),
        ("maker/Gone", "there is no repository maker/Gone"),
        ("u/M", "there is no tokenizer.json"),
        ("../../etc", "there is no tokenizer.json"),
    ],
)
def test_without_a_tokenizer_the_model_is_still_fetched(
    hub: HubStandIn, store: ModelStore, base: str | None, words: str
) -> None:
    hub.repositories["maker/Gated"] = HubRepository(TOKENIZERS, gated=True)
    hub.repositories["u/M"] = HubRepository({"M-rk3588-w8a8.rkllm": weights(1)}, base_model=base)
    hub.token = "wanted"
    pulled = fetch(store, "hf.co/u/M")
    assert [file.role for file in pulled.manifest.files] == ["weights"]
    assert len(pulled.notes) == 1
    assert words in pulled.notes[0]


def test_a_token_is_sent_to_the_hub_alone(
    hub: HubStandIn, storage: WebStandIn, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["u/M"] = HubRepository({"m-Q4_K_M.gguf": weights(1)}, private=True)
    hub.token = "secret"
    with pytest.raises(
        ModelError, match=r"there is no repository u/M on 127.0.0.1:\d+; check its name, if it is private"
    ):
        fetch(store, "hf.co/u/M")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert fetch(store, "hf.co/u/M").fetched_bytes > 0
    assert {asked.headers.get("authorization") for asked in storage.asked} == {None}


def test_terms_that_are_not_accepted(hub: HubStandIn, store: ModelStore) -> None:
    hub.repositories["u/M"] = HubRepository({"m-Q4_K_M.gguf": weights(1)}, gated=True)
    hub.token = "wanted"
    with pytest.raises(ModelError, match=r"u/M has restricted access: accept its terms at http://.*/u/M, then log in"):
        fetch(store, "hf.co/u/M")


def test_no_such_repository(hub: HubStandIn, store: ModelStore) -> None:
    with pytest.raises(ModelError, match="there is no repository u/Nothing on 127"):
        fetch(store, "hf.co/u/Nothing")


def test_a_hub_that_is_busy(hub: HubStandIn, store: ModelStore) -> None:
    hub.repositories["u/M"] = HubRepository({"m-Q4_K_M.gguf": weights(1)})
    hub.fault = lambda asked: Fault(status=503 if asked.number == 1 else 429) if asked.number < 3 else None
    assert fetch(store, "hf.co/u/M").fetched_bytes > 0
    hub.fault = lambda _: Fault(status=500)
    with pytest.raises(DownloadError, match=r"does not answer in 3 tries: status 500; try again, or set HF_ENDPOINT"):
        fetch(store, "hf.co/u/M")


def test_a_hub_that_asks_to_wait_for_hours(hub: HubStandIn, store: ModelStore) -> None:
    hub.fault = lambda _: Fault(status=429, headers={"Retry-After": "7200"})
    with pytest.raises(DownloadError, match=r"asks to wait 2:00:00 \(status 429\); run the same command again then"):
        fetch(store, "hf.co/u/M")
    assert len(hub.asked) == 1


def test_a_mirror_that_is_none(hub: HubStandIn, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("/api/models/u/M", b"<html>")
    hub.respond = lambda asked: hub.files.get(asked.path)  # type: ignore[method-assign]
    with pytest.raises(DownloadError, match="does not answer with a list of files; check HF_ENDPOINT"):
        fetch(store, "hf.co/u/M")
    with WebStandIn() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    with pytest.raises(DownloadError, match="does not answer in 3 tries"):
        fetch(store, "hf.co/u/M")


@pytest.mark.parametrize(
    "answer",
    [
        "[]",
        "[" * 100_000,
        '{"id": "u/M", "siblings": "abc"}',
        '{"id": "u/M", "siblings": [{"rfilename": 5}]}',
        '{"id": "u/M", "siblings": [{"rfilename": "m-Q4_K_M.gguf", "size": "x"}]}',
        '{"id": "u/M", "siblings": [{"rfilename": "m-Q4_K_M.gguf", "size": -5}]}',
        '{"id": "u/M", "siblings": [{"rfilename": "m-Q4_K_M.gguf", "size": 1e400}]}',
        '{"id": "u/M", "siblings": [{"rfilename": "m-Q4_K_M.gguf", "blobId": 7}]}',
        '{"id": "u/M", "siblings": [{"rfilename": "m-Q4_K_M.gguf", "lfs": {"size": 5, "sha256": "../x"}}]}',
        '{"id": "u/M", "sha": 5, "siblings": []}',
        '{"id": "u/M", "sha": "../../x", "siblings": []}',
    ],
)
def test_a_mirror_that_answers_anything(hub: HubStandIn, store: ModelStore, answer: str) -> None:
    hub.respond = lambda _: Content(data=answer.encode())  # type: ignore[method-assign]
    with pytest.raises(DownloadError, match="does not answer with a list of files; check HF_ENDPOINT"):
        fetch(store, "hf.co/u/M")
    assert not store.local.root.exists()


def test_a_card_that_is_none_is_no_hindrance(hub: HubStandIn, store: ModelStore) -> None:
    hub.respond = lambda _: Content(data=b'{"id": "u/M", "siblings": [], "cardData": "x"}')  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="u/M has no GGUF or RKLLM file"):
        fetch(store, "hf.co/u/M")


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("hf-mirror.com", "is not a URL of a file; write https://HOST/FILE"),
        ("ftp://127.0.0.1", "is not a URL of a file; write https://HOST/FILE"),
        ("http://[::1", "is not a URL of a file"),
        (
            "http://127.0.0.1.evil.invalid",
            "plain http is not protected against changes; write https, or add --insecure",
        ),
    ],
)
def test_a_mirror_is_looked_at_before_it_is_told_the_token(
    hub: HubStandIn, store: ModelStore, monkeypatch: pytest.MonkeyPatch, endpoint: str, words: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", "secret")
    with pytest.raises(ModelError, match=f"^HF_ENDPOINT: .*{words}"):
        fetch(store, "hf.co/u/M")


def test_a_token_that_is_none(hub: HubStandIn, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("sécret", "sec\x07ret"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(ModelError, match="the token of Hugging Face has invalid characters") as caught:
            fetch(store, "hf.co/u/M")
        assert token not in str(caught.value)
    assert hub.asked == []


def test_the_list_of_files_is_not_asked_of_others_with_the_token(
    hub: HubStandIn, storage: WebStandIn, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.fault = lambda asked: Fault(status=302, headers={"Location": storage.url + asked.path})
    with pytest.raises(DownloadError):
        fetch(store, "hf.co/u/M")
    assert {asked.headers.get("authorization") for asked in hub.asked} == {"Bearer secret"}
    assert {asked.headers.get("authorization") for asked in storage.asked} == {None}


RK3576 = Target(chip="RK3576", chip_by_name=True)


def test_two_chips_are_one_model(hub: HubStandIn, store: ModelStore) -> None:
    files = {"M-rk3588-w8a8.rkllm": weights(1), "M-rk3576-w4a16.rkllm": weights(2), **TOKENIZERS}
    hub.repositories["u/M"] = HubRepository(files)
    fetch(store, "hf.co/u/M")
    pulled = fetch(store, "hf.co/u/M", RK3576)
    texts = ["tokenizer.json", "tokenizer_config.json", "config.json"]
    assert [file.name for file in pulled.manifest.files] == ["M-rk3576-w4a16.rkllm", *texts, "M-rk3588-w8a8.rkllm"]
    assert pulled.notes == ("M-rk3588-w8a8.rkllm is kept too, for RK3588",)
    assert pulled.fetched_bytes == len(files["M-rk3576-w4a16.rkllm"])
    for chip in ("RK3588", "RK3576"):
        path = locate("hf.co/u/M", store, lambda file, chip=chip: file.target_platform == chip)  # type: ignore[misc]
        assert path.read_bytes() == files[path.name]
        assert chip.lower() in path.name
        assert sorted(each.name for each in path.parent.iterdir()) == sorted([path.name, *texts])
    assert fetch(store, "hf.co/u/M").fetched_bytes == 0
    assert len(store.get(pulled.manifest.name).of_role("weights")) == 2
    store.remove(pulled.manifest.name)
    assert not list(store.local.root.rglob("blobs/*"))


def test_two_processes_pull_for_two_chips(hub: HubStandIn, tmp_path: Path) -> None:
    files = {f"rk{chip}/model.rkllm": weights(chip, 400_000) for chip in (3588, 3576)}
    hub.repositories["u/M"] = HubRepository(files)

    def one(wanted: Target) -> None:
        with ModelStore(tmp_path / "models") as mine:
            fetch(mine, "hf.co/u/M", wanted)

    with ThreadPoolExecutor() as both:
        list(both.map(one, (RK3588, RK3576)))
    with ModelStore(tmp_path / "models") as store:
        found = store.list()[0].of_role("weights")
        assert {file.target_platform for file in found} == {"RK3588", "RK3576"}
        assert {store.file_path(file).read_bytes() for file in found} == set(files.values())
        assert len({file.name for file in found}) == 2


def test_a_file_that_went_missing_does_not_stay(hub: HubStandIn, store: ModelStore) -> None:
    hub.repositories["u/M"] = HubRepository({"M-rk3588.rkllm": weights(1), "M-rk3576.rkllm": weights(2)})
    store.blob_path(fetch(store, "hf.co/u/M").manifest.files[0].digest).unlink()
    assert [file.name for file in fetch(store, "hf.co/u/M", RK3576).manifest.files] == ["M-rk3576.rkllm"]


def test_a_wrong_sum_and_a_wrong_length(hub: HubStandIn, store: ModelStore) -> None:
    hub.repositories["u/M"] = HubRepository({"m-Q4_K_M.gguf": weights(1)}, sums={"m-Q4_K_M.gguf": "0" * 64})
    words = r"^m-Q4_K_M.gguf: its SHA-256 is [0-9a-f]{64} and should be 0{64}; pull it again"
    with pytest.raises(ModelError, match=words):
        fetch(store, "hf.co/u/M")
    hub.repositories["u/L"] = HubRepository({"m-Q4_K_M.gguf": weights(1)}, sizes={"m-Q4_K_M.gguf": 7})
    with pytest.raises(ModelError, match="has 40004 bytes and should have 7"):
        fetch(store, "hf.co/u/L")
    assert store.list() == ()
    assert not list(store.local.root.rglob("blobs/*"))


def test_a_small_file_with_a_wrong_sum(hub: HubStandIn, store: ModelStore) -> None:
    hub.repositories["u/M"] = HubRepository({"M-rk3588-w8a8.rkllm": weights(1), **TOKENIZERS})
    hub.fault = lambda asked: Fault(spoil=True) if asked.path.endswith("tokenizer_config.json") else None
    with pytest.raises(DownloadError, match=r"tokenizer_config.json from http://127\.0\.0\.1:.* has a wrong checksum"):
        fetch(store, "hf.co/u/M")


def test_too_large_for_the_disk(hub: HubStandIn, storage: WebStandIn, store: ModelStore) -> None:
    hub.repositories["u/M"] = HubRepository({"m-Q4_K_M.gguf": weights(1)}, sizes={"m-Q4_K_M.gguf": 1 << 60})
    with pytest.raises(ModelError, match=r"are needed in .*, .* are free; remove a model"):
        fetch(store, "hf.co/u/M", Target(chip="x"))
    assert storage.asked == []


def test_names_of_files_stay_in_the_store(hub: HubStandIn, store: ModelStore, tmp_path: Path) -> None:
    hub.repositories["u/M"] = HubRepository({"../../../evil-Q4_K_M.gguf": weights(1)})
    try:
        pulled = fetch(store, "hf.co/u/M")
        assert pulled.manifest.files[0].name == "evil-Q4_K_M.gguf"
    except (ModelError, DownloadError) as error:
        assert "\n" not in str(error)
    assert not list(tmp_path.glob("evil*"))


def test_what_is_told(hub: HubStandIn, store: ModelStore) -> None:
    hub.repositories["u/M"] = HubRepository({"m-Q4_K_M.gguf": weights(1, 3_000_000)})
    steps: list[PullStep] = []
    options = PullOptions(target=RK3588, transfer=QUICK)
    pull(parse_reference("hf.co/u/M"), store, options, steps.append)
    assert list(dict.fromkeys(step.stage for step in steps)) == ["looking", "chosen", "fetching", "checking", "keeping"]
    last = [step for step in steps if step.stage == "fetching"][-1]
    assert (last.number, last.count, last.text) == (1, 1, "m-Q4_K_M.gguf")
    assert last.progress is not None
    assert last.progress.done_bytes == last.progress.total_bytes == 3_000_004
