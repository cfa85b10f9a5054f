"""`trilithon fleet serve`: the gateway as a process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trilithon.cli.output import say, shown
from trilithon.errors import UserError
from trilithon.language import Message

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from socket import socket

    from trilithon.fleet.gateway import Gateway

__all__ = ["serve_command"]

_PORT = 11436
_STOPPED = 130
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=_PORT, show_default=True, help="The port; 0 takes a free one."
)
@click.option("--no-key", is_flag=True, help="Disable authentication.")
@click.option("--tls-cert", type=_FILE, help="Serve HTTPS with this certificate (PEM).")
@click.option("--tls-key", type=_FILE, help="The private key of the certificate (PEM).")
@click.option("--drain", "drain_text", default="30s", show_default=True, help="How long answers may run at the end.")
def serve_command(
    host: str, port: int, no_key: bool, tls_cert: Path | None, tls_key: Path | None, drain_text: str
) -> None:
    """Serve the boards' models at one address, with HAProxy.

    Clients show keys of this machine (trilithon key add NAME), boards get their own. Ctrl-C or SIGTERM waits for
    running answers; a second one stops at once."""
    import logging
    import sys

    from trilithon.fleet.boards import named_boards
    from trilithon.fleet.gateway import Gateway, GatewayTimes, client_keys
    from trilithon.fleet.haproxy import Door, find_haproxy
    from trilithon.settings import load_configuration
    from trilithon.units import parse_duration

    if (tls_cert is None) != (tls_key is None):
        raise UserError("--tls-cert and --tls-key go together; give both")
    configuration = load_configuration()
    known = named_boards(configuration)
    times = GatewayTimes(drain_seconds=parse_duration(drain_text, name="--drain"))
    program = find_haproxy()
    _require_safe_bind(host, has_keys=bool(client_keys(configuration)), no_key=no_key)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    with _listening(host, port) as sockets, _folder() as folder:
        door = Door(
            descriptors=tuple(listener.fileno() for listener in sockets),
            certificate=_joined(folder, tls_cert, tls_key),
            no_key=no_key,
        )
        gateway = Gateway(configuration, folder, program, door, times)
        _run(gateway, sockets, len(known), tls=tls_cert is not None)


def _run(gateway: "Gateway", sockets: "list[socket]", boards: int, *, tls: bool) -> None:
    import asyncio
    import signal

    from trilithon.cli.serve.listening import notify, url_of

    async def run() -> None:
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def end() -> None:
            if ending.is_set():
                task.cancel()
            ending.set()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
                loop.add_signal_handler(number, end)
        async with gateway.running() as feeding:
            url = url_of(sockets[0], tls=tls)
            models = {model.name for state in gateway.states.values() for model in state.models}
            text = Message(
                "the gateway serves {models} of {boards} at {url}",
                models=Message("{count} model", plural="{count} models", count=len(models)),
                boards=Message("{count} board", plural="{count} boards", count=boards),
                url=url,
            )
            say(shown(text), err=True)
            say(f"OLLAMA_HOST={url} OPENAI_BASE_URL={url}/v1 ANTHROPIC_BASE_URL={url}", err=True)
            notify("READY=1")
            stopping = asyncio.create_task(ending.wait())
            await asyncio.wait({feeding, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            notify("STOPPING=1")
            if feeding.done():
                feeding.result()

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        raise SystemExit(_STOPPED) from None


def _require_safe_bind(host: str, *, has_keys: bool, no_key: bool) -> None:
    from trilithon.fleet.boards import is_loopback

    if not (has_keys or no_key or is_loopback(host)):
        raise UserError(
            "{host} is reachable from other machines without authentication; create a key with `trilithon key add "
            "NAME`, or disable authentication with --no-key",
            host=host or "0.0.0.0",
        )


@contextlib.contextmanager
def _listening(host: str, port: int) -> "Iterator[list[socket]]":
    from trilithon.cli.serve.listening import listen

    sockets = listen(host, port)
    try:
        yield sockets
    finally:
        for listener in sockets:
            listener.close()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Private, and with a short path: sockets have 107 bytes."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="trilithon-fleet-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _joined(folder: Path, certificate: Path | None, private_key: Path | None) -> Path | None:
    """The one file that HAProxy reads."""
    from trilithon.files import replace_file

    if certificate is None or private_key is None:
        return None
    path = folder / "door.pem"
    replace_file(path, certificate.read_bytes() + b"\n" + private_key.read_bytes(), mode=0o600)
    return path
