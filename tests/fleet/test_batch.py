"""A batch over boards of which some fail: no line is lost, none is asked for ever, and the whole ends."""

import json
import resource
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trilithon.errors import UserError
from trilithon.fleet.batch import BatchOutcome, answer_lines, read_lines
from trilithon.fleet.boards import FleetBoard
from trilithon.fleet.state import BoardModel, BoardState


class Answering(BaseHTTPRequestHandler):
    """200, or the status that the server has; 0 closes the connection without an answer."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status: int = self.server.status  # type: ignore[attr-defined]
        if status:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"choices": []}')

    def log_message(self, *_: object) -> None:
        """Nothing."""


Board = tuple[FleetBoard, str, BoardState]


@pytest.fixture
def board() -> Iterator[object]:
    servers = []

    def begin(name: str, status: int, *models: str, slots: int = 1) -> Board:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        server.status = status  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        servers.append(server)
        known = tuple(BoardModel(name=model) for model in models)
        url = f"http://127.0.0.1:{server.server_address[1]}"
        return FleetBoard(name=name, url=url), "", BoardState(name=name, models=known, slots=slots)

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def asked(tmp_path: Path, boards: list[Board], *models: str) -> tuple[BatchOutcome, list[dict[str, object]]]:
    file, output = tmp_path / "file", tmp_path / "answers"
    file.write_text("\n".join(json.dumps({"messages": [], "model": model}) for model in models))
    outcome = answer_lines(read_lines(file), output, boards, lambda *_: None)
    return outcome, [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.parametrize("status", [0, 401, 404, 408, 429, 500, 503])
def test_what_one_board_fails_with_another_answers(tmp_path: Path, board: object, status: int) -> None:
    boards = [board("bad", status, "m", slots=2), board("good", 200, "m:latest", slots=2)]  # type: ignore[operator]
    outcome, rows = asked(tmp_path, boards, *["m"] * 12)
    assert outcome == BatchOutcome(answered=12)
    assert Counter(row["board"] for row in rows) == {"good": 12}
    assert sorted(int(str(row["line"])) for row in rows) == list(range(1, 13))


def test_a_model_of_failing_boards_alone_ends_in_an_error(tmp_path: Path, board: object) -> None:
    boards = [board("one", 0, "only"), board("two", 500, "only"), board("good", 200, "m")]  # type: ignore[operator]
    outcome, rows = asked(tmp_path, boards, "only", "m", "only", "only", "only", "only")
    assert outcome == BatchOutcome(answered=1, failed=5)
    errors = [str(row["error"]) for row in rows if "error" in row]
    assert len(errors) == 5
    assert all("board " in error or "no board is left" in error for error in errors)


def test_a_refusal_is_an_answer_and_no_reason_to_ask_another_board(tmp_path: Path, board: object) -> None:
    outcome, rows = asked(tmp_path, [board("one", 400, "m"), board("two", 400, "m")], "m", "m")  # type: ignore[operator]
    assert outcome == BatchOutcome(refused=2)
    assert [row["status"] for row in rows] == [400, 400]


def test_half_a_character_in_a_line_is_no_reason_to_lose_it(tmp_path: Path, board: object) -> None:
    (tmp_path / "file").write_text(r'{"custom_id": "\ud800", "body": {"messages": [], "model": "m"}}')
    outcome = answer_lines(read_lines(tmp_path / "file"), tmp_path / "answers", [board("one", 200, "m")], print)  # type: ignore[operator]
    assert outcome == BatchOutcome(answered=1)
    assert json.loads((tmp_path / "answers").read_text())["custom_id"] == "\ud800"


def test_a_full_disk_ends_the_whole(tmp_path: Path, board: object) -> None:
    (tmp_path / "file").write_text('{"messages": [], "model": "m"}\n' * 8)
    lines = read_lines(tmp_path / "file")
    boards = [board(name, 200, "m", slots=2) for name in ("one", "two")]  # type: ignore[operator]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(UserError, match="answers: File too large"):
            answer_lines(lines, tmp_path / "answers", boards, lambda *_: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert answer_lines(lines, tmp_path / "answers", boards, lambda *_: None) == BatchOutcome(answered=8)


@pytest.mark.parametrize(
    "content",
    [
        '{"messages": [], "model": "m"}',
        '{"messages": [], "model": "m"}\n{"line": 1, "of"',
        '{"line": 1, "of": "x"}\n{"messages": []}',
        '{"line": 1, "of": []}\n{"line": 1',
        "notes",
    ],
)
def test_a_file_with_anything_but_answers_stays_as_it_is(tmp_path: Path, board: object, content: str) -> None:
    (tmp_path / "answers").write_text(content)
    with pytest.raises(UserError, match="is no file of answers"):
        asked(tmp_path, [board("one", 200, "m")], "m")  # type: ignore[operator]
    assert (tmp_path / "answers").read_text() == content
