"""The errors of Trilithon. Those with a module in brackets are defined there.

    TrilithonError                 exit code 1
    ├── UserError                  exit code 2: what was wrong with the input, and the fix
    │   ├── ModelError             a file that is missing, truncated, or not a model
    │   │   ├── NoSuchModel        no model of this name is here; it can be pulled
    │   │   ├── NotAModel          an adapter, a projector or another file that no engine runs alone
    │   │   ├── NoRoom             the disk is too full for it
    │   │   └── AccessDenied       the server of the model refuses it (models.fetch.http_client)
    │   ├── PlacementError         a placement that is unknown here or cannot run this file
    │   └── StoreError             the results database: newer, corrupt, read-only, disk full
    ├── RunError                   a placement failed; in a campaign it becomes a failed run
    │   ├── StartError             the child did not become ready
    │   ├── ChildDied              the child ended while it had work
    │   ├── EngineTimeout          the child is alive and sent nothing for the stated time
    │   ├── EngineError            the engine answered with an error
    │   │   ├── ContextExceeded    the input is longer than the context
    │   │   └── TaintedAnswer      the engine answered, and printed an error meanwhile
    │   └── Disconnected           the connection to the child broke (runtime.engine_errors)
    ├── Busy                       try again later: queue full, restart pending (runtime.pool.queue)
    ├── ApiError                   an HTTP status and a message for the client (serve.http.errors)
    ├── BoardUnreachable           a board of a fleet does not answer as it should (fleet.state)
    ├── NobodyListens              no server answers at the address (cli.serve.server_client)
    ├── DownloadError              a server or the network failed; what was downloaded is kept
    │   └── PlainHttp              the server does not speak TLS (models.fetch.http_client)
    └── Interrupted                exit code 130: stopped by the user; what was finished is kept

A message is one line, and ends with the fix where there is one. The command line and the HTTP APIs turn these into
text and status; no module below them exits the process."""

from typing import Any

from trilithon.language import Message

__all__ = [
    "ChildDied",
    "ContextExceeded",
    "DownloadError",
    "EngineError",
    "EngineTimeout",
    "Interrupted",
    "ModelError",
    "NoRoom",
    "NoSuchModel",
    "NotAModel",
    "PlacementError",
    "RunError",
    "StartError",
    "StoreError",
    "TaintedAnswer",
    "TrilithonError",
    "UserError",
]


class TrilithonError(Exception):
    """`UserError("{path} is not TOML: {reason}", path=path, reason=error)`: the English text, with the values in it. It
    is a Message, for the reader's language."""

    exit_code = 1

    def __init__(self, text: str = "", /, **values: Any):
        super().__init__(Message(text, **values) if values else text)


class UserError(TrilithonError):
    exit_code = 2


class ModelError(UserError):
    pass


class NoSuchModel(ModelError):
    pass


class NotAModel(ModelError):
    pass


class NoRoom(ModelError):
    pass


class PlacementError(UserError):
    pass


class StoreError(UserError):
    pass


class RunError(TrilithonError):
    """A placement failed.

    `cause` is a short cause ("out of memory", "segmentation fault", "exit code 3"), `advice` is the fix or empty,
    `last_words` are the last lines of the child's log. `kind` is stored with a failed run."""

    kind = "failed"

    def __init__(self, message: str, *, cause: str = "", advice: str = "", last_words: tuple[str, ...] = ()):
        super().__init__(message)
        self.cause = cause
        self.advice = advice
        self.last_words = last_words


class StartError(RunError):
    kind = "start failed"


class ChildDied(RunError):
    kind = "died"


class EngineTimeout(RunError):
    kind = "hung"


class EngineError(RunError):
    """The engine answered with an error; `status` is its HTTP status."""

    kind = "refused"

    def __init__(self, message: str, *, status: int, cause: str = "", advice: str = ""):
        super().__init__(message, cause=cause, advice=advice)
        self.status = status


class ContextExceeded(EngineError):
    """The input has more tokens than the engine takes: `prompt_tokens` of at most `context`, each None where the engine
    does not say it."""

    kind = "too long"

    def __init__(self, message: str, *, prompt_tokens: int | None, context: int | None):
        super().__init__(message, status=400, cause="refused")
        self.prompt_tokens = prompt_tokens
        self.context = context


class TaintedAnswer(EngineError):
    """The engine, or a library of it, printed the error `line` while it answered with success, so the answer may be
    wrong."""

    kind = "tainted"

    def __init__(self, line: str, advice: str = ""):
        message = f"the engine printed an error during the answer, which may be wrong: {line}"
        super().__init__(message, status=502, cause=f"error during the answer: {line}", advice=advice)
        self.line = line


class DownloadError(TrilithonError):
    pass


class Interrupted(TrilithonError):
    exit_code = 130
