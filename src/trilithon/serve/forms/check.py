"""Compares a finished answer with its schema in a process of its own, within a limit of CPU time.

    python -m trilithon.serve.forms.check CPU_SECONDS < JSON with "schema" and "text"

A schema that refers to itself in several alternatives takes a time that doubles with each level of the answer, which
nothing can interrupt in a server. It prints the place of the keyword that the answer breaks, or nothing."""

import json
import resource
import sys

from trilithon.serve.forms.validation import AnswerSchema

__all__: list[str] = []


def main() -> None:
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = json.load(sys.stdin)
    sys.stdout.write(AnswerSchema(request["schema"], "schema").broken_keyword(request["text"]))


if __name__ == "__main__":
    main()
