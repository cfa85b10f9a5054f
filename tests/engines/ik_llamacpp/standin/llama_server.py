"""A stand-in for ik_llama.cpp's llama-server: its command line, its port, its key, its answer formats and its faults
around a real llama.cpp server, the one of the wheel.

    python llama_server.py --install FOLDER [right]

puts `llama-server` into FOLDER; with `right`, one that counts every token once.
"""

import asyncio
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from trilithon.engines.wire import guard

Body = dict[str, Any]

# known(source): ik-llama-cpp-python 0.1.5 common/common.cpp: options; an unknown one ends it with 1 and this line
FLAGS = ("--metrics", "--jinja", "--no-context-shift", "--log-disable", "--run-time-repack", "--k-cache-hadamard")
# The option → a parameter of the wheel's server, or none.
VALUES = {
    "--host": "",
    "--port": "",
    "--api-key-file": "",
    "--webui": "",
    "--model": "model.path",
    "--ctx-size": "n_ctx",
    "--parallel": "n_parallel",
    "--threads": "cpuparams.n_threads",
    "--batch-size": "n_batch",
    "--ubatch-size": "n_ubatch",
    "--cache-type-k": "",
    "--cache-type-v": "",
    "--flash-attn": "",
    "--cache-ram": "cache_ram_mib",
    "--ctx-checkpoints": "n_ctx_checkpoints",
    "--slot-save-path": "slot_save_path",
    "--chat-template": "chat_template",
    "--spec-type": "",
}
LOWEST = -3.4028234663852886e38
RIGHT = Path(__file__).with_name("counts-once").exists()


def main(words: list[str]) -> None:
    if words[0] == "--install":
        return install(Path(words[1]), right="right" in words[2:])
    # known(source): ik-llama-cpp-python 0.1.5 common/common.cpp: --version prints on stderr
    if words[0] == "--version":
        print("version: 0 (0.1.5)\nbuilt with GNU 12 for this machine", file=sys.stderr)  # noqa: T201
        return None
    options = parsed(words)
    # known(ran): ik-llama-cpp-python 0.1.5: writes llama.log into the current folder
    if "--log-disable" not in words:
        Path("llama.log").touch()
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/wire.sock"
        values: Body = {"socket": socket, "endpoint_slots": True, "endpoint_metrics": True, "use_jinja": True}
        values |= {"ui": False, "offline": True}
        for name, parameter in VALUES.items():
            if parameter and name in options:
                values[parameter] = int(options[name]) if options[name].isdecimal() else options[name]
        argv = [sys.executable, "-P", "-m", "trilithon.engines.llamacpp.child.embedded", json.dumps(values)]
        child = subprocess.Popen([sys.executable, guard.__file__, "--parent", str(os.getpid()), "--", *argv])
        threading.Thread(target=lambda: os._exit(child.wait()), daemon=True).start()
        key = Path(options["--api-key-file"]).read_text().strip()
        asyncio.run(Server(key, socket).serve(options["--host"], int(options["--port"])))
    return None


