"""Many requests over all boards: lines of a file in, lines out, each board as fast as it is.

What is answered is written at once, and is not asked again when the same file is given once more."""

import hashlib
import http.client
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from trilithon.errors import UserError
from trilithon.fleet.boards import FleetBoard
from trilithon.fleet.state import BoardState, BoardUnreachable, connect, plain_name
from trilithon.language import Message

__all__ = ["BatchLine", "BatchOutcome", "answer_lines", "read_lines"]

_PATH = "/v1/chat/completions"
_MOST_TRIES = 3
_MOST_FAILURES = 3  # of one board in a row
# An answer that is not streamed is silent until it is whole; the board knows when its engine hangs.
_PATIENCE_SECONDS = 3600.0
_LOOK_SECONDS = 0.5
_DIGITS = 16
# They are about the board, not about the line: no key, no such model, too busy. Another board may answer.
_OF_THE_BOARD = frozenset({401, 403, 404, 408, 429})
_HEAD = b'{"line":'
"""Of each answer."""


@dataclass(slots=True)
class BatchLine:
    """`number` counts from 1; `identity` tells whether the line is the same as before. `tried` are boards that broke
    off, or were not ready."""

    number: int
    identity: str
    body: Mapping[str, Any]
    custom_id: str = ""
    tried: tuple[str, ...] = ()
    problem: str = ""

    @property
    def model(self) -> str:
        return plain_name(str(self.body["model"]))


@dataclass(slots=True, kw_only=True)
class BatchOutcome:
    answered: int = 0
    refused: int = 0
    failed: int = 0


