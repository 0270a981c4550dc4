"""The state folder: what survives a restart. Every file is written under a temporary name, fsynced, and renamed.

    keeper.seed        base64url of the 32-byte Ed25519 seed; signs reports and renewals; never leaves the keeper
    link.seed          the link's nkey seed as text (`SU…`); the keeper signs the NATS server's nonce with it
    credentials.json   wire.Credentials as JSON: the last that the server gave
    keys.jws           the key set, signed by the root key
    ca.pem             optional: the authority of the server's certificate
    offline.secret     as enrolment gave it
    document.jws       the last valid document
    marks.json         trusted time and the highest document version, each minute (`trusted.Marks`)
    spool.db           SQLite: reports not yet acknowledged, first uses, runs, requests
    cgroup             the folder of the leaves when the keeper last started
    lock               held by the one keeper of this folder

The first six are written by enrolment, all others by the keeper.
"""

import fcntl
import logging
import os
from datetime import datetime
from pathlib import Path

log = logging.getLogger("sojourn.keeper")


class Unusable(Exception):
    """The keeper cannot begin; the message says why and what to do."""


class State:
    """The folder, and the only code that writes into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name

    def read(self, name: str) -> str | None:
        """The text of a file, or None when it is not there (or no text: then it is set aside)."""
        try:
            return self.path(name).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            self.set_aside(name, str(error))
            return None

    def need(self, name: str) -> str:
        """Raises Unusable when the file is missing."""
        if text := self.read(name):
            return text
        raise Unusable(f"{self.path(name)} is missing or empty: enrol this computer again (sojourn-agent enrol)")

    def write(self, name: str, text: str) -> None:
        """Replace a file durably, mode 0600."""
        path, new = self.path(name), self.path(name + ".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def set_aside(self, name: str, why: str, now: datetime | None = None) -> None:
        """Keep what cannot be used under another name, for people to look at; it is fetched or made again."""
        mark = f"{now:%Y%m%dT%H%M%S}" if now else str(os.getpid())
        aside = self.path(f"{name}.unusable-{mark}")
        log.error("%s cannot be used (%s): set aside as %s", self.path(name), why, aside.name)
        self.path(name).replace(aside)

    def lock(self) -> int:
        """Make this the one keeper of the folder; the descriptor holds the lock. Raises Unusable."""
        try:
            descriptor = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unusable(f"the state folder {self.folder} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Unusable(f"another keeper works in {self.folder}: stop that one first") from None
        return descriptor
