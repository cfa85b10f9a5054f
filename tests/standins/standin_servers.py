"""Stand-ins of servers with Ollama's API, RKLLAMA's and OpenAI's, in a thread of the test.

Each answers with words at a fixed pace, so that what it states about its speed can be compared with the clock."""

# known(documentation): ollama/ollama@9fbfa74 docs/api.md: streams of JSON lines; the last has counts and nanoseconds
# known(documentation): ollama/ollama@9fbfa74 docs/api.md: GET /api/version and /api/tags; 404 for a model it lacks
# known(source): NotPunchnox/rkllama@3a283ff: durations of RKLLM in milliseconds, digests "", done_reason never "length"
# known(source): NotPunchnox/rkllama@3a283ff: <think> stays in the text of an answer
# known(guess): RKLLAMA counts the tokens of the prompt in prompt_eval_count
# known(documentation): abetlen/llama-cpp-python README.md: /v1/completions and /v1/chat/completions, no /props
# known(documentation): ollama/ollama@9fbfa74 docs/api.md: a tool call is whole, its arguments are an object
# known(guess): a server with OpenAI's API sends a tool call in pieces with an index, its arguments as text
# known(guess): a server with OpenAI's API sends the usage in a message of its own, without choices

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

__all__ = ["StandInServer", "serving"]

_VOCABULARY = ["stones", "that", "stand", "in", "circles", "older", "than", "words", "of", "those", "who", "pass", "by"]


@dataclass
class StandInServer:
    """`prompt_seconds` before the first word, `word_seconds` between words. `unit` is what a second is divided into in
    its durations. `dies_after` closes the connection after so many words, `key` is wanted with every request. `call`
    answers a request with tools."""

    api: str
    models: Mapping[str, str] = field(default_factory=lambda: {"qwen2.5:1.5b": "Q8_0"})
    prompt_seconds: float = 0.12
    word_seconds: float = 0.008
    unit: float = 1e9
    thinking: str = ""
    answer_words: int = 1000
    dies_after: int | None = None
    key: str = ""
    call: Mapping[str, Any] | None = None
    address: str = ""
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def get(self, path: str) -> dict[str, Any] | None:
        digest = "" if self.api == "RKLLAMA" else "5f" * 32
        tags = [
            {
                "name": name,
                "model": name,
                "size": 1000,
                "digest": digest,
                "details": {"quantization_level": quantization},
            }
            for name, quantization in self.models.items()
        ]
        answers: dict[str, dict[str, Any]] = {
            "/v1/models": {"object": "list", "data": [{"id": n} for n in self.models]}
        }
        if self.api != "OpenAI API":
            version = "0.0.74" if self.api == "RKLLAMA" else "0.33.0"
            answers |= {"/api/version": {"version": version}, "/api/tags": {"models": tags}}
        return answers.get(path)

    def words(self, limit: int) -> Iterator[str]:
        text = self.thinking.split(" ") if self.thinking else []
        text += [_VOCABULARY[number % len(_VOCABULARY)] for number in range(self.answer_words)]
        time.sleep(self.prompt_seconds)
        for number, word in enumerate(text[:limit]):
            time.sleep(self.word_seconds if number else 0)
            yield word + " "

    def answer(self, path: str, body: dict[str, Any]) -> Iterator[bytes]:
        self.requests.append((path, body))
        limit = body["options"]["num_predict"] if path.startswith("/api") else body["max_tokens"]
        prompt = body.get("prompt") or " ".join(message["content"] for message in body["messages"])
        count = 0
        if body.get("tools") and self.call:
            yield from self._calls(path)
            limit = 0
        for count, word in enumerate(self.words(limit), start=1):
            if count == self.dies_after:
                raise ConnectionResetError
            yield self._piece(path, word)
        reason = "length" if count == limit and self.api != "RKLLAMA" else "stop"
        if path.startswith("/api"):
            done = {"message": {"content": ""}} if path == "/api/chat" else {"response": ""}
            yield _line(
                {
                    **done,
                    "done": True,
                    "done_reason": reason,
                    "prompt_eval_count": len(prompt.split()),
                    "prompt_eval_duration": int(self.prompt_seconds * self.unit),
                    "eval_count": count,
                    "eval_duration": int((count - 1) * self.word_seconds * self.unit),
                }
            )
            return
        end = {"delta": {}} if "chat" in path else {"text": ""}
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": count}
        for message in ({"choices": [{**end, "finish_reason": reason}]}, {"choices": [], "usage": usage}):
            yield b"data: " + _line(message) + b"\n"
        yield b"data: [DONE]\n\n"

    def _piece(self, path: str, word: str) -> bytes:
        if path == "/api/chat":
            return _line({"message": {"role": "assistant", "content": word}, "done": False})
        if path == "/api/generate":
            return _line({"response": word, "done": False})
        choice = {"delta": {"content": word}} if "chat" in path else {"text": word}
        return b"data: " + _line({"choices": [{**choice, "finish_reason": None}]}) + b"\n"

    def _calls(self, path: str) -> Iterator[bytes]:
        assert self.call is not None
        name, arguments = self.call["name"], self.call["arguments"]
        if path == "/api/chat":
            yield _line(
                {"message": {"content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}}
            )
            return
        text = json.dumps(arguments)
        for function in ({"name": name, "arguments": ""}, {"arguments": text[:4]}, {"arguments": text[4:]}):
            delta = {"tool_calls": [{"index": 0, "function": function}]}
            yield b"data: " + _line({"choices": [{"delta": delta, "finish_reason": None}]}) + b"\n"


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


class _Handler(BaseHTTPRequestHandler):
    standin: ClassVar[StandInServer]
    protocol_version = "HTTP/1.0"

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self._reply(self.standin.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] not in self.standin.models:
            self._reply(None, error=f"model '{body['model']}' not found")
        elif self._admitted():
            self._stream(body)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        is_lines = self.path.startswith("/api")
        self.send_header("Content-Type", "application/x-ndjson" if is_lines else "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for piece in self.standin.answer(self.path, body):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            self.close_connection = True

    def _reply(self, body: dict[str, Any] | None, error: str = "not found") -> None:
        if not self._admitted():
            return
        content = json.dumps({"error": error} if body is None else body).encode()
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _admitted(self) -> bool:
        if self.standin.key and self.headers.get("Authorization") != f"Bearer {self.standin.key}":
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "no such key"}}')
            return False
        return True


@contextlib.contextmanager
def serving(standin: StandInServer) -> Iterator[StandInServer]:
    """On a free port; `standin.address` is set."""

    handler = type("_Bound", (_Handler,), {"standin": standin})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        standin.address = f"http://127.0.0.1:{server.server_address[1]}"
        yield standin
        server.shutdown()
