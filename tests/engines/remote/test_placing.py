"""What a placement that is an address means: which server answers there, and which of its models."""

import http.server
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from standin_servers import StandInServer, serving

from trilithon.board.snapshot import read_board
from trilithon.engines.base import Build, Placement, Settings
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.placing import Need, place, refuse_server
from trilithon.engines.remote.asking import ask_server
from trilithon.engines.remote.placing import is_elsewhere
from trilithon.engines.table import ENGINES, engine, named_only_engines
from trilithon.errors import PlacementError
from trilithon.models.files.model_file import ModelFile, read_model_file
from trilithon.settings import Configuration


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> ModelFile:
    return read_model_file(tiny, tmp_path)


def placed(text: str, file: ModelFile, name: str = "qwen2.5:1.5b", context: int = 4096) -> Placement:
    configuration = Configuration(data=file.path.parent, cache=file.path.parent)
    need = Need(names=(name,), context=context)
    return place(parse_placement(text), {}, need, [file], read_board(), configuration)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("http://127.0.0.1:11434", {"address": "http://127.0.0.1:11434"}),
        (" HTTPS://Board.local/v1/ ", {"address": "https://Board.local"}),
        ("http://[::1]:8080/ollama/", {"address": "http://[::1]:8080/ollama"}),
        ("http://a:1#qwen2.5:1.5b", {"address": "http://a:1", "model": "qwen2.5:1.5b"}),
        ("http://a:1#model=a,b,key=MY_KEY", {"address": "http://a:1", "model": "a,b", "key": "MY_KEY"}),
        ("http://a:1#hf.co/x/y:Q4_K_M,key=K", {"address": "http://a:1", "model": "hf.co/x/y:Q4_K_M", "key": "K"}),
    ],
)
def test_an_address_is_a_placement(text: str, options: dict[str, str]) -> None:
    spec = parse_placement(text)
    assert (spec.engine, spec.unit, spec.options) == ("http", "server", options)
    assert spec.name == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "http://",
        "http:///x",
        "http://a:99999",
        "http://a:x",
        "http://a b",
        "http://a?key=1",
        "http:a",
        "https://[::1",
        "http://a#model=",
        "http://a#model=x,model=y",
        "http://a#key=",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(PlacementError, match="write "):
        parse_placement(text)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(PlacementError, match="TRILITHON_SERVER_KEY") as caught:
        parse_placement("http://me:secret@board:8080")
    assert "secret" not in str(caught.value)


def test_it_is_no_half_of_a_handover() -> None:
    for text in ("llama.cpp/cpu+http://a:1", "http://a:1+llama.cpp/cpu"):
        with pytest.raises(PlacementError):
            parse_placement(text)


def test_the_engine_is_in_no_list() -> None:
    assert "http" not in ENGINES
    assert "http" in named_only_engines()
    assert engine("http", Configuration(data=Path(), cache=Path())).builds() == []


def test_it_is_never_served_from() -> None:
    with pytest.raises(PlacementError, match="measured, and not served from"):
        refuse_server(parse_placement("http://127.0.0.1:11434"))


@pytest.mark.parametrize("api", ["Ollama", "RKLLAMA", "OpenAI API"])
def test_the_api_is_known_by_asking(api: str, file: ModelFile) -> None:
    with serving(StandInServer(api)) as server:
        answers = ask_server(server.address)
        assert (answers.api, [model.name for model in answers.models]) == (api, ["qwen2.5:1.5b"])
        placement = placed(server.address, file)
    assert placement.build.name == api.replace(" ", "-")
    assert placement.unit == "server"
    assert placement.file.name == file.name, "one family with the file here"
    assert placement.file.sha256 != file.sha256, "and not the same file by its hash"
    assert placement.file.quantization == ("unknown quantization" if api == "OpenAI API" else "Q8_0")


MODELS = {"qwen2.5:1.5b": "Q4_K_M", "llama3.2:latest": "Q8_0", "gemma3:270m": "F16"}


@pytest.mark.parametrize(
    ("fragment", "name", "meant"),
    [
        ("", "qwen2.5:1.5b", "qwen2.5:1.5b"),
        ("", "Qwen2.5-1.5B.gguf", "qwen2.5:1.5b"),
        ("", "llama3.2", "llama3.2:latest"),
        ("#gemma3:270m", "qwen2.5:1.5b", "gemma3:270m"),
        ("#model=GEMMA3:270m", "other", "gemma3:270m"),
    ],
)
def test_the_model_is_the_one_of_that_name(fragment: str, name: str, meant: str, file: ModelFile) -> None:
    with serving(StandInServer("Ollama", models=MODELS)) as server:
        placement = placed(server.address + fragment, file, name)
    assert dict(placement.settings.options)["model"] == meant
    assert placement.file.quantization == MODELS[meant]


