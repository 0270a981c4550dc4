"""What this computer knows of an application: facts taken from the open file, never from a name that may change.

The keeper remembers them (`keeper/judge.py`) for files that nobody but an administrator can change.
"""

import hashlib
import os

from sojourn_shared.contracts.wire import Application, Signature

HASHED_UP_TO = 512 * 1024 * 1024
"""Bytes. Half a second of hashing at most: whoever asks with a huge file must not hold up anybody else."""


def facts_of(fd: int, path: str) -> Application:
    """The facts of the regular file that is open as `fd`; `path` is its real path.

    The SHA-256 is null when the file is larger than HASHED_UP_TO, or changed while it was read: an unknown fact never
    matches a rule. The offset of `fd` stays where it is. The caller adds the arguments and the working directory.

    Raises OSError when the file cannot be read.
    """
    before = os.fstat(fd)
    digest = _digest(fd, before.st_size) if before.st_size <= HASHED_UP_TO else None
    if digest and _stamp(os.fstat(fd)) != _stamp(before):
        digest = None
    return Application(
        path=path,
        executable=_name(fd, path),
        sha256=digest,
        size=before.st_size,
        signature=Signature(status="unknown"),
        platform="linux",
    )


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Differs after each write: no program without root can set the change time (ctime)."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


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
