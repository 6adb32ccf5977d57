"""What `.gitignore` leaves out of a folder: what a build has made, and what others have written.

Patterns by pathspec. Of two that match, the one of the nearer folder counts, as in Git.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

NAME = ".gitignore"
#: The group of pathspec's expressions that is the slash after a folder.
_BELOW = "ps_d"


class Ignored(NamedTuple):
    """The patterns that hold in a folder, by the folder that says them.

    said  the outermost folder first, but of each the last pattern first, because that one counts
    """

    said: tuple[tuple[Path, tuple[Any, ...]], ...] = ()

    @classmethod
    def around(cls, folder: Path) -> Self:
        """What the repository around a folder says, where there is one, but for the folder itself: whoever names what
        is left out wants it.
        """
        top = next((one for one in (folder, *folder.parents) if os.path.lexists(one / ".git")), folder)
        found = cls()
        for outer, inner in pairwise([*(one for one in reversed(folder.parents) if one.is_relative_to(top)), folder]):
            found = found.within(outer)
            if found.leaves_out(inner, folder=True):
                return cls()
        return found

    def within(self, folder: Path) -> Self:
        """Together with what the folder itself says."""
        patterns = _patterns_of(folder / NAME)
        return type(self)((*self.said, (folder, patterns))) if patterns else self

    def leaves_out(self, path: Path, *, folder: bool) -> bool:
        """Whether a file or folder below is left out. It must be below all folders that say something."""
        for root, patterns in reversed(self.said):
            place = path.relative_to(root).as_posix() + ("/" if folder else "")
            for pattern in patterns:
                if _is_of(pattern, place):
                    return bool(pattern.include)
        return False


def _is_of(pattern: Any, place: str) -> bool:
    """Whether a pattern matches a place itself. Those of pathspec match what is below, too, and most mark where that
    begins: `!b/` would bring back everything in b, of which it says nothing for Git. Nor does `b/**` of b itself.
    """
    match = pattern.regex.match(place)
    if match is None:
        return False
    if _BELOW in match.re.groupindex:
        return match.end(_BELOW) in (-1, len(place))
    return pattern.regex.match(place.removesuffix("/")) is not None


def _patterns_of(file: Path) -> tuple[Any, ...]:
    """The patterns of a file, the last one first. What is no pattern is passed over, as Git does."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    from pathspec import GitIgnoreSpec  # late: for folders in which somebody says something

    found: list[Any] = []
    for line in reversed(lines):
        with suppress(ValueError):
            found += GitIgnoreSpec.from_lines([line]).patterns
    return tuple(pattern for pattern in found if pattern.include is not None)  # else it is a comment