def install(folder: Path, *, right: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "llama-server"
    program.write_text(f"#!{sys.executable} -P\n{Path(__file__).read_text(encoding='utf-8')}", encoding="utf-8")
    program.chmod(0o755)
    if right:
        (folder / "counts-once").touch()


def parsed(words: list[str]) -> dict[str, str]:
    options, rest = {}, list(words)
    while rest:
        word = rest.pop(0)
        if word not in FLAGS and word not in VALUES:
            sys.exit(f"error: unknown argument: {word}")
        options[word] = rest.pop(0) if word in VALUES else ""
    if not options.get("--spec-type", "ngram-").startswith("ngram-"):
        sys.exit("unknown speculative decoding type without draft model")
    return options


class Server:
    def __init__(self, key: str, socket: str):
        self.key = key
        self.http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket), base_url="http://wheel", timeout=600
        )
        self.bias: list[Any] = []
        self.n_ctx = 0

    async def serve(self, host: str, port: int) -> None:
        app = Starlette(routes=[Route("/{path:path}", self.handle, methods=["GET", "POST"])])
        config = uvicorn.Config(app, host=host, port=port, log_level="warning", lifespan="off")
        await uvicorn.Server(config).serve()

    # known(source): ik-llama-cpp-python 0.1.5 examples/server/server.cpp: the key, and which paths need none
    async def handle(self, request: Request) -> Response:
        path = request.url.path
        if path not in ("/health", "/v1/models") and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "Invalid API Key", "code": 401}}, 401)
        content = await request.body()
        body = json.loads(content) if content else {}
        try:
            if path in ("/completion", "/v1/completions", "/v1/chat/completions"):
                return await self.generate(path, body)
            url = f"{path}?{request.url.query}"
            answer = await self.http.request(request.method, url, json=body if content else None)
        except httpx.ConnectError:
            return JSONResponse({"error": {"message": "Loading model", "code": 503}}, 503)
        if path == "/slots" and answer.status_code == 200:
            return JSONResponse([slot_of(slot) for slot in answer.json()])
        return Response(answer.content, answer.status_code, media_type=answer.headers["content-type"])

    # known(ran): ik-llama-cpp-python 0.1.5: biases of a request stay with the slot until a request names others
    # known(source): ik-llama-cpp-python 0.1.5 common/sampling.cpp: biases change the logits that are listed
    async def generate(self, path: str, body: Body) -> Response:
        self.bias = body.get("logit_bias", self.bias)
        sent = {name: value for name, value in body.items() if name != "stream_options"} | {"logit_bias": self.bias}
        # known(ran): ik-llama-cpp-python 0.1.5: stream_options are of no account for /v1/completions
        usage = path.endswith("chat/completions") and bool(body.get("stream_options"))
        answers = Answers(path, bool(body.get("n_probs") or body.get("logprobs")), self.bias, usage)
        engine_path = "/completion" if path == "/v1/completions" else path
        if body.get("stream"):
            sent |= {"stream_options": {"include_usage": True}, "timings_per_token": True} if "chat" in path else {}
            context = self.http.stream("POST", engine_path, json=sent)
            stack = contextlib.AsyncExitStack()
            answer = await stack.enter_async_context(context)
            if answer.status_code >= 400:
                async with stack:
                    return Response(await answer.aread(), answer.status_code, media_type="application/json")
            return StreamingResponse(events(stack, answer, answers), media_type="text/event-stream")
        answer = await self.http.post(engine_path, json=sent)
        if answer.status_code >= 400:
            return Response(answer.content, answer.status_code, media_type="application/json")
        (whole,) = answers.of(answer.json())
        # known(ran): ik-llama-cpp-python 0.1.5: a whole answer with text or a token that is not UTF-8 is an error
        if "\ufffd" in json.dumps(whole, ensure_ascii=False):
            return JSONResponse({"error": {"message": "invalid UTF-8 byte at index 0: 0xB6", "code": 500}}, 500)
        return JSONResponse(whole)


async def events(stack: contextlib.AsyncExitStack, answer: httpx.Response, answers: "Answers") -> AsyncIterator[str]:
    async with stack:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                for body in answers.of(json.loads(line.removeprefix("data: "))):
                    yield f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
        if answers.path != "/completion":
            yield "data: [DONE]\n\n"


