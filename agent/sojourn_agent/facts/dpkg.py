"""What Debian's package database knows of a file, read directly: dpkg itself would take ten times as long.

The lists are searched for each question through one small buffer (about 10 ms for 800 packages; the keeper remembers
the answer), because an index of them would hold 17 MiB for ever. What the files hold, and that they are files at all,
is not taken for granted.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sojourn_shared.clock import boottime

from .owner import Owner, Unreadable, is_ours, plain, spellings

LIMIT = 3.0
"""Seconds for one question. A disk that nobody has read from yet answers within one."""

_CHUNK = 256 * 1024
_MOST_DIVERSIONS = 4 * 1024 * 1024
_MOST_STANZA = 256 * 1024
"""Bytes; both are many times what is found in practice."""
_WHOLE = frozenset({"installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending"})
"""States in which all of the package's files are there; in `half-installed` some may be."""
_GONE = frozenset({"config-files", "not-installed"})


@dataclass(frozen=True)
class _Listed:
    """A name under which packages list the file: each but `but`, or `only` one (None: whichever)."""

    name: bytes
    only: str | None = None
    but: str | None = None

    def counts_for(self, package: str) -> bool:
        return package != self.but and self.only in (None, package)


class Dpkg:
    """The database below `root`. Every question opens its files anew, and leaves none open."""

    def __init__(self, root: str = "/", *, limit: float = LIMIT) -> None:
        self._root = os.path.realpath(root)
        self._folder = os.path.join(self._root, "var/lib/dpkg")
        self._limit = limit

    def is_there(self) -> bool:
        return os.path.isfile(os.path.join(self._folder, "status"))

    def stamp(self) -> tuple[int, ...]:
        """Differs after each change: dpkg replaces these files, and all files of `info`, by renaming new ones."""
        stamp: list[int] = []
        for name in ("status", "info", "diversions"):
            try:
                status = os.stat(os.path.join(self._folder, name))
            except OSError:
                stamp += (0, 0, 0)
            else:
                stamp += (status.st_ino, status.st_mtime_ns, status.st_size)
        return tuple(stamp)

    def owners(self, path: str) -> list[Owner]:
        """The installed packages that the file at this real path belongs to: one, or the same one of several
        architectures. Raises Unreadable."""
        try:
            with _folder(self._folder) as folder, _folder("info", folder) as info:
                reading = _Reading(boottime() + self._limit)
                listed = self._listed(path, folder, reading)
                found = [owner for hit in _listing(info, listed, reading) if (owner := _owner(hit, folder, reading))]
        except (OSError, ValueError) as error:
            raise Unreadable(str(error)) from None
        return found

    def _listed(self, path: str, folder: int, reading: "_Reading") -> list[_Listed]:
        """Where another package diverted the name, its own file has it, and those of all others have another."""
        names = [os.fsencode(name) for name in spellings(path, self._root)]
        diversions = list(_diversions(folder, reading)) if names else []
        listed: list[_Listed] = []
        for name in names:
            moved_here = [(at, by) for at, to, by in diversions if to == name]
            moved_away = [by for at, _, by in diversions if at == name]
            if moved_here:
                listed += [_Listed(at, but=by) for at, by in moved_here]
            elif moved_away:  # by the administrator (`:`): whatever lies here is no package's
                listed += [_Listed(name, only=by) for by in moved_away]
            else:
                listed.append(_Listed(name))
        return listed


@dataclass(frozen=True)
class _Hit:
    """A package whose list names the file. `architecture` is empty for lists without it in their name."""

    info: int
    package: str
    architecture: str
    name: bytes

    @property
    def record(self) -> str:
        colon = f":{self.architecture}" if self.architecture else ""
        return f"{self.package}{colon}.md5sums"


def _listing(info: int, names: list[_Listed], reading: "_Reading") -> Iterator[_Hit]:
    """All lists are read, in the order of their names: which packages own a file must not depend on chance."""
    listed: dict[bytes, list[_Listed]] = {}
    for one in names:
        listed.setdefault(b"\n" + one.name + b"\n", []).append(one)
    if not (needles := list(listed)):
        return
    for file in sorted(name for name in os.listdir(info) if name.endswith(".list")):
        package, _, architecture = file.removesuffix(".list").partition(":")
        with _opened(file, info) as (fd, size):
            found = {needle for needle, _ in reading.find(fd, size, needles)}
        for needle in filter(found.__contains__, needles):
            if any(one.counts_for(package) for one in listed[needle]):
                yield _Hit(info, package, architecture, needle[1:-1])


def _owner(hit: _Hit, folder: int, reading: "_Reading") -> Owner | None:
    """None: the package was removed, and only its configuration is left. Raises Unreadable."""
    stanza = _stanza(hit, folder, reading)
    state = stanza.get("Status", "").split()
    if len(state) == 3 and state[2] in _GONE:
        return None
    if len(state) != 3 or state[2] not in _WHOLE | {"half-installed"}:
        raise Unreadable(f"the state of {hit.package} is not known")
    product = plain(hit.package)
    if product is None:
        raise Unreadable("a package has no plain name")
    is_whole = state[2] in _WHOLE and state[1] == "ok"
    return Owner(
        product=product,
        version=plain(stanza.get("Version")),
        vendor=_without_address(stanza.get("Maintainer")),
        algorithm="md5",
        digest=_recorded(hit, stanza, reading) if is_whole else None,
        by="dpkg",
    )


