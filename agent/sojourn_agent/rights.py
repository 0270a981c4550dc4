"""Who uses this computer, and who is an administrator of it anyway: read from its files, and only read.

Directory services are not asked: listing them can take minutes, and they know thousands that never come here.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sojourn_shared.contracts.wire import ComputerUser, StandingRight

FIRST_PERSON, NOBODY = 1000, 65534
"""The uids of people begin at 1000 on every distribution in use; `nobody` is none."""
REPORTED = 500
"""At most so many of each: a health report has 64 KiB."""
ADMIN_GROUPS = ("sudo", "wheel", "admin", "docker", "lxd")
"""The first three may usually use sudo; who may talk to a container daemon is root with one command."""


def computer_users(root: Path = Path("/")) -> list[ComputerUser]:
    """The people who have a local account, by uid; neither root nor the accounts of services."""
    people = [entry for entry in _passwd(root) if entry.uid >= FIRST_PERSON and entry.uid != NOBODY]
    return [ComputerUser(name=entry.name, uid=entry.uid) for entry in sorted(people, key=lambda e: e.uid)][:REPORTED]


def standing_rights(root: Path = Path("/")) -> list[StandingRight]:
    """Everybody but root who can become root at any time, and through what; one line for each way.

    Ways: another name for uid 0, membership of an administrators' group, an entry of sudoers (a group's entry for
    each of its members). What this process may not read is left out: the keeper, as root, may.
    """
    accounts = list(_passwd(root))
    groups = _members(root, accounts)
    found = [(entry.name, "uid 0") for entry in accounts if entry.uid == 0]
    found += [(name, f"group {group}") for group in ADMIN_GROUPS for name in sorted(groups.get(group, ()))]
    for spec in _sudoers(root):
        through = f"sudoers ({spec.file}: {spec.what})"
        for user in spec.users:
            if user.startswith("%"):
                group = user[1:]
                if group not in ADMIN_GROUPS:  # its members are told above
                    found += [(name, f"{through} by group {group}") for name in sorted(groups.get(group, ()))]
            elif user == "ALL":
                found.append(("(all users)", through))
            elif user.startswith("#"):
                named = [entry.name for entry in accounts if str(entry.uid) == user[1:]]
                found += [(name, through) for name in named or [user]]
            else:
                found.append((user, through))
    return [StandingRight(user=user, through=way) for user, way in dict.fromkeys(found) if user != "root"][:REPORTED]


class _Account(NamedTuple):
    name: str
    uid: int
    gid: int


def _passwd(root: Path) -> Iterator[_Account]:
    for line in _lines(root / "etc/passwd"):
        fields = line.split(":")
        if len(fields) >= 7 and fields[0] and fields[2].isdigit() and fields[3].isdigit():
            yield _Account(fields[0], int(fields[2]), int(fields[3]))


def _members(root: Path, accounts: Iterable[_Account]) -> dict[str, set[str]]:
    """Names by group, those included whose first group it is."""
    members: dict[str, set[str]] = {}
    by_gid: dict[int, str] = {}
    for line in _lines(root / "etc/group"):
        fields = line.split(":")
        if len(fields) >= 4 and fields[2].isdigit():
            members[fields[0]] = {name for name in fields[3].split(",") if name}
            by_gid[int(fields[2])] = fields[0]
    for account in accounts:
        if account.gid in by_gid:
            members[by_gid[account.gid]].add(account.name)
    return members


# --- sudoers: who is named, not what exactly is allowed ---------------------------------------------------------------


class _Spec(NamedTuple):
    users: tuple[str, ...]
    what: str
    file: str


_Aliases = dict[str, list[str]]
_WORD = r'(?:"[^"]*"|(?:\\.|[^\s,=\\"])+)'
_USERS = re.compile(rf"({_WORD}(?:\s*,\s*{_WORD})*)\s+([^=]+=.*)")
_ALIAS = re.compile(r"\s*(\w+)\s*=\s*(.+)")
_NO_USERS = ("Defaults", "Host_Alias", "Runas_Alias", "Cmnd_Alias", "Cmd_Alias")


def _sudoers(root: Path) -> list[_Spec]:
    aliases: _Aliases = {}
    specs: list[_Spec] = []
    for file, line in _sudoers_lines(root, Path("/etc/sudoers"), frozenset()):
        if line.startswith("User_Alias"):
            for part in line.removeprefix("User_Alias").split(":"):
                if alias := _ALIAS.match(part):
                    aliases[alias[1]] = _names(alias[2])
        elif not line.startswith(_NO_USERS) and (spec := _USERS.match(line)):
            specs.append(_Spec(tuple(_names(spec[1])), " ".join(spec[2].split())[:120], str(file)))
    return [_Spec(tuple(_expanded(spec.users, aliases)), spec.what, spec.file) for spec in specs]


def _sudoers_lines(root: Path, file: Path, above: frozenset[Path]) -> Iterator[tuple[Path, str]]:
    """Lines with their file, included files in their place; continued lines joined, comments left out."""
    if file in above:
        return
    text = "\n".join(_lines(root / file.relative_to("/"))).replace("\\\n", " ")
    for line in map(str.strip, text.splitlines()):
        word, _, rest = line.partition(" ")
        place = Path("/etc", rest.strip().strip('"'))
        if word in ("@include", "#include"):
            yield from _sudoers_lines(root, place, above | {file})
        elif word in ("@includedir", "#includedir"):
            with contextlib.suppress(OSError):
                for name in sorted(os.listdir(root / place.relative_to("/"))):
                    if "." not in name and not name.endswith("~"):  # as sudo does
                        yield from _sudoers_lines(root, place / name, above | {file})
        elif line and (not line.startswith("#") or re.match(r"#\d", line)):
            yield file, re.sub(r"\s#(?!\d).*", "", line)


def _names(text: str) -> list[str]:
    return [word.strip('"').replace("\\", "") for word in re.findall(_WORD, text)]


def _expanded(
    users: Iterable[str], aliases: dict[str, list[str]], above: frozenset[str] = frozenset()
) -> Iterator[str]:
    for user in users:
        if user in aliases and user not in above:
            yield from _expanded(aliases[user], aliases, above | {user})
        elif not user.startswith("!"):
            yield user


def _lines(file: Path) -> list[str]:
    """Empty when it is not there or may not be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
