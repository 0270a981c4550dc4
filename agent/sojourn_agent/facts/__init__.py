"""What this computer knows of an application: facts taken from the open file, never from a name that may change, and
from what the computer's packages recorded of it.

The keeper remembers them (`keeper/judge.py`) for files that nobody but an administrator can change.
"""

import hashlib
import os
from collections.abc import Collection, Sequence

from sojourn_shared.contracts.wire import Application, Signature

from .dpkg import Dpkg
from .owner import Owner, Unreadable
from .rpm import Rpm

HASHED_UP_TO = 512 * 1024 * 1024
"""Bytes. Half a second of hashing at most: whoever asks with a huge file must not hold up anybody else."""

Packages = Sequence[Dpkg | Rpm]
"""The package databases of a computer. There may be none."""


def packages_of(root: str = "/") -> Packages:
    """The package databases that lie below `root`."""
    return [database for database in (Dpkg(root), Rpm(root)) if database.is_there()]


def stamp_of(packages: Packages) -> int:
    """Differs after a package came, changed or went: what was known of a file's package is then out of date."""
    return hash(tuple(database.stamp() for database in packages))


def facts_of(fd: int, path: str, *, trusted: bool, packages: Packages) -> Application:
    """The facts of the regular file that is open as `fd`; `path` is its real path, `trusted` if root alone can change
    all of it: nothing else is ever `verified`.

    The SHA-256 is null, and the signature not known, when the file is larger than HASHED_UP_TO or changed while it
    was read: an unknown fact never matches a rule. The offset of `fd` stays where it is. The caller adds the
    arguments and the working directory.

    Raises OSError when the file cannot be read.
    """
    owners, is_certain = _owners(path, packages)
    before = os.fstat(fd)
    algorithms = {"sha256"} | {owner.algorithm for owner in owners if owner.digest is not None}
    digests = _digests(fd, before.st_size, algorithms) if before.st_size <= HASHED_UP_TO else {}
    if _stamp(os.fstat(fd)) != _stamp(before):
        digests = {}
    # Several own it where packages of two architectures share a file.
    owner = next((one for one in owners if one.digest and one.digest == digests.get(one.algorithm)), None)
    owner = owner or next(iter(owners), None)
    return Application(
        path=path,
        executable=_name(fd, path),
        sha256=digests.get("sha256"),
        size=before.st_size,
        vendor=owner.vendor if owner else None,
        product=owner.product if owner else None,
        version=owner.version if owner else None,
        package=owner.package if owner else None,
        signature=_signature(owner, digests, trusted=trusted, is_certain=is_certain),
        platform="linux",
    )


def _owners(path: str, packages: Packages) -> tuple[list[Owner], bool]:
    """Of the first database that knows one; whether it is certain that there is none else."""
    is_certain = bool(packages)
    for database in packages:
        try:
            if owners := database.owners(path):
                return owners, True
        except Unreadable:
            is_certain = False
    return [], is_certain


def _signature(owner: Owner | None, digests: dict[str, str], *, trusted: bool, is_certain: bool) -> Signature:
    if owner is None:
        return Signature(status="unsigned" if is_certain else "unknown")
    found = digests.get(owner.algorithm)
    if owner.digest is None or found is None:
        return Signature(status="unknown")
    if found != owner.digest:
        return Signature(status="invalid", by=owner.by)
    # Equal, but others can change it, or what it loads, the next moment.
    return Signature(status="verified", by=owner.by) if trusted else Signature(status="unknown")


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Differs after each write: no program without root can set the change time (ctime)."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digests(fd: int, size: int, algorithms: Collection[str]) -> dict[str, str]:
    """Lower-case hex, by algorithm, of the first `size` bytes: a file that grows meanwhile cannot keep us here."""
    digests = {name: hashlib.new(name, usedforsecurity=name == "sha256") for name in algorithms}
    buffer, at = bytearray(256 * 1024), 0
    view = memoryview(buffer)
    while at < size and (count := os.preadv(fd, [view[: min(len(buffer), size - at)]], at)):
        for digest in digests.values():
            digest.update(view[:count])
        at += count
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _name(fd: int, path: str) -> str:
    """The file name of what is open, whatever link led there."""
    resolved = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
    return os.path.basename(resolved) or os.path.basename(path)
