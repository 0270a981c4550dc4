"""Files and folders that only their reader may read, written whole or not at all."""

import os
import stat
from pathlib import Path

from .process import Identity


def write_secret(file: Path, text: str, reader: Identity | None = None) -> None:
    """Write `text` with mode 0600 for `reader` (the caller if None): completely or not at all, and durably."""
    _write(file, text, 0o600, reader or Identity.caller())


def write_public(file: Path, text: str, mode: int = 0o644) -> None:
    """Write `text` for everybody to read; as durably."""
    _write(file, text, mode, Identity.caller())


def own(path: Path, identity: Identity, mode: int = 0o700) -> Path:
    """Make the folder `path` with `mode`, and give it (not what is in it) to `identity`."""
    path.mkdir(exist_ok=True)
    os.chown(path, identity.uid, identity.gid)
    path.chmod(mode)
    return path


def closed_folder(path: Path) -> Path | None:
    """The first folder on the real way to `path` that other users may not traverse; None if there is no such."""
    real = path.resolve()
    for folder in reversed([real, *real.parents]):
        try:
            mode = folder.stat().st_mode
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(mode) and not mode & stat.S_IXOTH:
            return folder
    return None


def _write(file: Path, text: str, mode: int, reader: Identity) -> None:
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
        os.fchown(descriptor, reader.uid, reader.gid)
        os.fchmod(descriptor, mode)
        out.flush()
        os.fsync(descriptor)
    fresh.rename(file)