@pytest.mark.parametrize(("fragment", "missing"), [("", "mistral"), ("#phi3", "phi3")])
def test_a_model_that_is_absent_is_told_with_those_that_there_are(fragment: str, missing: str, file: ModelFile) -> None:
    with serving(StandInServer("Ollama", models=MODELS)) as server, pytest.raises(PlacementError) as caught:
        placed(server.address + fragment, file, "mistral")
    assert f"no model {missing}; write #MODEL after the address; it has {', '.join(MODELS)}" in str(caught.value)


def test_a_server_without_models(file: ModelFile) -> None:
    with serving(StandInServer("Ollama", models={})) as server, pytest.raises(PlacementError, match="load one there"):
        placed(server.address, file)


def test_the_only_model_of_a_server_that_has_many_is_not_taken_for_another(file: ModelFile) -> None:
    with serving(StandInServer("Ollama", models={"other": ""})) as server, pytest.raises(PlacementError, match="other"):
        placed(server.address, file)


def test_a_longer_context_is_asked_for_and_recorded(file: ModelFile) -> None:
    with serving(StandInServer("Ollama")) as server:
        assert "context" not in dict(placed(server.address, file).settings.options)
        assert dict(placed(server.address, file, context=9000).settings.options)["context"] == "9000"


def test_no_server_is_one_line_with_the_fix(file: ModelFile) -> None:
    with serving(StandInServer("Ollama")) as server:
        address = server.address
    with pytest.raises(PlacementError, match=f"no server answers at {address}: .*; start it, or leave") as caught:
        placed(address, file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://a..b", "http://-ö-.x"])
def test_a_name_that_no_host_can_have_is_one_line(address: str, file: ModelFile) -> None:
    with pytest.raises(PlacementError, match=f"no server answers at {address}: "):
        placed(address, file)


@pytest.mark.parametrize("status", [b"200 OK", b"500 Error"])
def test_json_that_is_too_deep_is_no_answer(status: bytes, file: ModelFile) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.0 %b\r\n\r\n" % status + b"[" * 200_000)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with pytest.raises(PlacementError, match=r"the API of neither|is not ready"):
            placed(f"http://127.0.0.1:{server.server_port}", file)
        server.shutdown()


def test_settings_of_the_campaign_cannot_be_set_through_http(file: ModelFile) -> None:
    configuration = Configuration(data=file.path.parent, cache=file.path.parent)
    with pytest.raises(PlacementError, match=r"llama\.cpp/cpu:t=4"):
        place(parse_placement("http://127.0.0.1:9"), {"t": "4"}, Need(), [file], read_board(), configuration)


def test_a_key_comes_from_the_environment(file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(StandInServer("OpenAI API", key="abc")) as server:
        with pytest.raises(PlacementError, match=r"\(401\): no such key; .* TRILITHON_SERVER_KEY"):
            placed(server.address, file)
        with pytest.raises(PlacementError, match="BOARD_KEY: this environment variable is not set"):
            placed(f"{server.address}#key=BOARD_KEY", file)
        monkeypatch.setenv("TRILITHON_SERVER_KEY", "abc")
        placed(server.address, file)
        monkeypatch.setenv("TRILITHON_SERVER_KEY", "wrong")
        monkeypatch.setenv("BOARD_KEY", "abc")
        placement = placed(f"{server.address}#key=BOARD_KEY", file)
    assert "abc" not in repr(placement), "a key is never stored"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>", "neither llama-server, Ollama nor OpenAI"),
        (200, b"[1]", "neither llama-server, Ollama nor OpenAI"),
        (404, b"", "neither llama-server, Ollama nor OpenAI"),
        (503, b'{"error":{"message":"Loading model"}}', r"is not ready \(503\): Loading model"),
        (500, b"\x1b[2J\n", r"is not ready \(500\): \[2J; "),
        (403, b"", r"refuses the request \(403\): no reason given"),
    ],
)
def test_another_server_is_told_from_one_that_can_be_measured(status: int, body: bytes, said: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with pytest.raises(PlacementError, match=said):
            ask_server(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


@pytest.mark.parametrize(
    ("address", "elsewhere"),
    [
        ("http://127.0.0.1:1", False),
        ("http://127.8.0.1:1", False),
        ("http://[::1]:1", False),
        ("http://localhost", False),
        ("http://192.168.1.2:1", True),
        ("https://board.local", True),
        ("http://localhost.example.org", True),
    ],
)
def test_the_sensors_of_this_machine_are_not_anothers(address: str, elsewhere: bool, file: ModelFile) -> None:
    build = Build(engine="http", name="Ollama", version="1", units=("server",), features=frozenset(), where=address)
    placement = Placement(name="p", file=file, build=build, unit="server", settings=Settings())
    assert is_elsewhere(placement) is elsewhere
    assert not is_elsewhere(replace(placement, unit="cpu"))


def test_servers_are_equal_whatever_the_way_there_took() -> None:
    with serving(StandInServer("Ollama")) as server:
        one = ask_server(server.address)
    assert one == replace(one, round_trip_seconds=9.0)
