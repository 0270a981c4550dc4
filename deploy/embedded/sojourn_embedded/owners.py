"""Whom each part runs as when root starts it: numbers that no OS user has. Nobody is created.

One group for all, so that they may reach each other's sockets; every secret is readable by one uid alone.
"""

import grp
import os
import pwd

from .process import CannotStart, Identity

GROUP = 64110
UIDS = {
    "postgres": 64111,
    "nats": 64112,
    "policy": 64113,
    "requests": 64114,
    "expiry": 64115,
    "audit": 64116,
    "gateway": 64117,
    "link": 64118,
}
SERVICES = ("policy", "requests", "expiry", "audit", "gateway")


def owner_of(part: str) -> Identity:
    """The identity of a part; the caller's if that is not root, who alone can start others."""
    return Identity(UIDS[part], GROUP) if os.geteuid() == 0 else Identity.caller()


def check_free() -> None:
    """Raises CannotStart if an OS user or group already has one of the numbers: it would read our secrets."""
    if os.geteuid() != 0:
        return
    for entry in pwd.getpwall():
        if entry.pw_uid in UIDS.values() or entry.pw_gid == GROUP:
            raise CannotStart(
                f"The OS user {entry.pw_name} has a number that Sojourn's parts run as ({GROUP}–{max(UIDS.values())}): "
                "give that user another one."
            )
    for group in grp.getgrall():
        if group.gr_gid == GROUP:
            raise CannotStart(f"The OS group {group.gr_name} has the number {GROUP}: give it another one.")
