"""Other names for models: clients that are built for one service ask for its models, and get one of this machine's."""

import re
from collections.abc import Sequence

from trilithon.errors import UserError
from trilithon.settings import Alias

__all__ = ["Aliases"]

_LATEST = ":latest"  # Ollama's clients add it


class Aliases:
    """Names count in either case. Raises UserError for a name that is given twice."""

    def __init__(self, aliases: Sequence[Alias] = ()):
        self._exact = {alias.name.casefold(): alias for alias in aliases if "*" not in alias.name}
        patterns = sorted((alias for alias in aliases if "*" in alias.name), key=lambda alias: -len(alias.name))
        self._patterns = [(re.compile(_expression(alias.name)), alias) for alias in patterns]
        if len(self._exact) + len({alias.name.casefold() for alias in patterns}) < len(aliases):
            raise UserError("an alias is given twice; give each name one model")

    @property
    def listed(self) -> tuple[Alias, ...]:
        """Those that clients see among the models."""
        return tuple(alias for alias in self._exact.values() if not alias.hidden)

    def exact(self, name: str) -> str | None:
        """The model that a name without wildcard means; None where it is no alias."""
        if not self._exact:
            return None
        alias = self._exact.get(name.casefold()) or self._exact.get(name.casefold().removesuffix(_LATEST))
        return alias.model if alias else None

    def matching(self, name: str) -> str | None:
        """The model of the longest wildcard that fits."""
        for pattern, alias in self._patterns:
            if pattern.fullmatch(name.casefold()):
                return alias.model
        return None


def _expression(name: str) -> str:
    return re.escape(name.casefold()).replace(r"\*", ".*")
