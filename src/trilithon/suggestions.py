"""What a user may have meant by a word that is none of the known ones."""

from collections.abc import Iterable

from trilithon.language import Message, listed

__all__ = ["alternatives", "similar_names"]

_MOST_LISTED = 16
_MOST_READ = 40  # nobody reads more names in an error


def alternatives(word: str, known: Iterable[str]) -> Message:
    """ "there are cpu, gpu; did you mean gpu?"; the end of a message that refuses `word`. A long list of names is left
    out where one of them is similar, and cut where it is very long."""
    names = list(dict.fromkeys(known))
    if not names:
        return Message("there are none")
    near = similar_names(word, names, 1)
    if near and len(names) > _MOST_LISTED:
        return Message("did you mean {name}?", name=near[0])
    if near:
        return Message("there are {names}; did you mean {name}?", names=listed(names), name=near[0])
    if len(names) > _MOST_READ:
        first, rest = names[:_MOST_LISTED], len(names) - _MOST_LISTED
        return Message("there are {names} and {count} more", names=listed(first), count=str(rest))
    return Message("there are {names}", names=listed(names))


def similar_names(word: str, known: Iterable[str], most: int = 3, least_ratio: float = 0.6) -> list[str]:
    """The most similar first, from `least_ratio` on (difflib's, 1 for equal words); capitals count for nothing."""
    from difflib import get_close_matches  # takes a few milliseconds, and only mistakes need it

    names = {name.casefold(): name for name in known}
    return [names[near] for near in get_close_matches(word.casefold(), names, most, least_ratio)]
