"""A JSON schema as a check of finished answers.

jsonschema-rs is loaded with the first schema. Its regular expressions run in linear time, and patterns come from
clients."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trilithon.serve.forms.keywords import evaluations
from trilithon.serve.http.errors import ApiError
from trilithon.serve.validation import wrong

if TYPE_CHECKING:
    from jsonschema_rs import Validator

__all__ = ["AnswerSchema"]

# Each takes some microseconds.
_MOST_EVALUATIONS = 20_000
# Evaluations times letters of an answer that is compared on the event loop, which takes some 10 ms.
_MOST_AT_ONCE = 50_000
_CPU_SECONDS = 5  # of a comparison elsewhere
# Levels of an answer for which the evaluations of a schema that refers to itself are counted.
_LEVELS = (2, 4, 8)


class AnswerSchema:
    """`where` is the field of the request that has the schema."""

    def __init__(self, schema: Mapping[str, Any], where: str) -> None:
        """Raises ApiError for what is no JSON schema, refers to other documents, or has alternatives that multiply."""
        from jsonschema_rs import ReferencingError, RegexOptions, ValidationError, validator_for

        self.schema = schema
        self.where = where
        if evaluations(schema) > _MOST_EVALUATIONS:
            raise wrong(where, f"{where}: too many alternatives within alternatives; simplify the schema")
        self._evaluations = {levels: evaluations(schema, levels) for levels in _LEVELS}
        try:
            self._validator: Validator = validator_for(
                dict(schema), validate_formats=True, retriever=_no_document, pattern_options=RegexOptions()
            )
        except (ValidationError, ReferencingError, ValueError) as error:
            place = "/".join(map(str, getattr(error, "instance_path", ())))
            reason = str(getattr(error, "message", error)).splitlines()[0][:200]
            raise wrong(where, f"{where}: not a JSON schema that can be used, at #/{place}: {reason}") from error

    async def check(self, text: str) -> str:
        """As `broken_keyword`, elsewhere where that may take long. Raises ApiError where it takes too long."""
        if len(text) <= _MOST_AT_ONCE:
            depth = _depth(text)
            each = next((count for levels, count in self._evaluations.items() if levels >= depth), _MOST_AT_ONCE)
            if each * len(text) <= _MOST_AT_ONCE:
                return self.broken_keyword(text)
        return await self._broken_keyword_elsewhere(text)

    def broken_keyword(self, text: str) -> str:
        """The place in the schema of a keyword that the text breaks, as a JSON pointer; empty where it is valid.
        `#` where it is not JSON."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return "#"
        if self._validator.is_valid(value):  # it ends with the first error, and looks at alternatives once
            return ""
        error = next(iter(self._validator.iter_errors(value)), None)
        return "" if error is None else "/".join(["#", *map(str, error.schema_path)])

    async def _broken_keyword_elsewhere(self, text: str) -> str:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "trilithon.serve.forms.check", str(_CPU_SECONDS)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            request = await asyncio.to_thread(json.dumps, {"schema": self.schema, "text": text})
            place, errors = await child.communicate(request.encode())
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
            returncode = await child.wait()
        if returncode < 0:
            reason = f"an answer takes over {_CPU_SECONDS} s to compare with this schema; simplify its alternatives"
            raise wrong(self.where, f"{self.where}: {reason}")
        if returncode:
            reason = errors.decode(errors="replace").strip().rpartition("\n")[2][:300]
            raise ApiError(f"the answer could not be compared with {self.where}: {reason}", status=500)
        return place.decode()


def _depth(text: str) -> int:
    """An upper bound of how deep the value is: brackets in strings count too."""
    deepest = depth = 0
    for letter in text:
        if letter in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in "}]":
            depth -= 1
    return deepest


def _no_document(address: str) -> Any:
    raise ValueError(f"it refers to another document, {address}")
