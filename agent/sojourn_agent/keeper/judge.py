"""What a file is: opened once, held by a read lease, and judged by that descriptor and its whole real path.

Runs in a short-lived child of the keeper (the later warden): a slow file system or a huge file holds up nobody else.
"""

import contextlib
import fcntl
import os
import signal
import stat
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

from sojourn_agent.facts import facts_of, packages_of, stamp_of
from sojourn_shared.clock import system_clock
from sojourn_shared.contracts.wire import Application

SECURE_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where a bare name is looked for, and what PATH is inside; a folder that others can write to is left out."""

_F_SETLEASE = 1024
_MEDIA = ("/media/", "/run/media/")
_LINKS = 40
"""On one way; the kernel follows no more either."""
_SETTLED_AFTER = 2.0
"""Seconds; a file changed later than that may change again within one tick of its time stamps: not cached."""


class NotJudged(Exception):
    """The application is not run, whatever is granted. `exit`: 77 not trusted, 126 no executable, 127 no such."""

    def __init__(self, exit: int, code: str, why: str) -> None:
        super().__init__(why)
        self.exit = exit
        self.code = code
        self.why = why


Key = tuple[int, int, int, int, int, int]
Cache = MutableMapping[Key, Application]
"""Facts of files on trusted paths, without arguments, by (device, inode, size, mtime_ns, ctime_ns, stamp of the package
databases)."""


@dataclass(frozen=True)
class Caller:
    """Whose eyes the name is resolved with. Without root the agent has only its own."""

    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Judged:
    """`fd` is what will be executed, as `name` (its argv[0]).

    `leased`: the descriptors that hold the lease, given back right after. `hidden`: the caller could not have opened
    the file, and is told nothing about it unless it is granted.
    """

    fd: int
    name: str
    application: Application
    key: Key | None
    leased: tuple[int, ...]
    script: bool
    hidden: bool
    writable: str | None
    """The first folder (or file) of the real path that others can write to: then it is not elevated."""


def judge(name: str, cwd: int, caller: Caller, cache: Cache) -> Judged:
    """Open and judge what `name` means in the folder `cwd`. Raises NotJudged."""
    place, hidden = _place(name, cwd, caller)
    try:
        try:
            fd = _open(name, place)
        finally:
            os.close(place)
        with contextlib.ExitStack() as opened:  # closed, and their leases given back, unless all goes well
            opened.callback(os.close, fd)
            found = _judged(name, cwd, fd, hidden=hidden, cache=cache, opened=opened)
            opened.pop_all()
            return found
    except NotJudged:
        if hidden:  # not even what it is
            raise NotJudged(127, "no-such-program", unseen(name)) from None
        raise


def unseen(name: str) -> str:
    """All that is said of a file that the caller cannot see: the same whether it is there or not."""
    return f"{name}: there is no such program, or you may not see it"


def _judged(name: str, cwd: int, fd: int, *, hidden: bool, cache: Cache, opened: contextlib.ExitStack) -> Judged:
    path = _real_path(fd)
    writable = first_writable(path)
    leased = [fd] if _leases(fd, path) else []
    script = os.pread(fd, 2, 0) == b"#!"
    if script:
        interpreter_fd, named = _interpreter(fd, path)
        opened.callback(os.close, interpreter_fd)
        leased += [interpreter_fd] if _leases(interpreter_fd, _real_path(interpreter_fd)) else []
        # The kernel looks the name up again, and interpreters look beside it for what they load.
        writable = writable or first_writable_on_way(named)
    application, key = _facts(fd, path, trusted=writable is None, cache=cache)
    return Judged(
        fd=fd,
        name=name if _is_systems_name(name, cwd) else path,
        application=application,
        key=key,
        leased=tuple(leased),
        script=script,
        hidden=hidden,
        writable=writable,
    )


def first_writable(path: str) -> str | None:
    """The first part of a real path that somebody but root can change; None: root alone can.

    An access list's entries show in the group bits (its mask), so they count too.
    """
    foreign = _mounted_by_users()
    return next((part for part in _parts(path) if _is_writable(part, foreign)), None)


def first_writable_on_way(name: str) -> str | None:
    """The same for an absolute name and everything that leads from it to the file, links included."""
    foreign = _mounted_by_users()
    at, rest, links = "/", name.split("/")[::-1], 0
    while rest:
        if _is_writable(at, foreign):
            return at
        match rest.pop():
            case "" | ".":
                continue
            case "..":
                at = os.path.dirname(at)
                continue
            case part:
                here = os.path.join(at, part)
        try:
            status = os.lstat(here)
            target = os.readlink(here) if stat.S_ISLNK(status.st_mode) else None
        except OSError:
            return here
        if target is None:
            at = here
        elif status.st_uid != 0 or (links := links + 1) > _LINKS:
            return here
        else:
            rest += target.split("/")[::-1]
            at = "/" if target.startswith("/") else at
    return at if _is_writable(at, foreign) else None


def lease_broken() -> bool:
    """Whether somebody wants to write to what we hold: SIGIO, which must be blocked, is waiting."""
    return signal.SIGIO in signal.sigpending()


def secure_path() -> tuple[str, ...]:
    return tuple(folder for folder in SECURE_PATH if first_writable(os.path.realpath(folder)) is None)


# --- opening ----------------------------------------------------------------------------------------------------------


def _place(name: str, cwd: int, caller: Caller) -> tuple[int, bool]:
    """The file that is meant, not opened yet (O_PATH), and whether the caller cannot see it."""
    if not name:
        raise NotJudged(127, "no-such-program", "no program is named")
    if "/" in name:
        return _place_as(name, cwd, caller)
    return _place_on_secure_path(name), False


def _open(name: str, place: int) -> int:
    """A descriptor for reading, close-on-exec, of a regular executable file."""
    status = os.fstat(place)
    if not stat.S_ISREG(status.st_mode):
        raise NotJudged(126, "not-executable", f"{name} is {_kind(status.st_mode)}, not a program")
    if not status.st_mode & 0o111:
        raise NotJudged(126, "not-executable", f"{name} is not executable")
    try:
        # The inode is certain now, so that opening it cannot block on a FIFO or a device.
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise NotJudged(126, "not-executable", f"{name} cannot be opened: {error.strerror}") from None


def _is_systems_name(name: str, cwd: int) -> bool:
    """Whether the program may be called what the caller typed, because root alone made all that leads there.

    Programs such as busybox do what their name says, and interpreters load what lies beside it: a link in a folder of
    the caller's would bring both.
    """
    return "/" not in name or first_writable_on_way(os.path.join(os.readlink(f"/proc/self/fd/{cwd}"), name)) is None


def _place_as(name: str, cwd: int, caller: Caller) -> tuple[int, bool]:
    try:
        with _eyes_of(caller):
            return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=cwd), False
    except PermissionError:
        pass
    except (OSError, ValueError) as error:
        raise _no_such(name, error) from None
    try:
        return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=cwd), True
    except (OSError, ValueError):
        raise NotJudged(127, "no-such-program", unseen(name)) from None


def _place_on_secure_path(name: str) -> int:
    for folder in secure_path():
        try:
            place = os.open(os.path.join(folder, name), os.O_PATH | os.O_CLOEXEC)
        except (OSError, ValueError):
            continue
        status = os.fstat(place)
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
            return place
        os.close(place)
    raise NotJudged(
        127, "no-such-program", f"{name}: there is no such program on the system's path; name it with its folder"
    )


def _no_such(name: str, error: Exception) -> NotJudged:
    told = error.strerror if isinstance(error, OSError) else str(error)
    return NotJudged(127, "no-such-program", f"{name}: {told}")


@contextlib.contextmanager
def _eyes_of(caller: Caller) -> Iterator[None]:
    """Look names up with the caller's rights, so that nobody learns of files that they cannot see."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups(caller.groups)
    os.setegid(caller.gid)
    os.seteuid(caller.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _real_path(fd: int) -> str:
    """The path that leads to this very inode, here, now. Raises NotJudged when none does.

    A descriptor from another mount namespace shows a path too, which means another file here: hence the look back.
    """
    path = os.readlink(f"/proc/self/fd/{fd}")
    here = os.fstat(fd)
    try:
        there = os.lstat(path)
        path.encode()
    except (OSError, UnicodeEncodeError):
        raise NotJudged(126, "not-executable", "the program's file was removed or has no plain path") from None
    if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino) or not path.startswith("/"):
        raise NotJudged(126, "not-executable", f"the program's file is not what {path} is on this computer")
    return path


