"""`trilithon serve`: options and greeting; the process is in cli.serve.process, the answers are in trilithon.serve."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from trilithon.cli.models.absent import YES
from trilithon.cli.models.commands import complete_model, complete_model_or_file, files_among
from trilithon.cli.output import fit_for
from trilithon.cli.words import complete_placement
from trilithon.packages import install_line

# Anything heavier is imported when the command runs: `trilithon --help` has to answer within 0.2 s.
if TYPE_CHECKING:
    from socket import socket

    from trilithon.board.snapshot import Board
    from trilithon.cli.serve.wanted import Typed, Wanted
    from trilithon.serve.service import Service
    from trilithon.settings import Configuration
    from trilithon.web.context import AppContext

__all__ = ["serve"]

_PORT = 11435
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("serve")
@click.argument("files", nargs=-1, metavar="[MODELS]...", shell_complete=complete_model_or_file)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=_PORT, show_default=True, help="The port; 0 takes a free one."
)
@click.option(
    "--unix", type=click.Path(path_type=Path), help="Listen on a Unix socket, and on no port unless --port is given."
)
@click.option("--api-key-file", type=_FILE, help="More API keys, one per line, besides those of trilithon key.")
@click.option("--no-key", is_flag=True, help="Disable authentication.")
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="Allow browser requests from ORIGIN: https://chat.example, or *."
)
@click.option(
    "--host-name", "host_names", multiple=True, metavar="NAME", help="Accept another host name for this machine."
)
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="ADDRESS",
    help="Believe X-Forwarded-For and -Proto of this reverse proxy: an address, a network, or unix.",
)
@click.option(
    "--root-path", default="", metavar="PATH", help="The path of pages and API at the reverse proxy: /trilithon."
)
@click.option("--tls-cert", type=_FILE, help="Serve HTTPS with this certificate (PEM).")
@click.option("--tls-key", type=_FILE, help="The private key of the certificate (PEM).")
@click.option(
    "--memory-budget", metavar="SIZE", help="Memory for all models: 6G. [default: free memory, less a reserve]"
)
@click.option(
    "--keep-alive", default="5m", show_default=True, help="Unload an idle model after this time; -1 for never."
)
@click.option(
    "--parallel", type=click.IntRange(1, 64), default=1, show_default=True, help="Parallel requests per model."
)
@click.option(
    "--context",
    type=click.IntRange(256),
    default=4096,
    show_default=True,
    help="Context length in tokens, per request.",
)
@click.option(
    "--placement",
    default="",
    metavar="P",
    shell_complete=complete_placement,
    help="Use this placement for every model: ENGINE[@BUILD]/UNIT. [default: its plan]",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="NAME=MODEL",
    help="Another name for MODEL; NAME may have wildcards: claude-*.",
)
@click.option(
    "--hidden-alias", "hidden_aliases", multiple=True, metavar="NAME=MODEL", help="The same, but it is not listed."
)
@click.option(
    "--pin",
    "pins",
    multiple=True,
    metavar="MODEL",
    shell_complete=complete_model,
    help="Load this model and keep it loaded.",
)
@click.option(
    "--requests-per-minute", type=click.IntRange(0), default=0, help="Rate limit per key. [default: no limit]"
)
@click.option("--allow-image-fetch", is_flag=True, help="Fetch images that a request names by URL.")
@click.option(
    "--response-store",
    default="256M",
    show_default=True,
    metavar="SIZE",
    help="Disk space for responses that clients go on from; 0 keeps none.",
)
@click.option("--no-pages", is_flag=True, help="Serve the API only, no web pages.")
@click.option("--drain", default="30s", show_default=True, help="How long running answers may continue at shutdown.")
@click.option("--verbose", is_flag=True, help="Log every request to stderr, one JSON object per line.")
@YES
def serve(yes: bool, **words: Any) -> None:
    """Serve the local models over Ollama's, OpenAI's and Anthropic's APIs.

    MODELS are files to serve besides those of `trilithon list`, or names of models that are pulled where they are not
    here. Each model runs on its plan: the placement that trilithon bench recommended. Other machines (--host) need a
    key: trilithon key add NAME. OLLAMA_HOST, OLLAMA_ORIGINS, OLLAMA_KEEP_ALIVE, OLLAMA_CONTEXT_LENGTH and
    OLLAMA_NUM_PARALLEL are defaults. Every option may also stand in config.toml in the table [serve], see trilithon
    config. Ctrl-C or SIGTERM waits for running answers; a second one stops at once. SIGHUP reads config.toml again."""
    from trilithon.board.snapshot import read_board
    from trilithon.cli.serve.wanted import Typed, wanted
    from trilithon.settings import load_configuration

    words["files"] = files_among(words["files"], load_configuration(), yes=yes)
    context = click.get_current_context()
    names = frozenset(name for name in words if context.get_parameter_source(name) == ParameterSource.COMMANDLINE)
    typed = Typed(command=context.command, words=words, names=names)
    wishes, board = wanted(typed), read_board()
    with _sockets(wishes) as (sockets, files):
        _serve(typed, wishes, sockets, files, board)


def _serve(typed: "Typed", wishes: "Wanted", sockets: "list[socket]", files: list[Path], board: "Board") -> None:
    import logging
    import os
    import sys

    from trilithon.cli.serve.listening import notify
    from trilithon.cli.serve.process import Listening, keep_off_the_models_cpus, opened_service, serve_until_told
    from trilithon.cli.serve.reloading import Reloading
    from trilithon.serve.monitoring.logs import logged_to

    words, configuration = wishes.words, wishes.configuration
    level = logging.INFO if words["verbose"] else logging.WARNING
    with (
        # Without a stderr (2>&-) there is nobody to tell.
        contextlib.nullcontext(sys.stderr) if sys.stderr else Path(os.devnull).open("w", encoding="utf-8") as stream,
        logged_to(stream, level=level) as log,
        opened_service(wishes.settings, configuration, board) as (service, folder),
    ):
        context = None if words["no_pages"] else _context(service, configuration, board)
        lines = _greeting(sockets, service, tls=words["tls_cert"] is not None)
        lines += _about_builds(configuration)
        if not words["no_pages"]:
            lines += _about_pages(sockets, context, tls=words["tls_cert"] is not None)

        def tell(text: str) -> None:
            log.write(fit_for(stream, text))  # `say` would wait for the reader of stderr, and every client with it

        def ready() -> None:
            tell("\n".join(lines))
            notify("READY=1")

        def ending() -> None:
            notify("STOPPING=1")
            users = sum(model.users for model in service.pool.loaded())
            if users:
                tell(f"waiting for running answers: {users}; press again to stop at once")

        listening = Listening(
            sockets=sockets,
            options=wishes.options,
            certificate=words["tls_cert"],
            private_key=words["tls_key"],
            leftovers=(folder, *files),
            context=context,
            ready=ready,
            ending=ending,
            reload=Reloading(typed, wishes, service, tell).reload,
        )
        keep_off_the_models_cpus(board)
        serve_until_told(service, listening, wishes.settings.pins)


def _context(service: "Service", configuration: "Configuration", board: "Board") -> "AppContext | None":
    """None where the pages' library is not installed."""
    import importlib.util

    if importlib.util.find_spec("nicegui") is None:
        return None
    from trilithon.web.context import AppContext

    return AppContext(service=service, configuration=configuration, board=board, store=configuration.results_database)


