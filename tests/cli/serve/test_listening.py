"""Sockets of a server: taken, free, handed over by systemd; and systemd's datagrams."""

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trilithon.cli.serve import listening
from trilithon.cli.serve.listening import activated_sockets, listen, listen_unix, notify, url_of
from trilithon.errors import UserError


@contextlib.contextmanager
def listening_at(host: str, port: int = 0) -> Iterator[list[socket.socket]]:
    opened = listen(host, port)
    try:
        yield opened
    finally:
        for each in opened:
            each.close()


def test_a_free_port_and_its_url() -> None:
    with listening_at("127.0.0.1") as (opened,):
        port = opened.getsockname()[1]
        assert url_of(opened) == f"http://127.0.0.1:{port}"
        assert url_of(opened, tls=True) == f"https://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()


def test_all_addresses_are_one_port_and_shown_as_the_nearest() -> None:
    with listening_at("") as opened:
        assert len({each.getsockname()[1] for each in opened}) == 1
        assert {url_of(each).rpartition(":")[0] for each in opened} <= {"http://127.0.0.1", "http://[::1]"}


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("nowhere.invalid", "--host nowhere.invalid: .*; write an address of this machine"),
        ("192.0.2.7", "this machine has no address 192.0.2.7; choose one of: ip -brief addr"),
        ("a" * 70 + ".example", "write an address of this machine"),
    ],
)
def test_addresses_that_are_not_ours(host: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        listen(host, 0)


def test_a_port_in_use_is_one_line() -> None:
    with listening_at("127.0.0.1") as (opened,):
        port = opened.getsockname()[1]
        with pytest.raises(UserError) as caught:
            listen("127.0.0.1", port)
    assert str(caught.value) == (
        f"another program already listens at 127.0.0.1, port {port}; choose another port with --port, "
        "or find it: ss -ltnp"
    )


@pytest.mark.parametrize(("says", "named"), [(b"Ollama is running", True), (b"something else", False), (b"", False)])
def test_ollama_is_told_from_others(monkeypatch: pytest.MonkeyPatch, says: bytes, named: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(listening, "OLLAMAS_PORT", port)

        def answer() -> None:
            client, _ = other.accept()
            with client:
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(says), says))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError) as caught:
            listen("127.0.0.1", port)
        thread.join()
    assert ("systemctl stop ollama" in str(caught.value)) == named


def test_a_unix_socket_is_for_owner_and_group_and_a_dead_ones_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "wire"
    with listen_unix(path) as first:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert url_of(first) == f"unix:{path}"
        with pytest.raises(UserError, match="a server already listens there"):
            listen_unix(path)
    # The file of the closed one was left.
    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_unix_paths_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path, message in (
        (tmp_path / "file", "not a socket"),
        (tmp_path / "none" / "wire", "No such file or directory"),
        (tmp_path / ("long" * 30), "107 bytes at most"),
    ):
        with pytest.raises(UserError, match=message):
            listen_unix(path)
    assert (tmp_path / "file").read_text() == "precious"


ACTIVATED = """
import os, socket, sys
from trilithon.cli.serve.listening import activated_sockets
os.environ["LISTEN_PID"] = sys.argv[1].replace("own", str(os.getpid()))
found = activated_sockets()
left = [name for name in os.environ if name.startswith("LISTEN_")]
print([(each.getsockname()[1], each.get_inheritable()) for each in found], left)
"""


def activated(process: str, count: str) -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        os.set_inheritable(made.fileno(), True)
        code = f"import os; os.dup2({made.fileno()}, 3)\n{ACTIVATED}"
        done = subprocess.run(
            [sys.executable, "-c", code, process],
            pass_fds=(made.fileno(),),
            env=os.environ | {"LISTEN_FDS": count, "LISTEN_FDNAMES": "web"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip(), made.getsockname()[1]


def test_systemds_sockets_are_taken_and_children_do_not_see_them() -> None:
    said, port = activated("own", "1")
    assert said == f"[({port}, False)] []"


@pytest.mark.parametrize(("process", "count"), [("1", "1"), ("own", "0"), ("own", "many"), ("", "1")])
def test_what_was_meant_for_another_process_is_left(process: str, count: str) -> None:
    assert activated(process, count)[0] == "[] []"


def test_a_descriptor_that_is_no_socket() -> None:
    code = (
        "import os\nos.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
        "os.dup2(os.open('/dev/null', os.O_RDONLY), 3)\n"
        "from trilithon.cli.serve.listening import activated_sockets\nactivated_sockets()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UserError: systemd handed over descriptor 3, which is not a socket" in done.stderr


def test_without_systemd_there_is_nothing() -> None:
    assert activated_sockets({}) == []
    notify("READY=1", {})


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"@trilithon-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        notify("READY=1", {"NOTIFY_SOCKET": name})
        assert systemd.recv(100) == b"READY=1"
    notify("STOPPING=1", {"NOTIFY_SOCKET": name})  # it is gone, and that is no reason to fail
