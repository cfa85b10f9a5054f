"""The options of `trilithon serve` in config.toml and in the environment, and what a running server takes of them."""

import asyncio
import contextlib
import os
import pty
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from click.core import ParameterSource

from trilithon.cli.serve.reloading import Reloading, renew
from trilithon.cli.serve.serve import serve
from trilithon.cli.serve.settings import RELOADED, VARIABLE, options_of, stated
from trilithon.cli.serve.wanted import Typed, Wanted, wanted
from trilithon.errors import UserError

Serving = Callable[..., Any]
TIMEOUT = 60.0
VALUES: dict[str, tuple[str, Any]] = {
    "host": ('"::1"', "::1"),
    "port": ("8080", 8080),
    "unix": ('"~/wire"', "wire"),
    "api_key_file": ('"~/keys"', "keys"),
    "no_key": ("true", True),
    "cors": ('["https://a.example", "*"]', ("https://a.example", "*")),
    "host_name": ('["rock5.example"]', ("rock5.example",)),
    "trusted_proxy": ('["10.0.0.0/8", "unix"]', ("10.0.0.0/8", "unix")),
    "root_path": ('"/trilithon"', "/trilithon"),
    "tls_cert": ('"~/cert"', "cert"),
    "tls_key": ('"~/key"', "key"),
    "memory_budget": ('"3G"', "3G"),
    "keep_alive": ('"-1"', "-1"),
    "parallel": ("4", 4),
    "context": ("8192", 8192),
    "placement": ('"llama.cpp/cpu:t=4"', "llama.cpp/cpu:t=4"),
    "alias": ('["a=b"]', ("a=b",)),
    "hidden_alias": ('["c=d"]', ("c=d",)),
    "pin": ('["tiny"]', ("tiny",)),
    "requests_per_minute": ("7", 7),
    "allow_image_fetch": ("true", True),
    "response_store": ('"1M"', "1M"),
    "no_pages": ("true", True),
    "drain": ('"5s"', "5s"),
    "verbose": ("true", True),
}
"""A value of each option other than its default, as TOML and as the command gets it."""


