"""What the package database of rpm knows of a file, asked of rpm itself: its database has several formats.

The question names no shell and takes no more than a few seconds; of the answer only the file's own lines are kept.
"""

import os
import select
import signal
from collections.abc import Iterator

from sojourn_shared.clock import boottime

from .owner import Owner, Unreadable, is_ours, plain, spellings

LIMIT = 5.0
"""Seconds for one question."""
QUESTION = (
    r"[%{=NAME}\t%{=EPOCHNUM}\t%{=VERSION}-%{=RELEASE}\t%{=VENDOR}\t%{=FILEDIGESTALGO}"
    r"\t%{FILEDIGESTS}\t%{FILESTATES}\t%{FILENAMES}\n]"
)
"""A line for each file of the package; the name comes last, because it may hold anything but a line feed."""

_DATABASES = ("var/lib/rpm", "usr/lib/sysimage/rpm")
_FILES = ("rpmdb.sqlite", "rpmdb.sqlite-wal", "Packages.db", "Packages")
_MOST = 64 * 1024 * 1024
"""Bytes of an answer; 200,000 files of one package are less."""
_ALGORITHMS = {b"1": "md5", b"(none)": "md5", b"2": "sha1", b"8": "sha256", b"9": "sha384", b"10": "sha512"}
"""As rpm numbers them (RFC 4880, section 9.4); packages older than the field have MD5."""
_NOBODYS = b"is not owned by any package"
_NORMAL = b"0"
"""The state of a file that lies there; others were replaced by another package's, or left out."""


class Rpm:
    """The database below `root`, asked through the rpm that lies there."""

    def __init__(self, root: str = "/", *, limit: float = LIMIT) -> None:
        self._root = os.path.realpath(root)
        self._program = os.path.join(self._root, "usr/bin/rpm")
        self._limit = limit

    def is_there(self) -> bool:
        return any(self.stamp()) and os.access(self._program, os.X_OK)

    def stamp(self) -> tuple[int, ...]:
        """Differs after each change; all zero without a database."""
        stamp: list[int] = []
        for folder in _DATABASES:
            for name in _FILES:
                try:
                    status = os.stat(os.path.join(self._root, folder, name))
                except OSError:
                    stamp += (0, 0, 0)
                else:
                    stamp += (status.st_ino, status.st_mtime_ns, status.st_size)
        return tuple(stamp)

    def owners(self, path: str) -> list[Owner]:
        """The installed packages that the file at this real path belongs to. Raises Unreadable."""
        names = {os.fsencode(name) for name in spellings(path, self._root)}
        if not names:
            return []
        owners: list[Owner] = []
        said = b""
        answered = False
        try:
            if not is_ours(os.stat(self._program)):
                raise Unreadable("others than root can change rpm")
            for said in self._lines(path):
                fields = said.split(b"\t", 7)
                if len(fields) == 8 and fields[7] in names:
                    answered = True
                    owners += _owner(fields)
        except OSError as error:
            raise Unreadable(str(error)) from None
        if not answered and not said.endswith(_NOBODYS):
            raise Unreadable("rpm gives no answer that can be read")
        return owners

    def _lines(self, path: str) -> Iterator[bytes]:
        """What rpm prints. Its words are no matter of this computer's language, and root's settings none of rpm's."""
        import subprocess  # noqa: PLC0415 (1 MiB that computers without rpm need not hold)

        until = boottime() + self._limit
        asked = subprocess.Popen(
            [self._program, "-q", "--qf", QUESTION, "-f", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            process_group=0,
            env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"},
        )
        assert asked.stdout is not None
        try:
            yield from _lines_of(asked.stdout.fileno(), until)
        finally:
            asked.stdout.close()
            os.killpg(asked.pid, signal.SIGKILL)  # it is not reaped yet, so the number is still its own
            asked.wait()


def _lines_of(fd: int, until: float) -> Iterator[bytes]:
    """Without their line feeds, the last one too when it has none."""
    heard, rest = 0, b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, until - boottime()) * 1000):
            raise Unreadable("rpm takes too long")
        chunk = os.read(fd, 64 * 1024)
        heard += len(chunk)
        if heard > _MOST:
            raise Unreadable("rpm does not come to an end")
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if not chunk:
            if rest:
                yield rest
            return


def _owner(fields: list[bytes]) -> Iterator[Owner]:
    name, epoch, version, vendor, algorithm, digest, state, _ = fields
    product = plain(name.decode(errors="replace"))
    if product is None or state != _NORMAL:
        return
    told = version.decode(errors="replace")
    yield Owner(
        product=product,
        version=plain(told if epoch in (b"0", b"(none)") else f"{epoch.decode(errors='replace')}:{told}"),
        vendor=None if vendor == b"(none)" else plain(vendor.decode(errors="replace")),
        algorithm=_ALGORITHMS.get(algorithm, "md5"),
        digest=digest.decode(errors="replace").lower() or None if algorithm in _ALGORITHMS else None,
        by="rpm",
    )