def read_lines(path: Path, model: str = "") -> list[BatchLine]:
    """Each line is the body of a chat completion, or has one in `body`, as OpenAI's batches do. `model` is for lines
    that name none. Raises UserError for a file that cannot be read and for a line that is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError("{path}: {reason}", path=path, reason=error.strerror) from error
    except UnicodeDecodeError as error:
        raise UserError("{path} is not UTF-8; save it in that encoding", path=path) from error
    lines = [_line(path, number, line, model) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError("{path} has no lines; write one JSON object per line", path=path)
    return lines


def answer_lines(
    lines: Sequence[BatchLine],
    output: Path,
    boards: Sequence[tuple[FleetBoard, str, BoardState]],
    tell: Callable[[int, int], None],
) -> BatchOutcome:
    """Append the answers to `output`, in the order in which they come. `boards` are with their keys. Raises UserError
    for a model that no board has, and where the answers cannot be written."""
    known = {plain_name(model.name) for _, _, state in boards for model in state.models if not model.refusal}
    for line in lines:
        if line.model not in known:
            raise UserError(
                "line {number}: no board has the model {model}; see: trilithon fleet list",
                number=line.number,
                model=line.body["model"],
            )
    answered = _answered(output)
    left = [line for line in lines if (line.number, line.identity) not in answered]
    try:
        with output.open("a", encoding="utf-8") as file:
            return _all_answered(_BatchQueue(left, len(lines) - len(left), file, tell), boards)
    except OSError as error:
        raise UserError("{path}: {reason}", path=output, reason=error.strerror or error) from error


def _all_answered(work: "_BatchQueue", boards: Sequence[tuple[FleetBoard, str, BoardState]]) -> BatchOutcome:
    """Raises OSError where an answer could not be written."""
    threads = [
        # At Ctrl-C, and where nothing can be written, requests that still run are left: they may take an hour.
        threading.Thread(target=work.serve, args=board, name=f"{board[0].name}-{slot}", daemon=True)
        for board in boards
        if not board[0].drained
        for slot in range(board[2].slots)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive() and work.write_error is None:
                thread.join(_LOOK_SECONDS)
    finally:
        work.stop()
    if work.write_error is not None:
        raise work.write_error
    work.give_up()
    return work.outcome


class _BatchQueue:
    """The lines that are left. A board takes the next one that it has the model for, as soon as it is free."""

    def __init__(self, lines: Sequence[BatchLine], before: int, file: TextIO, tell: Callable[[int, int], None]):
        self.outcome = BatchOutcome(answered=before)
        self.write_error: OSError | None = None
        self._left = list(lines)
        self._total = before + len(lines)
        self._running = 0
        self._file = file
        self._tell = tell
        self._changed = threading.Condition()
        self._stopped = False

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def serve(self, board: FleetBoard, key: str, state: BoardState) -> None:
        models = {plain_name(model.name) for model in state.models if not model.refusal}
        failures = 0
        while failures < _MOST_FAILURES and (line := self._next(board.name, models)) is not None:
            try:
                status, body = _ask(board, key, line.body)
                is_final = status == 200 or (400 <= status < 500 and status not in _OF_THE_BOARD)
                failures = 0 if is_final else failures + 1
                problem = "" if is_final else f"status {status}: {json.dumps(body)[:300]}"
            except (OSError, http.client.HTTPException, BoardUnreachable, ValueError, RecursionError) as error:
                status, body, problem = 0, None, str(error) or type(error).__name__
                failures += 1
            self._note(line, board.name, status, body, problem)

    def give_up(self) -> None:
        """Lines that no board is left for."""
        for line in self._left:
            self._write(line, {"error": line.problem or "no board is left that has the model"})
            self.outcome.failed += 1

    def _next(self, board: str, models: set[str]) -> BatchLine | None:
        """None when nothing is left for this board. While others work, what they fail with may come back."""
        with self._changed:
            while not self._stopped:
                for line in self._left:
                    if line.model in models and board not in line.tried:
                        self._left.remove(line)
                        self._running += 1
                        return line
                if not self._running:
                    break
                self._changed.wait()
            return None

    def _note(self, line: BatchLine, board: str, status: int, body: Any, problem: str) -> None:
        """An answer that cannot be written ends the whole."""
        with self._changed:
            self._running -= 1
            if self._stopped:  # and the file may be closed
                return
            try:
                self._keep(line, board, status, body, problem)
            except OSError as error:
                self.write_error, self._stopped = error, True
            finally:
                self._changed.notify_all()
            self._tell(self.outcome.answered, self._total)

    def _keep(self, line: BatchLine, board: str, status: int, body: Any, problem: str) -> None:
        if problem:
            line.tried, line.problem = (*line.tried, board), f"board {board}: {problem}"
            if len(line.tried) < _MOST_TRIES:
                self._left.insert(0, line)
                return
            self._write(line, {"error": line.problem})
            self.outcome.failed += 1
        else:
            self._write(line, {"board": board, "status": status, "body": body})
            self.outcome.answered += status < 400
            self.outcome.refused += status >= 400

    def _write(self, line: BatchLine, result: Mapping[str, Any]) -> None:
        head = {"line": line.number, "of": line.identity} | ({"custom_id": line.custom_id} if line.custom_id else {})
        self._file.write(json.dumps({**head, **result}) + "\n")  # ASCII: half a surrogate pair has no UTF-8
        self._file.flush()


def _ask(board: FleetBoard, key: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    connection = connect(board, _PATIENCE_SECONDS)
    try:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection.request("POST", _PATH, json.dumps({**body, "stream": False}), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _line(path: Path, number: int, text: str, model: str) -> BatchLine:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        entry = None
    body = entry.get("body", entry) if isinstance(entry, dict) else None
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise UserError(
            "{path}, line {number}: write a JSON object with messages, as for /v1/chat/completions",
            path=path,
            number=number,
        )
    named = body.get("model") or model
    if not isinstance(named, str) or not named:
        raise UserError(
            "{path}, line {number}: model is missing; write it there, or name one with --model",
            path=path,
            number=number,
        )
    body = {**body, "model": named}
    identity = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:_DIGITS]
    return BatchLine(number, identity, body, str(entry.get("custom_id") or ""))


def _answered(output: Path) -> set[tuple[int, str]]:
    """The lines that have an answer. Half a line at the end, of a run that was killed, is cut off. Raises UserError
    for a file with anything else in it, and changes nothing then."""
    if not output.exists():
        return set()
    try:
        content = output.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        rest = content[len(whole) :]
        entries = [json.loads(line) for line in whole.splitlines() if line.strip()]
        statuses = {(entry["line"], entry["of"]): entry.get("status") for entry in entries}
        if not (rest.startswith(_HEAD) or _HEAD.startswith(rest)):
            raise ValueError(Message("its last line is no answer"))
        if rest:
            with output.open("r+b") as file:
                file.truncate(len(whole))
        return {key for key, status in statuses.items() if status == 200}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            "{path} is no file of answers ({reason}); name another one with -o", path=output, reason=error
        ) from error
