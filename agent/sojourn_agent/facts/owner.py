"""What a package database answers about a file, and what is asked of every such database.

Whatever lies in a database's files is text of others: it is cut to what the server takes, or is not known.
"""

import os
import stat
import unicodedata
from dataclasses import dataclass

MOST_TEXT = 1000
"""Characters of one fact: the server takes no longer ones."""


class Unreadable(Exception):
    """The database is damaged, changes just now, or takes too long: who owns the file is not known."""


@dataclass(frozen=True)
class Owner:
    """An installed package that the file belongs to.

    `digest`: what the package recorded of the file's content, lower-case hex of `algorithm` (a name that hashlib
    knows); None: it recorded nothing, or is not whole. `by`: whose record that is.
    """

    product: str
    version: str | None
    vendor: str | None
    algorithm: str
    digest: str | None
    by: str

    @property
    def package(self) -> str | None:
        """Name and version."""
        return plain(f"{self.product} {self.version}") if self.version else None


def spellings(path: str, root: str) -> list[str]:
    """The names under which a database that lies in `root` may list the real path `path`; both are real paths.

    Where `/bin` is a link to `/usr/bin` (merged /usr), packages may still call the file `/bin/ls`. Nothing outside of
    `root`, and no path that a line cannot hold, has a name.
    """
    inside = path if root == "/" else path[len(root) :] if path.startswith(f"{root}/") else ""
    if not inside or "\n" in inside:
        return []
    names = [inside]
    if inside.startswith("/usr/"):
        top, _, rest = inside.removeprefix("/usr/").partition("/")
        if rest and os.path.realpath(os.path.join(root, top)) == os.path.join(root, "usr", top):
            names.append(f"/{top}/{rest}")
    return names


def is_ours(status: os.stat_result) -> bool:
    """Whether root alone (without root: this user or root) can have written it. Otherwise it proves nothing."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def plain(text: str | None) -> str | None:
    """The text without blanks around it; None when it is empty, too long, or holds control characters.

    A text that is cut could equal another one: it is rather not known at all.
    """
    told = (text or "").strip()
    if not told or len(told) > MOST_TEXT or any(unicodedata.category(one) in {"Cc", "Cs"} for one in told):
        return None
    return told
