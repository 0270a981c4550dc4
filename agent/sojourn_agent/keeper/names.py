"""Who a uid is on this computer. The local file answers at once; directory services are asked in a child."""

import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from sojourn_shared.clock import boottime
from sojourn_shared.contracts.wire import ReportingUser

from .children import ask
from .cover import Who
from .loop import Loop

_LIMIT = 2.0
"""Seconds that a directory service gets; a person waits, nobody else does."""
_REMEMBERED = 60.0
_FORGOTTEN = 5.0
"""Seconds that an answer, and that no answer, is remembered."""


@dataclass(frozen=True)
class Person:
    """`why_unnamed`: the computer knows no name for the uid, and the reason."""

    uid: int
    names: tuple[str, ...]
    why_unnamed: str | None = None

    @property
    def who(self) -> Who:
        return Who(self.uid, frozenset(self.names))

    @property
    def reporting(self) -> ReportingUser:
        return ReportingUser(name=self.names[0] if self.names else str(self.uid), uid=self.uid)


class Names:
    """Names by uid; every name that the local file has for a uid counts."""

    def __init__(self, loop: Loop, file: str = "/etc/passwd") -> None:
        self._loop = loop
        self._file = file
        self._read: tuple[int, int, int] | None = None
        self._local: dict[int, tuple[str, ...]] = {}
        self._remote: dict[int, tuple[float, Person]] = {}

    def find(self, uid: int, then: Callable[[Person], None]) -> None:
        """Calls `then`, perhaps before this returns, and always within `_LIMIT` seconds."""
        if names := self._local_names().get(uid):
            then(Person(uid, names))
            return
        if (known := self._remote.get(uid)) and boottime() < known[0]:
            then(known[1])
            return

        def answered(body: bytes | None) -> None:
            name = msgspec.json.decode(body, type=str | None) if body else None
            if name:
                person = Person(uid, (name,))
            elif body is None:
                person = Person(uid, (), "the computer's name service does not answer")
            else:
                person = Person(uid, (), f"this computer has no name for user id {uid}")
            if len(self._remote) > 1000:
                self._remote.clear()
            self._remote[uid] = boottime() + (_REMEMBERED if name else _FORGOTTEN), person
            then(person)

        ask(self._loop, lambda: _name_of(uid), _LIMIT, answered)

    def _local_names(self) -> dict[int, tuple[str, ...]]:
        status = os.stat(self._file)
        if self._read != (key := (status.st_ino, status.st_size, status.st_mtime_ns)):
            names: dict[int, tuple[str, ...]] = {}
            with open(self._file, encoding="utf-8", errors="surrogateescape") as file:
                for line in file:
                    fields = line.rstrip("\n").split(":")
                    if (
                        len(fields) >= 7
                        and fields[2].isdigit()
                        and fields[0].isprintable()
                        and fields[0][:1] not in "+-"
                    ):
                        uid = int(fields[2])
                        names[uid] = (*names.get(uid, ()), fields[0])
            self._local, self._read = names, key
        return self._local


def _name_of(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
