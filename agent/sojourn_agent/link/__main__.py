"""`python -m sojourn_agent.link --fd N [--uid U --gid G]`: started by the keeper, never by hand."""

import argparse
import asyncio
import ctypes
import encodings.idna  # noqa: F401  (name lookups import it late; after the change of uid the folder may be closed)
import logging
import os
import signal
import socket
import sys

from .link import Link

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 1, 38, 4


def main() -> int:
    parser = argparse.ArgumentParser(prog="sojourn_agent.link", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the link's end of the keeper's socketpair")
    parser.add_argument("--uid", type=int, help="become this user before anything is read")
    parser.add_argument("--gid", type=int, help="and this group")
    given = parser.parse_args()
    keeper = os.getppid()
    # Everything is imported by now: an installation under a closed folder could not be read as another user.
    become(given.uid, given.gid)
    if os.getuid() == 0:
        sys.stderr.write("sojourn link: it does not run as root; the keeper starts it with --uid and --gid\n")
        return 1
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # others of that uid must not read or trace it
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the change of uid, which clears it
    if os.getppid() != keeper:
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the keeper, which then closes the socket
    logging.basicConfig(format="link: %(message)s", level=logging.INFO, stream=sys.stderr)
    # Not `asyncio.run`: at the end it would wait for a thread that still waits for an HTTPS answer.
    asyncio.new_event_loop().run_until_complete(_link(given.fd))
    return 0


async def _link(fd: int) -> None:
    await Link(socket.socket(fileno=fd)).run()


def become(uid: int | None, gid: int | None) -> None:
    """Drop root for good, groups included; nothing happens for who is not root."""
    if os.getuid() == 0 and uid:
        os.setgroups([])
        os.setresgid(gid or uid, gid or uid, gid or uid)
        os.setresuid(uid, uid, uid)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # nor does such a thread keep the process