def _leases(fd: int, path: str) -> bool:
    """Take a read lease; False where the file system knows none. Raises NotJudged when somebody has it open to write.

    Without root it is not taken: nothing is executed there.
    """
    if os.geteuid() != 0:
        return False
    try:
        fcntl.fcntl(fd, _F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        raise NotJudged(126, "open-for-writing", f"{path} is open for writing: try again when nobody writes") from None
    except OSError:
        return False  # on a trusted path only root could write; others are refused anyway
    return True


def _interpreter(fd: int, path: str) -> tuple[int, str]:
    """A descriptor of what `#!` names, and that name. Raises NotJudged."""
    line = os.pread(fd, 256, 0)[2:].split(b"\n", 1)[0].strip(b" \t\r")
    words = line.split(None, 1)
    if not words or not words[0].startswith(b"/") or b"\0" in words[0]:
        raise NotJudged(126, "not-executable", f"{path}: its first line names no interpreter by its whole path")
    name = os.fsdecode(words[0])
    try:
        place = os.open(name, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise NotJudged(126, "not-executable", f"{path}: its interpreter {name} is no regular file")
            interpreter = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        finally:
            os.close(place)
    except OSError as error:
        raise NotJudged(126, "not-executable", f"{path}: its interpreter {name}: {error.strerror}") from None
    if os.pread(interpreter, 2, 0) == b"#!":
        os.close(interpreter)
        raise NotJudged(126, "not-executable", f"{path}: its interpreter {name} is a script itself")
    return interpreter, name


# --- facts and trust --------------------------------------------------------------------------------------------------


def _facts(fd: int, path: str, *, trusted: bool, cache: Cache) -> tuple[Application, Key | None]:
    status = os.fstat(fd)
    packages = packages_of()
    stamp = stamp_of(packages)
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, stamp)
    # One inode may have several names (hard links), but a package owns it under one of them.
    if trusted and (known := cache.get(key)) is not None and known.path == path:
        return known, None
    try:
        application = facts_of(fd, path, trusted=trusted, packages=packages)
    except OSError as error:
        raise NotJudged(126, "not-executable", f"{path} cannot be read: {error.strerror}") from None
    changed = max(status.st_mtime, status.st_ctime)
    settled = system_clock().timestamp() - changed > _SETTLED_AFTER and stamp_of(packages) == stamp
    # What could not be known now may be known the next time, unless nothing here could ever tell.
    complete = application.sha256 is not None and (application.signature.status != "unknown" or not packages)
    return application, key if trusted and settled and complete else None


def _parts(path: str) -> Iterator[str]:
    yield "/"
    at = 0
    while (at := path.find("/", at + 1)) > 0:
        yield path[:at]
    yield path


def _is_writable(part: str, foreign: frozenset[int]) -> bool:
    """Whether somebody but root can change this folder or file, or it cannot be seen."""
    try:
        status = os.lstat(part)
    except OSError:
        return True
    return status.st_uid != 0 or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) or status.st_dev in foreign


