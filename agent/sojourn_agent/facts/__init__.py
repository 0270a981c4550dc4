"""What this computer knows of an application: facts taken from the open file, never from a name that may change."""

import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

from sojourn_shared.clock import system_clock
from sojourn_shared.contracts.wire import Application, Signature

HASHED_UP_TO = 512 * 1024 * 1024
"""Bytes. Half a second of hashing at most: whoever asks with a huge file must not hold up anybody else."""

SETTLED_AFTER = 2.0
"""Seconds. A file changed later than that may change again within one tick of its time stamps."""


def facts_of(fd: int, path: str, *, trusted: bool = False, clock: Callable[[], datetime] = system_clock) -> Application:
    """The facts of the regular file that is open as `fd`; `path` is its real path.

    `trusted` says that nobody but an administrator can write to that path: only then the digest is kept for the
    next time. The SHA-256 is null when the file is larger than HASHED_UP_TO, or changed while it was read: an
    unknown fact never matches a rule. The offset of `fd` stays where it is. The caller adds the arguments and the
    working directory.

    Raises OSError when the file cannot be read.
    """
    before = os.fstat(fd)
    key = _key(before)
    digest = _digests.get(key) if trusted else None
    if digest is None and before.st_size <= HASHED_UP_TO:
        digest = _digest(fd, before.st_size)
        if _key(os.fstat(fd)) != key:
            digest = None
        elif trusted and _is_settled(before, clock()):
            _digests.keep(key, digest)
    return Application(
        path=path,
        executable=_name(fd, path),
        sha256=digest,
        size=before.st_size,
        signature=Signature(status="unknown"),
        platform="linux",
    )


_Key = tuple[int, int, int, int, int]


class _Digests:
    """The digests of the files asked for lately; the oldest makes room."""

    LIMIT = 512

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, str] = OrderedDict()

    def get(self, key: _Key) -> str | None:
        if (digest := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return digest

    def keep(self, key: _Key, digest: str) -> None:
        self._kept[key] = digest
        if len(self._kept) > self.LIMIT:
            self._kept.popitem(last=False)


_digests = _Digests()


def _key(status: os.stat_result) -> _Key:
    """Names a file's content: no program without root can set the change time (ctime)."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_settled(status: os.stat_result, now: datetime) -> bool:
    """Also false for a file from the future: the clock was moved, and its time stamps tell nothing."""
    return now.timestamp() - max(status.st_mtime, status.st_ctime) > SETTLED_AFTER and stat.S_ISREG(status.st_mode)


def _digest(fd: int, size: int) -> str:
    """SHA-256 in lower-case hex of the first `size` bytes: a file that grows meanwhile cannot keep us here."""
    digest, buffer, at = hashlib.sha256(), bytearray(256 * 1024), 0
    view = memoryview(buffer)
    while at < size and (count := os.preadv(fd, [view[: min(len(buffer), size - at)]], at)):
        digest.update(view[:count])
        at += count
    return digest.hexdigest()


def _name(fd: int, path: str) -> str:
    """The file name of what is open, whatever link led there."""
    resolved = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
    return os.path.basename(resolved) or os.path.basename(path)
