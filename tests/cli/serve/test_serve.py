"""`trilithon serve` as a process: what it says, how it ends, who gets in, and where it listens."""

import contextlib
import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from process_table import children_of, goes

from trilithon.board.processors import Cluster
from trilithon.board.snapshot import read_board
from trilithon.board.tuning.pinning import open_files
from trilithon.cli.serve.process import keep_off_the_models_cpus
from trilithon.runtime import process as process_module

Program = Callable[..., Any]
Serving = Callable[..., Any]

SLOW = ("--placement", "scripted/cpu:decode=80")
ENDLESS = ("--placement", "scripted/cpu:decode=2")
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


def client(served: Any) -> httpx.Client:
    return httpx.Client(base_url=served.url, timeout=60, trust_env=False)


@contextlib.contextmanager
def answering(served: Any) -> Iterator[Iterator[str]]:
    """The lines of an answer that has begun."""
    with client(served) as http, http.stream("POST", "/api/chat", json=QUESTION) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert "content" in next(lines)
        yield lines


def workspaces(pid: int) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"trilithon-{pid}-*"))


@pytest.mark.slow
def test_it_says_where_and_what_to_paste_and_sigterm_ends_it_with_0(serving: Serving, tiny: Path) -> None:
    served = serving(tiny, *SLOW)
    assert served.said("in a browser").splitlines() == [
        f"Trilithon 0.1.0 serves 1 model at {served.url}",
        f"for clients: OLLAMA_HOST={served.url} OPENAI_BASE_URL={served.url}/v1 ANTHROPIC_BASE_URL={served.url}",
        f"for trilithon run, ps and stop: TRILITHON_HOST={served.url}",
        f"in a browser: {served.url}/",
    ]
    with client(served) as http:
        assert http.get("/api/version").json()["version"]
    (folder,) = workspaces(served.process.pid)
    served.process.send_signal(signal.SIGTERM)
    assert served.ended() == 0
    assert not folder.exists()
    assert served.errors.count("\n") == 4


def test_without_models_it_says_how_to_get_one(serving: Serving) -> None:
    served = serving()
    assert "there are no models yet; pull one: trilithon pull" in served.said("for clients")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_answer_at_work_comes_to_its_end(serving: Serving, tiny: Path, number: signal.Signals) -> None:
    served = serving(tiny, *SLOW)
    with answering(served) as lines:
        (child,) = children_of(served.process.pid)
        served.process.send_signal(number)
        last = json.loads(list(lines)[-1])
    assert last["done_reason"] == "stop"
    assert served.ended() == 0
    assert "waiting for running answers: 1; press again to stop at once" in served.errors
    assert goes(child)


@pytest.mark.slow
def test_the_limit_ends_what_takes_longer(serving: Serving, tiny: Path) -> None:
    served = serving(tiny, *ENDLESS, "--drain", "0.3s")
    with answering(served) as lines:
        (child,) = children_of(served.process.pid)
        served.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(httpx.RemoteProtocolError):
            assert '"error"' in list(lines)[-1]
    assert served.ended() == 0
    assert goes(child)