@pytest.fixture(autouse=True)
def no_nohup() -> Iterator[None]:
    """The tests may run under nohup, and programs would go on to ignore the signal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def config(home: Path, text: str) -> Path:
    path = home / "config" / "trilithon" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def wishes(*typed: str) -> Wanted:
    context = serve.make_context("serve", list(typed))
    words = dict(context.params)
    names = frozenset(name for name in words if context.get_parameter_source(name) == ParameterSource.COMMANDLINE)
    return wanted(Typed(command=serve, words=words, names=names))


def as_command_gets(home: Path, name: str) -> Any:
    wanted_value = VALUES[name][1]
    return home / wanted_value if name in ("unix", "api_key_file", "tls_cert", "tls_key") else wanted_value


def test_every_option_is_a_setting() -> None:
    assert VALUES.keys() == options_of(serve).keys() - {"help"}


@pytest.mark.parametrize("name", VALUES)
def test_an_option_in_the_file_and_in_the_environment(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("keys", "cert", "key"):
        (home / file).touch()
    path = config(home, f"[serve]\n{name} = {VALUES[name][0]}\n")
    (from_file,) = stated(serve).values()
    assert (from_file.value, from_file.source) == (as_command_gets(home, name), str(path))
    path.unlink()
    text = VALUES[name][0].strip("[]").replace('"', "")
    monkeypatch.setenv(VARIABLE + name.upper(), text)
    (from_variable,) = stated(serve).values()
    assert (from_variable.value, from_variable.source) == (as_command_gets(home, name), VARIABLE + name.upper())


def test_the_order_is_option_variable_file_ollama_default(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wishes().words["port"] == 11435
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:1")
    assert (wishes().words["port"], wishes().words["host"]) == (1, "0.0.0.0")
    config(home, "[serve]\nport = 2\n")
    assert (wishes().words["port"], wishes().words["host"]) == (2, "0.0.0.0")
    monkeypatch.setenv("TRILITHON_SERVE_PORT", "3")
    assert wishes().words["port"] == 3
    assert wishes("--port", "4").words["port"] == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 99999", "serve.port = 99999 does not fit: 99999 is not in the range"),
        ("port = true", "serve.port = True does not fit: write a whole number"),
        ('port = "80"', "write a whole number"),
        ("context = 1", "is not in the range"),
        ("verbose = 1", "serve.verbose = 1 does not fit: write true or false"),
        ("host = 5.5\nhots = 1", "unknown setting serve.hots; did you mean host?"),
        ("host = true", "serve.host = True does not fit: write a text"),
        ("cors = 5", "serve.cors = 5 does not fit: write a list of texts"),
        ("cors = [5]", "write a list of texts"),
        ('cors = ["chat.example"]', "is not an origin"),
        ('host_name = ["https://a"]', "is not a host name"),
        ('trusted_proxy = ["nginx"]', "write the proxy's address"),
        ('root_path = "trilithon"', "write a path such as /trilithon"),
        ('root_path = "/api/x"', "the server has a path of this name"),
        ('alias = ["a"]', "write NAME=MODEL"),
        ('keep_alive = "soon"', "serve.keep_alive = 'soon' does not fit"),
        ('memory_budget = "much"', "does not fit"),
        ('drain = "1 year"', "does not fit"),
        ('response_store = "x"', "does not fit"),
        ('placement = "npu"', "write ENGINE/UNIT"),
        ('tls_cert = "/nowhere.pem"', "does not exist"),
        ('unix = "~nobody_of_this_name/x"', "does not fit"),
    ],
)
def test_a_value_that_does_not_fit_names_its_file(home: Path, text: str, said: str) -> None:
    path = config(home, f"[serve]\n{text}\n")
    with pytest.raises(UserError) as caught:
        stated(serve)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("PORT", "http", "TRILITHON_SERVE_PORT: serve.port = 'http' does not fit"),
        ("HOTS", "1", "TRILITHON_SERVE_HOTS: unknown setting serve.hots"),
        ("VERBOSE", "loud", "TRILITHON_SERVE_VERBOSE: serve.verbose = 'loud' does not fit"),
    ],
)
def test_a_variable_that_does_not_fit(
    home: Path, name: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE + name, text)
    with pytest.raises(UserError) as caught:
        stated(serve)
    assert said in str(caught.value)


def test_a_table_that_is_none(home: Path) -> None:
    config(home, "serve = 5\n")
    with pytest.raises(UserError, match=r"write a table, \[serve\]"):
        stated(serve)


def test_a_bad_setting_ends_the_start_with_one_line(serving: Serving, tmp_path: Path) -> None:
    served = serving(TRILITHON_SERVE_PARALLEL="0")
    assert served.ended() == 2
    assert served.errors.count("\n") == 1
    assert "TRILITHON_SERVE_PARALLEL: serve.parallel = '0' does not fit" in served.errors


@pytest.mark.slow  # a whole server, and seven rounds of signals
def test_sighup_takes_what_it_can_and_says_what_needs_a_restart(serving: Serving, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("")
    served = serving(tiny, "--placement", "scripted/cpu", "--no-pages", TRILITHON_CONFIG=str(path))
    served.said("for clients")
    seen = len(served.errors)

    def reloaded(text: str) -> str:
        nonlocal seen
        path.write_text(text)
        served.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + TIMEOUT
        while not served.errors[seen:].endswith("\n") and time.monotonic() < deadline:
            time.sleep(0.02)
        lines = str(served.errors[seen:])
        seen = len(served.errors)
        return lines

    with httpx.Client(base_url=served.url, timeout=TIMEOUT, trust_env=False) as http:

        def status(path: str = "/api/tags", **headers: str) -> int:
            return http.get(path, headers=headers).status_code

        assert status(host="rock5.example") == 403
        assert status(origin="https://a.example") == 403
        text = '[serve]\nhost_name = ["rock5.example"]\ncors = ["https://a.example"]\nalias = ["other=tiny"]\n'
        said = reloaded(text + "requests_per_minute = 100\nkeep_alive = '1h'\nmemory_budget = '1G'\n")
        changed = "aliases, cors, host_name, keep_alive, memory_budget, requests_per_minute"
        assert said == f"settings read again; changed: {changed}\n"
        assert status(host="rock5.example") == 200
        assert status(origin="https://a.example") == 200
        names = [model["name"] for model in http.get("/api/tags").json()["models"]]
        assert sorted(names) == ["other", "tiny:latest"]
        assert reloaded("[serve]\nport = 1\nparallel = 2\n").endswith(
            "; needs a restart: parallel\n"
        )  # --port was typed
        assert status(host="rock5.example") == 403
        assert "settings read again; changed: nothing; needs a restart: parallel" in reloaded("[serve]\nparallel = 2\n")
        assert reloaded("[serve]\nparallel = 1\n") == "settings read again; changed: nothing\n"
        assert "settings not changed: " in reloaded('[serve]\ncors = ["x"]\n')
        assert "settings not changed: " in reloaded('[serve]\npin = ["no_such_model"]\n')
        assert reloaded('hang_seconds = 9\n[serve]\npin = ["tiny"]\nverbose = true\n').splitlines()[0] == (
            "settings read again; changed: pin, verbose; needs a restart: hang_seconds"
        )
        deadline = time.monotonic() + TIMEOUT
        while not http.get("/api/ps").json()["models"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    served.said('"route": "/api/ps"')
    served.process.send_signal(signal.SIGTERM)
    assert served.ended() == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
def test_a_certificate_that_does_not_fit_leaves_the_old_one_at_work(tmp_path: Path) -> None:
    for name in ("a", "b"):
        words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        words += ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.crt"), "-subj", "/CN=x"]
        subprocess.run(words, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "a.crt", tmp_path / "a.key")
    with pytest.raises(OSError):
        renew(tls, tmp_path / "b.crt", tmp_path / "a.key")
    assert presented(tls) == pem(tmp_path / "a.crt")
    renew(tls, tmp_path / "b.crt", tmp_path / "b.key")
    assert presented(tls) == pem(tmp_path / "b.crt")


def pem(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def presented(tls: ssl.SSLContext) -> bytes | None:
    """The certificate that a client gets, in a handshake without a network."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = trusting.wrap_bio(to_client, to_server), tls.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert(binary_form=True)