def _mounted_by_users() -> frozenset[int]:
    """The devices of file systems that ordinary users bring: their FUSE ones, and what a desktop mounts for them
    (a stick, an image). On those, files may say that they are root's, whoever wrote them."""
    devices, helped = set(), _mounted_with_help()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            fields, _, rest = line.strip().partition(" - ")
            _, _, device, _, place, options, *_ = fields.split(" ")
            is_users_fuse = rest.startswith("fuse") and "user_id=0" not in rest.rpartition(" ")[2].split(",")
            is_medium = place.startswith(_MEDIA) and "nosuid" in options.split(",")
            if is_users_fuse or is_medium or place in helped:
                major, minor = device.split(":")
                devices.add(os.makedev(int(major), int(minor)))
    return frozenset(devices)


def _mounted_with_help() -> frozenset[str]:
    """Where something was mounted for a user who is not root, as libmount notes it."""
    try:
        with open("/run/mount/utab", encoding="utf-8", errors="replace") as table:
            lines = [line.split() for line in table]
    except OSError:
        return frozenset()
    mounts = [dict(word.partition("=")[::2] for word in words) for words in lines]
    return frozenset(
        mount.get("TARGET", "")
        for mount in mounts
        if any(option.startswith(("uhelper=", "user=")) for option in mount.get("OPTS", "").split(","))
    )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "no regular file")