def _about_pages(sockets: "list[socket]", context: "AppContext | None", *, tls: bool) -> list[str]:
    from trilithon.cli.serve.listening import url_of

    if context is None:
        return [f"no web pages: their packages are missing; run: {install_line('nicegui')}"]
    urls = [url for listener in sockets if (url := url_of(listener, tls=tls)).startswith("http")]
    return [f"in a browser: {url}/" for url in urls[:1]]


@contextlib.contextmanager
def _sockets(wishes: "Wanted") -> "Iterator[tuple[list[socket], list[Path]]]":
    """With the files that they have; both go at the end. Raises UserError where strangers could come in."""
    from socket import AF_UNIX

    from trilithon.cli.serve.listening import activated_sockets, listen, listen_unix
    from trilithon.serve.access.security import keyring, require_safe_bind

    words, keys = wishes.words, keyring(wishes.options.security)
    sockets, files = activated_sockets(), []
    for listener in sockets:
        if listener.family != AF_UNIX:
            require_safe_bind(listener.getsockname()[0], keys, words["no_key"])
    try:
        if not sockets and (words["unix"] is None or {"host", "port"} & wishes.named):
            require_safe_bind(words["host"], keys, words["no_key"])
            sockets = listen(words["host"], words["port"])
        if words["unix"] is not None:
            path = words["unix"].absolute()
            sockets.append(listen_unix(path))
            files.append(path)
        yield sockets, files
    finally:
        for listener in sockets:
            listener.close()
        for file in files:
            file.unlink(missing_ok=True)


def _greeting(sockets: "list[socket]", service: "Service", *, tls: bool) -> list[str]:
    from socket import gethostname

    from trilithon import __version__
    from trilithon.cli.serve.listening import url_of

    places = list(dict.fromkeys(url_of(listener, tls=tls) for listener in sockets))
    models = len(service.shelf.models())
    lines = [f"Trilithon {__version__} serves {models} model{'s' * (models != 1)} at {', '.join(places)}"]
    if not models:
        lines.append("there are no models yet; pull one: trilithon pull qwen2.5:0.5b")
    url = next((place for place in places if place.startswith("http")), "")
    if url:
        lines.append(f"for clients: OLLAMA_HOST={url} OPENAI_BASE_URL={url}/v1 ANTHROPIC_BASE_URL={url}")
    if anywhere := next((port for host, port in map(_host_and_port, sockets) if host in ("0.0.0.0", "::")), 0):
        lines.append(f"from other machines: http{'s' * tls}://{gethostname()}:{anywhere}")
    if not url.endswith(f"//127.0.0.1:{_PORT}"):
        lines.append(f"for trilithon run, ps and stop: TRILITHON_HOST={places[0]}")
    return lines


def _about_builds(configuration: "Configuration") -> list[str]:
    """A build that is slower here than one compiled for this CPU, with the command."""
    from trilithon.engines.build_findings import build_findings

    return [f"note: {finding.message}; run: {finding.fix}" for finding in build_findings(configuration)]


def _host_and_port(listening: "socket") -> tuple[str, int]:
    """Empty and 0 for a Unix socket."""
    name = listening.getsockname()
    return (name[0], name[1]) if isinstance(name, tuple) else ("", 0)