def test_signals_in_quick_succession_are_taken_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what was read first may be taken last."""
    at_work = 0

    def slowly(_: Typed) -> Wanted:
        nonlocal at_work
        at_work += 1
        seen.append(at_work)
        time.sleep(0.05)
        at_work -= 1
        raise UserError("unchanged")

    seen: list[int] = []
    lines: list[str] = []
    monkeypatch.setattr("trilithon.cli.serve.reloading.wanted", slowly)
    reloading = Reloading(cast(Any, None), cast(Any, None), cast(Any, None), lines.append)

    async def both() -> None:
        await asyncio.gather(*(reloading.reload(cast(Any, None), None) for _ in range(2)))

    asyncio.run(both())
    assert seen == [1, 1]
    assert lines == ["settings not changed: unchanged"] * 2


def test_the_reloaded_ones_are_options() -> None:
    assert options_of(serve).keys() >= RELOADED


def test_a_closed_terminal_ends_the_server(tiny: Path, home: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        words = ["trilithon", "serve", str(tiny), "--placement", "scripted/cpu", "--port", "0", "--no-pages"]
        os.execv(Path(sys.executable).with_name("trilithon"), words)
    try:
        said = b""
        while b"for clients" not in said:
            said += os.read(terminal, 4096)
        os.kill(pid, signal.SIGHUP)
        while b"settings read again" not in said:
            said += os.read(terminal, 4096)
        os.close(terminal)
        deadline = time.monotonic() + TIMEOUT
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    assert os.waitstatus_to_exitcode(ended[1]) == 0