def _stanza(hit: _Hit, folder: int, reading: "_Reading") -> dict[str, str]:
    """The fields of the package in `status`; that of its architecture, or else the one that is installed."""
    needle = b"\nPackage: " + os.fsencode(hit.package) + b"\n"
    with _opened("status", folder) as (fd, size):
        starts = [at + 1 for _, at in reading.find(fd, size, [needle])]
        found = [_fields(os.pread(fd, _MOST_STANZA, start).partition(b"\n\n")[0]) for start in starts]
    if hit.architecture:
        found = [stanza for stanza in found if stanza.get("Architecture") == hit.architecture]
    if not found:
        raise Unreadable(f"{hit.package} has a list, and no state")
    return next((stanza for stanza in found if stanza.get("Status", "").endswith(" installed")), found[0])


def _fields(stanza: bytes) -> dict[str, str]:
    """A field's further lines follow its first one, each after a line feed."""
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.decode(errors="replace").split("\n"):
        if line.startswith((" ", "\t")):
            fields[name] = f"{fields.get(name, '')}\n{line.strip()}"
        else:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields


def _recorded(hit: _Hit, stanza: dict[str, str], reading: "_Reading") -> str | None:
    """The MD5 that the package gave for the file; configuration files have theirs in `status`."""
    name = os.fsdecode(hit.name)
    for line in stanza.get("Conffiles", "").split("\n"):
        if (conffile := _CONFFILE.fullmatch(line)) and conffile["name"] == name:
            return conffile["md5"]
    needle = b"  " + hit.name.removeprefix(b"/") + b"\n"
    try:
        with _opened(hit.record, hit.info) as (fd, size):
            for _, at in reading.find(fd, size, [needle]):
                before = os.pread(fd, 33, at - 33) if at > 32 else b"\n" + os.pread(fd, max(at, 0), 0)
                if _RECORD.fullmatch(before):
                    return before[1:].decode()
    except FileNotFoundError:  # not all packages have one
        return None
    return None


_CONFFILE = re.compile(r"(?P<name>/.*) (?P<md5>[0-9a-f]{32})(?: obsolete)?(?: remove-on-upgrade)?")
_RECORD = re.compile(rb"\n[0-9a-f]{32}")
_ADDRESS = re.compile(r"\s*<[^<>]*>\s*$")


def _without_address(maintainer: str | None) -> str | None:
    """`Example Maintainers <team@example.com>` without the address; an address alone is no name."""
    name = _ADDRESS.sub("", maintainer or "").strip()
    if len(name) > 1 and name.startswith('"') and name.endswith('"'):
        name = name[1:-1]
    return None if "@" in name and " " not in name else plain(name)


def _diversions(folder: int, reading: "_Reading") -> Iterator[tuple[bytes, bytes, str]]:
    """Whose name was diverted, to which, and for which package (`:` for the administrator)."""
    try:
        with _opened("diversions", folder) as (fd, size):
            lines = reading.whole(fd, size, _MOST_DIVERSIONS).split(b"\n")
    except FileNotFoundError:
        return
    if lines.pop() or len(lines) % 3:
        raise Unreadable("the diversions are damaged")
    for at in range(0, len(lines), 3):
        yield lines[at], lines[at + 1], os.fsdecode(lines[at + 2])


# --- files ------------------------------------------------------------------------------------------------------------


class _Reading:
    """Reads through one buffer, and not beyond a moment (seconds since boot)."""

    def __init__(self, until: float) -> None:
        self._until = until
        self._buffer = bytearray(_CHUNK)

    def find(self, fd: int, size: int, needles: list[bytes]) -> Iterator[tuple[bytes, int]]:
        """Each needle found in the first `size` bytes, and where it begins. A line feed is thought before the first
        line (at -1), and after the last one."""
        buffer = self._buffer
        with memoryview(buffer) as view:
            kept = max(map(len, needles)) - 1  # of one chunk's end, which may begin a needle
            view[0] = _LINE_FEED
            filled, origin = 1, -1  # `origin`: the file's offset of the buffer's first byte
            while True:
                self._in_time()
                end = filled + os.preadv(fd, [view[filled : _CHUNK - 1]], origin + filled)
                is_last = end == filled or origin + end >= size
                if is_last:
                    view[end] = _LINE_FEED
                    end += 1
                for needle in needles:
                    at = buffer.find(needle, 0, end)
                    while at >= 0:
                        yield needle, origin + at
                        at = buffer.find(needle, at + 1, end)
                if is_last:
                    return
                keep = min(kept, end)
                view[:keep] = view[end - keep : end]
                origin, filled = origin + end - keep, keep

    def whole(self, fd: int, size: int, most: int) -> bytes:
        """A small file's content. Raises Unreadable when it is larger than `most` bytes."""
        if size > most:
            raise Unreadable("a file of the package database is far too large")
        self._in_time()
        return os.pread(fd, size, 0)

    def _in_time(self) -> None:
        if boottime() > self._until:
            raise Unreadable("the package database takes too long")


_LINE_FEED = 10


@contextmanager
def _folder(name: str, within: int | None = None) -> Iterator[int]:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY, dir_fd=within)
    try:
        _must_be_ours(os.fstat(fd), name)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _opened(name: str, folder: int) -> Iterator[tuple[int, int]]:
    """A regular file, and its size. Raises Unreadable for everything else, which also cannot block."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=folder)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(f"{name} is no file")
        _must_be_ours(status, name)
        yield fd, status.st_size
    finally:
        os.close(fd)


def _must_be_ours(status: os.stat_result, name: str) -> None:
    if not is_ours(status):
        raise Unreadable(f"others than root can change {name}")
