"""The pseudo-terminal of a run: made for those of 0, 1, 2 that are terminals, and relayed by two threads.

The caller's terminal is never the application's: what is typed into the one, nobody can read back from the other.
"""

import contextlib
import fcntl
import os
import signal
import struct
import termios
import threading
from collections.abc import Sequence

_TIOCSIG = 0x40045436
"""Has the kernel signal a terminal's foreground: a process group's number may be another's by the time it is used."""


class Terminal:
    """A pseudo-terminal for those of 0, 1, 2 that are terminals, and the two threads that move its bytes."""

    def __init__(self, *, master: int | None, slave: int | None, reads: int | None, writes: int | None) -> None:
        self.master, self.slave = master, slave
        self.reads = reads is not None
        self._in, self._out = reads, writes
        self.broken, self._break = os.pipe2(os.O_CLOEXEC)
        self._writer: threading.Thread | None = None

    @classmethod
    def of(cls, descriptors: Sequence[int], *, relay: int | None, size: tuple[int, int] | None) -> "Terminal":
        """`descriptors`: the caller's 0, 1, 2; `relay`: at which of them the person types, if they do; `size`: rows and
        columns."""
        terminals = [number for number in (0, 1, 2) if os.isatty(descriptors[number])]
        if not terminals:
            return cls(master=None, slave=None, reads=None, writes=None)
        master, slave = os.openpty()
        shown_at = next(number for number in (1, 2, 0) if number in terminals)
        with contextlib.suppress(termios.error):
            # Its settings before the client sets it raw: what the person is used to.
            termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(descriptors[shown_at]))
        terminal = cls(
            master=master,
            slave=slave,
            reads=descriptors[relay] if relay in terminals and _opened(descriptors, relay, os.O_WRONLY) else None,
            writes=descriptors[shown_at] if _opened(descriptors, shown_at, os.O_RDONLY) else None,
        )
        if size is not None:
            terminal.resize(*size)
        return terminal

    def start(self) -> None:
        """The application is running: let its terminal be the one holder of the other side, and move bytes."""
        if self.master is None:
            return
        if self.slave is not None:
            os.close(self.slave)
        self._writer = threading.Thread(target=self._show, daemon=True)
        self._writer.start()
        if self._in is not None:
            threading.Thread(target=self._type, daemon=True).start()

    def resize(self, rows: int, columns: int) -> None:
        if self.master is not None and 0 < rows < 65536 and 0 < columns < 65536:
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def interrupts(self, number: int) -> bool:
        """Have the kernel signal what is in the foreground, if there is a terminal, and it does that for `number`."""
        if self.master is None or number not in (signal.SIGINT, signal.SIGQUIT):
            return False
        fcntl.ioctl(self.master, _TIOCSIG, number)
        return True

    def drain(self, seconds: float) -> None:
        """Let the last output reach the person, if they read it."""
        if self._writer is not None:
            self._writer.join(seconds)

    def _show(self) -> None:
        assert self.master is not None
        try:
            while chunk := _read(self.master):
                while chunk and self._out is not None:
                    chunk = chunk[os.write(self._out, chunk) :]
        except OSError:
            os.write(self._break, b"!")

    def _type(self) -> None:
        assert self.master is not None
        assert self._in is not None
        try:
            while chunk := os.read(self._in, 4096):
                while chunk:
                    chunk = chunk[os.write(self.master, chunk) :]
        except OSError:
            chunk = b""
        with contextlib.suppress(OSError):
            os.write(self._break, b"!")


def _opened(descriptors: Sequence[int], number: int | None, not_only: int) -> bool:
    """Whether the caller opened the descriptor for more than `not_only` (O_RDONLY or O_WRONLY)."""
    if number is None:
        return False
    return fcntl.fcntl(descriptors[number], fcntl.F_GETFL) & os.O_ACCMODE != not_only


def _read(master: int) -> bytes:
    """EIO is how a pseudo-terminal says that nobody is on its other side any more."""
    try:
        return os.read(master, 65536)
    except OSError:
        return b""
