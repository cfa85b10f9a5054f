"""OpenSSH, with the user's own configuration and keys: what a board is asked to do outside its API."""

import json
import shlex
import shutil
import socket
import subprocess
from collections.abc import Sequence

from trilithon.errors import TrilithonError, UserError
from trilithon.fleet.boards import FleetBoard

__all__ = ["make_board_key", "run_there", "ssh_words"]

_SECONDS = 60.0
_COMMAND_NOT_THERE = 127


def ssh_words(board: FleetBoard, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` on the board. Raises UserError for a board without an address for ssh."""
    if not board.ssh:
        raise UserError("board {name} has no address for ssh; add it again with --ssh USER@HOST", name=board.name)
    if shutil.which("ssh") is None:
        raise UserError("ssh is missing; run: {command}", command="sudo apt-get install openssh-client")
    options = ["-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"]
    return ["ssh", *options, "--", board.ssh, shlex.join(command)]


def run_there(board: FleetBoard, *command: str) -> str:
    """Its stdout. Raises TrilithonError with the last line of its stderr."""
    try:
        done = subprocess.run(
            ssh_words(board, command), capture_output=True, text=True, check=False, timeout=_SECONDS, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise TrilithonError("ssh {ssh} does not end; try it by hand", ssh=board.ssh) from error
    if done.returncode == _COMMAND_NOT_THERE:
        raise TrilithonError(
            "ssh {ssh}: there is no trilithon on the PATH of that user; install it for all users there", ssh=board.ssh
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise TrilithonError("ssh {ssh}: {reason}", ssh=board.ssh, reason=lines[-1].strip())
    return done.stdout


def make_board_key(board: FleetBoard) -> str:
    """A key of the board for this machine's gateway alone. It replaces the one that an earlier `fleet add` made there:
    only its hash was kept. Raises TrilithonError."""
    name = f"gateway-{socket.gethostname().partition('.')[0] or 'here'}-{board.name}"
    try:
        known = json.loads(run_there(board, "trilithon", "key", "list", "--json"))
        if any(key["name"] == name for key in known):
            run_there(board, "trilithon", "key", "rm", name)
        return str(json.loads(run_there(board, "trilithon", "key", "add", name, "--scope", "gateway", "--json"))["key"])
    except (ValueError, TypeError, LookupError) as error:
        raise TrilithonError("ssh {ssh}: trilithon key add printed no key", ssh=board.ssh) from error
