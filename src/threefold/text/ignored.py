"""What `.gitignore` leaves out of a folder: what a build has made, and what others have written.

Patterns by pathspec. Of two that match, the one of the nearer folder counts, as in Git.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from pathspec import GitIgnoreSpec

NAME = ".gitignore"
#: The group of pathspec's expressions that is the slash after a folder.
_BELOW = "ps_d"


class Ignored(NamedTuple):
    """The patterns that hold in a folder, by the folder that says them, the outermost first."""

    specs: tuple[tuple[Path, GitIgnoreSpec], ...] = ()

    @classmethod
    def around(cls, folder: Path) -> Self:
        """What the repository around a folder says, where there is one, but for the folder itself: whoever names what
        is left out wants it.
        """
        top = next((one for one in folder.parents if os.path.lexists(one / ".git")), None)
        if top is None or os.path.lexists(folder / ".git"):
            return cls()
        found = cls()
        for one in reversed([one for one in folder.parents if one == top or top in one.parents]):
            found = found.within(one)
        inner = (*found._below(folder, top), folder)
        return cls() if any(found.leaves_out(one, folder=True) for one in inner) else found

    def within(self, folder: Path) -> Self:
        """Together with what the folder itself says."""
        spec = _spec_of(folder / NAME)
        return self if spec is None else type(self)((*self.specs, (folder, spec)))

    def leaves_out(self, path: Path, *, folder: bool) -> bool:
        """Whether a file or folder below is left out. It must be below all folders that say something."""
        for root, spec in reversed(self.specs):
            place = path.relative_to(root).as_posix() + ("/" if folder else "")
            for pattern in reversed(list(spec.patterns)):
                if pattern.include is not None and _is_of(pattern, place):
                    return bool(pattern.include)
        return False

    @staticmethod
    def _below(folder: Path, top: Path) -> tuple[Path, ...]:
        """The folders between two."""
        return tuple(one for one in reversed(folder.parents) if top in one.parents)


def _is_of(pattern: Any, place: str) -> bool:
    """Whether a pattern matches a place itself. Those of pathspec match what is below, too, and mark where that begins:
    `!b/` would bring back everything in b, while for Git it says nothing of it.
    """
    match = pattern.regex.match(place)
    if match is None:
        return False
    begins = match.end(_BELOW) if _BELOW in match.re.groupindex else -1
    return bool(begins in (-1, len(place)))


def _spec_of(file: Path) -> GitIgnoreSpec | None:
    """The patterns of a file; None where there is none. What is no pattern is passed over, as Git does."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return GitIgnoreSpec.from_lines(line for line in lines if _is_pattern(line))


def _is_pattern(line: str) -> bool:
    with suppress(ValueError):
        GitIgnoreSpec.from_lines([line])
        return True
    return False
