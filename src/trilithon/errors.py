"""Every error that Trilithon raises on purpose.

    TrilithonError                 exit code 1
    ├── UserError                  exit code 2: what was wrong with the input, and the fix
    │   ├── ModelError             a file that is missing, cut short, or no model at all
    │   │   └── NoRoom             the disk has no room for it
    │   ├── PlacementError         a placement that is unknown here or cannot run this file
    │   └── StoreError             the results database: newer, corrupt, read-only, disk full
    ├── RunError                   a placement failed; in a campaign it becomes a failed run
    │   ├── StartError             the child never became ready
    │   ├── ChildDied              the child ended while it had work
    │   ├── Hung                   the child is alive and gave nothing for the stated time
    │   └── Refused                the engine answered with an error
    ├── DownloadError              a server or the network failed; what came is kept for the next try
    └── Interrupted                exit code 130: stopped by the user; what was finished is kept

A message is one line, and ends with what fixes it where something does. The surfaces (the command line,
each HTTP API) turn these into text and status; nothing below them exits. Two kinds of TrilithonError stand beside what
raises them: `Busy` in runtime.pool_queue, and `Problem` in serve.problems.
"""

__all__ = [
    "ChildDied",
    "DownloadError",
    "EngineError",
    "EngineTimeout",
    "Interrupted",
    "ModelError",
    "NoRoom",
    "PlacementError",
    "RunError",
    "StartError",
    "StoreError",
    "TrilithonError",
    "UserError",
]


class TrilithonError(Exception):
    exit_code = 1


class UserError(TrilithonError):
    exit_code = 2


class ModelError(UserError):
    pass


class NoRoom(ModelError):
    pass


class PlacementError(UserError):
    pass


class StoreError(UserError):
    pass


class RunError(TrilithonError):
    """A placement failed.

    `cause` is a short known cause ("out of memory", "segmentation fault", "exit code 3"), `advice` says what to
    do about it or is empty, `last_words` holds the last lines that the child wrote.
    """

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


class DownloadError(TrilithonError):
    pass


class Interrupted(TrilithonError):
    exit_code = 130