class Answers:
    """From llama-server's bodies to those of ik_llama.cpp's."""

    def __init__(self, path: str, listed: bool, bias: list[Any], usage: bool):
        self.path, self.listed, self.bias, self.usage = path, listed, bias, usage
        self.count = 0
        self.held: Body = {}

    def of(self, body: Body) -> list[Body]:
        if "error" in body:
            return [body]
        return self.chat(body) if "choices" in body else self.completion(body)

    # known(source): ik-llama-cpp-python 0.1.5 examples/server/server-context.cpp: fields of /completion's answers
    # known(source): ik-llama-cpp-python 0.1.5 examples/server/server-task.cpp: finish_reason is "stop" at every end
    def completion(self, body: Body) -> list[Body]:
        self.count += 1
        entries = [self.entry(entry) for entry in body.get("completion_probabilities", ())]
        ends, timings = body["stop"], ik_timings(body.get("timings"))
        prompt, made = int(body["tokens_evaluated"]), int(body["tokens_predicted"])
        if self.path == "/v1/completions":
            choice: Body = {"text": body["content"], "index": 0, "logprobs": {"content": entries} if entries else None}
            choice["finish_reason"] = "stop" if ends else None
            usage = {"completion_tokens": made, "prompt_tokens": prompt, "total_tokens": prompt + made}
            whole = {"choices": [choice], "object": "text_completion", "model": "m", "usage": usage}
            return [whole | ({"timings": timings} if ends else {})]
        plain: Body = {"content": body["content"], "stop": ends, "id_slot": 0, "multimodal": False}
        if entries:  # without ids
            plain["completion_probabilities"] = [
                {"content": e["token"], "probs": [{"tok_str": t["token"], "prob": 0.5} for t in e["top_logprobs"]]}
                for e in entries
            ]
        if not ends:
            return [plain]
        stopped = {f"stopped_{kind}": body["stop_type"] == kind for kind in ("eos", "word", "limit")}
        plain |= {"tokens_predicted": made, "tokens_evaluated": prompt, "tokens_cached": body["tokens_cached"]}
        return [plain | stopped | {"stopping_word": body["stopping_word"], "timings": timings, "truncated": False}]

    # known(ran): ik-llama-cpp-python 0.1.5: events of a chat; each has the usage so far, and the last the timings
    def chat(self, body: Body) -> list[Body]:
        for choice in body["choices"]:
            if choice.get("finish_reason") == "length":
                choice["finish_reason"] = "stop"
            if choice.get("logprobs"):
                choice["logprobs"]["content"] = [self.entry(entry) for entry in choice["logprobs"]["content"]]
        stated = body.pop("timings", None)
        if "usage" in body:
            body["usage"].pop("prompt_tokens_details", None)
        if body["object"] == "chat.completion":
            return [body | {"timings": ik_timings(stated)}]
        if any(choice.get("finish_reason") for choice in body["choices"]):
            self.held = body  # the timings are in the event with the usage, which may not have been asked for
            return []
        if body["choices"]:
            self.count += 1
            prompt = stated["cache_n"] + stated["prompt_n"] if stated else 0
            so_far = {"completion_tokens": self.count, "prompt_tokens": prompt, "total_tokens": prompt + self.count}
            return [body | {"usage": so_far}]
        if self.usage:
            return [self.held, body | {"timings": ik_timings(stated)}]
        return [self.held | {"timings": ik_timings(stated)}]

    # known(source): ik-llama-cpp-python 0.1.5 examples/server/server-common.cpp: get_token_probabilities
    def entry(self, entry: Body) -> Body:
        top = [dict(candidate) for candidate in entry["top_logprobs"]]
        forced = [bias[0] for bias in self.bias if bias[1] > 100]
        if forced:
            top = [c | {"logprob": 0.0 if c["id"] in forced else LOWEST} for c in top]
        elif not RIGHT:
            head = min(math.fsum(math.exp(candidate["logprob"]) for candidate in top), 1.0)
            top = [c | {"logprob": c["logprob"] - math.log(2 - head)} for c in top]
            return entry | {"logprob": entry["logprob"] - math.log(2 - head), "top_logprobs": top}
        return entry | {"top_logprobs": top}


# known(ran): ik-llama-cpp-python 0.1.5: its timings have n_past and n_ctx, and no cache_n
def ik_timings(timings: Body | None) -> Body | None:
    if not timings:
        return None
    past = timings["cache_n"] + timings["prompt_n"] + timings["predicted_n"]
    return {name: value for name, value in timings.items() if name != "cache_n"} | {"n_past": past, "n_ctx": 1 << 20}


# known(source): ik-llama-cpp-python 0.1.5 examples/server/server-context.cpp: fields of /slots
def slot_of(slot: Body) -> Body:
    following = slot.pop("next_token", [{}])
    working = slot.pop("is_processing")
    return slot | {"state": int(working), "next_token": following[0] if isinstance(following, list) else following}


if __name__ == "__main__":
    main(sys.argv[1:])
