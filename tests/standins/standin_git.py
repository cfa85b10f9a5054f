"""A host of git repositories on loopback: git's own server program behind an HTTP server that can cut an answer."""

import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["GitHost", "commit_of"]


# known(guess): GitHub serves every commit by its hash, as git does with uploadpack.allowReachableSHA1InWant
class GitHost:
    """A context manager. `cuts` answers are cut after `cut_after` bytes; `asked` are the paths of all requests."""

    def __init__(self, root: Path):
        self.root, self.asked, self.cuts, self.cut_after = root, list[str](), 0, 2000
        host = self

        class Handler(_GitHandler):
            owner = host

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that went away
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _GitHandler(BaseHTTPRequestHandler):
    owner: GitHost

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        parts, body = urlsplit(self.path), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.owner.asked.append(parts.path)
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.owner.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": parts.path,
            "QUERY_STRING": parts.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True)
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command == "POST" and self.owner.cuts and len(answer) > self.owner.cut_after:
            self.owner.cuts -= 1
            answer = answer[: self.owner.cut_after]
        self.wfile.write(answer)


def commit_of(repository: Path, *, serve_as: Path) -> str:
    """Commits everything in the folder, and puts a bare copy where the host serves it."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "--quiet"], ["add", "--all", "--force"], [*identity, "commit", "--quiet", "-m", "source"]):
        subprocess.run(["git", "-C", repository, *words], check=True)
    subprocess.run(["git", "clone", "--quiet", "--bare", repository, serve_as], check=True)
    subprocess.run(["git", "-C", serve_as, "config", "uploadpack.allowReachableSHA1InWant", "true"], check=True)
    shown = subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return shown.stdout.strip()
