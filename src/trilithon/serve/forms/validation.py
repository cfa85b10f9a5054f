"""A JSON schema as a check of finished answers.

jsonschema-rs is loaded with the first schema. Its regular expressions run in linear time, and patterns come from
clients."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trilithon.serve.forms.keywords import evaluations
from trilithon.serve.validation import wrong

if TYPE_CHECKING:
    from jsonschema_rs import Validator

__all__ = ["AnswerSchema"]

# An answer is validated on the event loop; each takes some microseconds.
_MOST_EVALUATIONS = 20_000


class AnswerSchema:
    """`where` is the field of the request that has the schema."""

    def __init__(self, schema: Mapping[str, Any], where: str) -> None:
        """Raises ApiError for what is no JSON schema, refers to other documents, or has alternatives that multiply."""
        from jsonschema_rs import ReferencingError, RegexOptions, ValidationError, validator_for

        self.schema = schema
        self.where = where
        if evaluations(schema) > _MOST_EVALUATIONS:
            raise wrong(where, f"{where}: too many alternatives within alternatives; simplify the schema")
        try:
            self._validator: Validator = validator_for(
                dict(schema), validate_formats=True, retriever=_no_document, pattern_options=RegexOptions()
            )
        except (ValidationError, ReferencingError, ValueError) as error:
            place = "/".join(map(str, getattr(error, "instance_path", ())))
            reason = str(getattr(error, "message", error)).splitlines()[0][:200]
            raise wrong(where, f"{where}: not a JSON schema that can be used, at #/{place}: {reason}") from error

    def broken_keyword(self, text: str) -> str:
        """The place in the schema of a keyword that the text breaks, as a JSON pointer; empty where it is valid.
        `#` where it is not JSON."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return "#"
        error = next(iter(self._validator.iter_errors(value)), None)
        return "" if error is None else "/".join(["#", *map(str, error.schema_path)])


def _no_document(address: str) -> Any:
    raise ValueError(f"it refers to another document, {address}")