@pytest.mark.slow
def test_it_ends_too_when_nobody_reads_its_stderr(tiny: Path, home: Path) -> None:
    command = [str(Path(sys.executable).with_name("trilithon")), "serve", str(tiny), *SLOW, "--port", "0", "--no-pages"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            url = re.search(r" at (\S+)", process.stderr.readline())[1]  # type: ignore[index] # its first line
            with httpx.stream("POST", f"{url}/api/chat", json=QUESTION, timeout=60, trust_env=False) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.stderr.close()
                process.send_signal(signal.SIGTERM)
                assert json.loads(list(lines)[-1])["done_reason"] == "stop"
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once_and_leaves_nothing(serving: Serving, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "wire"
    served = serving(tiny, *ENDLESS, "--unix", path)
    assert served.url.startswith("http://")
    (folder,) = workspaces(served.process.pid)
    with pytest.raises(httpx.RemoteProtocolError), answering(served) as lines:
        (child,) = children_of(served.process.pid)
        served.process.send_signal(signal.SIGTERM)
        served.said("press again to stop at once")
        served.process.send_signal(signal.SIGTERM)
        list(lines)
    assert served.ended() == 130
    assert goes(child)
    assert not folder.exists()
    assert not path.exists()


@pytest.mark.slow
def test_no_new_clients_while_it_ends(serving: Serving, tiny: Path) -> None:
    served = serving(tiny, *SLOW)
    with answering(served):
        served.process.send_signal(signal.SIGTERM)
        served.said("press again to stop at once")
        with pytest.raises(httpx.ConnectError), client(served) as http:
            for _ in range(100):  # it hears of the signal a moment later
                http.get("/api/version")
                time.sleep(0.02)


def test_a_pinned_model_is_loaded_before_anybody_asks(serving: Serving, tiny: Path) -> None:
    served = serving(tiny, *SLOW, "--pin", "tiny")
    with client(served) as http:
        deadline = time.monotonic() + 30
        while not (found := http.get("/api/ps").json()["models"]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert found[0]["name"] == "tiny:latest"


@pytest.mark.slow
def test_a_unix_socket_alone(serving: Serving, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "wire"
    served = serving(tiny, *SLOW, "--unix", path, port="")
    assert served.url == f"unix:{path}"
    assert f"TRILITHON_HOST=unix:{path}" in served.said("for trilithon run")
    assert "for clients" not in served.errors
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as http:
        assert http.get("/api/version").status_code == 200
    served.process.send_signal(signal.SIGTERM)
    assert served.ended() == 0
    assert not path.exists()


@pytest.mark.slow
def test_systemd_hands_over_a_socket_and_is_told(tiny: Path, tmp_path: Path) -> None:
    started_by = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    program = str(Path(sys.executable).with_name("trilithon"))
    with socket.create_server(("127.0.0.1", 0)) as made, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        port = made.getsockname()[1]
        words = [sys.executable, "-c", started_by, str(made.fileno()), program, "serve", str(tiny), *SLOW]
        environment = os.environ | {"HOME": str(tmp_path), "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(tmp_path / "notify")}
        child = subprocess.Popen(words, pass_fds=(made.fileno(),), stderr=subprocess.DEVNULL, env=environment)
        try:
            assert systemd.recv(100) == b"READY=1"
            assert httpx.get(f"http://127.0.0.1:{port}/api/version", trust_env=False).status_code == 200
            child.send_signal(signal.SIGTERM)
            assert systemd.recv(100) == b"STOPPING=1"
            assert child.wait(60) == 0
        finally:
            child.kill()
            child.wait()


def test_every_request_is_logged_when_asked_for(serving: Serving, tiny: Path) -> None:
    served = serving(tiny, *SLOW, "--verbose")
    with client(served) as http:
        http.get("/api/version")
    text = served.said("/api/version")
    assert '"path": "/api/version"' in text


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """And its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*words, "-addext", "subjectAltName=IP:127.0.0.1"], capture_output=True, check=True)
    return certificate, key


@pytest.mark.slow
def test_a_client_that_is_still_connecting_when_it_ends(
    serving: Serving, tiny: Path, certificate: tuple[Path, Path]
) -> None:
    served = serving(tiny, *ENDLESS, "--tls-cert", certificate[0], "--tls-key", certificate[1])
    trusted = ssl.create_default_context(cafile=str(certificate[0]))
    address = ("127.0.0.1", int(served.url.rpartition(":")[2]))
    with (
        httpx.Client(base_url=served.url, timeout=60, trust_env=False, verify=trusted) as http,
        http.stream("POST", "/api/chat", json=QUESTION) as answer,
        socket.create_connection(address, timeout=10) as late,
    ):
        assert "content" in next(answer.iter_lines())
        served.process.send_signal(signal.SIGTERM)
        served.said("press again to stop at once")
        with pytest.raises(ConnectionRefusedError):
            for _ in range(600):
                socket.create_connection(address, timeout=10).close()
                time.sleep(0.05)
        with trusted.wrap_socket(late, server_hostname="127.0.0.1") as encrypted:
            assert encrypted.recv(1) == b""


@pytest.mark.slow
def test_https(serving: Serving, tiny: Path, certificate: tuple[Path, Path]) -> None:
    served = serving(tiny, *SLOW, "--tls-cert", certificate[0], "--tls-key", certificate[1])
    assert served.url.startswith("https://127.0.0.1:")
    trusted = ssl.create_default_context(cafile=str(certificate[0]))
    assert httpx.get(f"{served.url}/api/version", verify=trusted, trust_env=False).status_code == 200
    asked = [str(Path(sys.executable).with_name("trilithon")), "ps"]
    environment = served.environment | {"TRILITHON_HOST": served.url}
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "set SSL_CERT_FILE to it" in done.stderr) == (1, True), done.stderr
    environment |= {"SSL_CERT_FILE": str(certificate[0])}
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "no model is loaded\n")


@pytest.mark.slow
def test_a_key_lets_in_beyond_this_machine(serving: Serving, tiny: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-twenty-four-chars\n")
    keys.chmod(0o600)
    served = serving(tiny, *SLOW, "--host", "0.0.0.0", "--api-key-file", keys)
    port = served.url.rpartition(":")[2]
    assert f"from other machines: http://{socket.gethostname()}:{port}\n" in served.said("for trilithon run")
    program = str(Path(sys.executable).with_name("trilithon"))
    environment = served.environment | {"TRILITHON_HOST": served.url}
    for key, code, words in (("", 2, "set TRILITHON_API_KEY"), ("a-key-of-twenty-four-chars", 0, "no model is loaded")):
        environment["TRILITHON_API_KEY"] = key
        done = subprocess.run([program, "ps"], env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1)
        assert words in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "0.0.0.0"), "trilithon key add"),
        (("--host", "192.0.2.7", "--no-key"), "this machine has no address 192.0.2.7"),
        (("--unix", "/nowhere/at/all"), "choose a path in a folder that you can write to"),
        (("--tls-cert", __file__), "--tls-cert and --tls-key go together"),
        (("--tls-cert", __file__, "--tls-key", __file__), "both are PEM files"),
        (("--keep-alive", "soon"), "--keep-alive soon: write"),
        (("--drain", "never"), "--drain never: write"),
        (("--memory-budget", "much"), "--memory-budget much: write 4096M"),
        (("--placement", "nonsense"), "write ENGINE/UNIT"),
        (("--placement", "rkllm/npu"), "placement rkllm/npu: librkllmrt.so is missing"),
        (("--placement", "rk-llama.cpp/npu"), "placement rk-llama.cpp/npu: "),
        (("--placement", "llama.cpp@none/cpu"), "there is no such build; there are "),
        (("--placement", "llama.cpp/cpu+llama.cpp/npu"), "there is no such build; there are "),
        (("--pin", "no-such-model"), "no-such-model"),
        (("--port", "70000"), "70000"),
        (("--host-name", "http://x"), "is not a host name"),
        (("none.gguf",), "none.gguf is not a file; write the path of a .gguf"),
        (("none:1b",), "there is no none:1b in the store"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(trilithon: Program, words: tuple[str, ...], message: str) -> None:
    done = trilithon("serve", *(("--port", "0") if "--port" not in words else ()), *words)
    assert done.code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_models_are_named_too(trilithon: Program, serving: Serving, tiny: Path, tmp_path: Path) -> None:
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(f"FROM {tiny}\n")
    assert trilithon("create", "mine", "-f", modelfile).code == 0
    with client(serving("mine", tiny, *SLOW, XDG_DATA_HOME=os.environ["XDG_DATA_HOME"])) as http:
        names = [model["name"] for model in http.get("/api/tags").json()["models"]]
    assert sorted(names) == ["mine:latest", "tiny:latest"]


@pytest.mark.parametrize(
    ("placement", "message"), [("scripted/cpu:t=0", "threads is a number from 1"), ("scripted/cpu:x=1", "x")]
)
def test_a_placement_that_runs_none_of_the_files(trilithon: Program, tiny: Path, placement: str, message: str) -> None:
    done = trilithon("serve", "--port", "0", tiny, "--placement", placement)
    assert (done.code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_a_port_that_is_taken(trilithon: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = trilithon("serve", "--port", other.getsockname()[1])
    assert done.code == 2
    assert done.stderr.startswith("error: another program already listens at 127.0.0.1, port ")
    assert done.stderr.count("\n") == 1


def cluster(*cpus: int, kind: str) -> Cluster:
    some = read_board().clusters[0]
    return dataclasses.replace(some, cpus=cpus, kind=kind)  # type: ignore[arg-type] # one of its words


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a second CPU is missing")
def test_many_clients_need_many_open_files(serving: Serving, tiny: Path) -> None:
    with open_files(1 << 16) as most:
        pass
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        served = serving(tiny, *SLOW)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert served.said("for trilithon run")
    assert resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)[0] >= min(most, 1 << 16)


@pytest.mark.slow
def test_idle_connections_take_no_descriptors_from_others(serving: Serving, tiny: Path) -> None:
    served = serving(tiny, *SLOW)
    assert served.said("for trilithon run")
    host, port = served.url.removeprefix("http://").split(":")
    files = Path(f"/proc/{served.process.pid}/fd")
    with client(served) as http:
        assert http.get("/health").status_code == 200
    before, lines = len(list(files.iterdir())), served.errors.count("\n")
    resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (128, 128))
    with contextlib.ExitStack() as idle:
        for _ in range(300):
            idle.enter_context(socket.create_connection((host, int(port)), timeout=60))
        with client(served) as http:
            assert [http.get("/health").status_code for _ in range(5)] == [200] * 5
            assert http.post("/api/chat", json=QUESTION | {"stream": False}).status_code == 200
        assert len(list(files.iterdir())) < 128
    assert served.errors.count("\n") <= lines + 2
    deadline = time.monotonic() + 60
    while len(list(files.iterdir())) > before + 5 and time.monotonic() < deadline:  # the model, which is loaded now
        time.sleep(0.05)
    assert len(list(files.iterdir())) <= before + 5


def test_the_server_keeps_to_the_little_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_cpus_for_children", frozenset())
    first, *others = sorted(os.sched_getaffinity(0))
    boards = [
        dataclasses.replace(read_board(), clusters=clusters)
        for clusters in (
            (cluster(first, *others, kind="all"),),
            (cluster(*others, kind="big"),),
            (cluster(first, kind="little"), cluster(*others, kind="big")),
        )
    ]
    kept = []

    def in_a_thread() -> None:  # whose CPUs are its own
        for board in boards:
            kept.append((keep_off_the_models_cpus(board), os.sched_getaffinity(0)))  # noqa: PERF401 - in this order

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    everything = {first, *others}
    assert kept == [((), everything), ((), everything), ((first,), {first})]
