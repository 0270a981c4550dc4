"""Where the services are forked from: a process that has imported everything once, and has read no secret.

Importing the frame costs a second of CPU and 60 MiB; forked services share it. Each drops to its own uid before it
reads its own secrets, and ends when this process does, as this one ends with its parent.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from types import FrameType
from typing import Any, NoReturn

from sojourn_shared.service import BadSettings, serve

from . import prepare
from .owners import SERVICES
from .process import Identity, die_with

# Imported at first use, which would be once in each service.
_LATE = (
    "encodings.idna",
    "pydantic.v1",
    "alembic.op",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.auto",
    "sqlalchemy.dialects.postgresql.asyncpg",
)


def main() -> None:
    """`python -m sojourn_embedded.nursery DESCRIPTOR`: take orders from a SEQPACKET socket until it is closed.

    Orders: `{"start": service, "environ", "uid", "gid", "log"}`, `{"prepare": function, "arguments"}`.
    Told: `{"ready"}`, `{"started", "pid"}`, `{"ended", "pid", "status"}`, `{"prepared", "result"|"problem"}`.
    """
    gc.disable()  # a collection between imports would leave holes, which children fill: in shared pages
    channel = socket.socket(fileno=int(sys.argv[1]))
    wake, waker = socket.socketpair()
    wake.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, _noted)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    for name in _LATE:
        importlib.import_module(name)
    services = {name: importlib.import_module(f"sojourn_{name}.app").SERVICE for name in SERVICES}
    gc.freeze()  # a collection in a child would write to every shared page
    _tell(channel, ready=True)

    names: dict[int, str] = {}
    with selectors.DefaultSelector() as ready:
        ready.register(channel, selectors.EVENT_READ)
        ready.register(wake, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is wake:
                    wake.recv(4096)
                    _reap(channel, names)
                    continue
                packet = channel.recv(1 << 16)
                if not packet:  # the launcher is gone; so will be our children, by PDEATHSIG
                    os._exit(0)
                order = json.loads(packet)
                parent, child = os.getpid(), os.fork()
                if child == 0:
                    signal.set_wakeup_fd(-1)
                    _become(order, channel, services, parent)
                if "start" in order:
                    names[child] = order["start"]
                    _tell(channel, started=order["start"], pid=child)


def _become(order: dict[str, Any], channel: socket.socket, services: dict[str, Any], parent: int) -> NoReturn:
    """In the child: do what was ordered, then leave. Never returns into the nursery's loop."""
    status = 1
    try:
        gc.enable()
        for each in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        if "prepare" in order:
            die_with(parent, signal.SIGKILL)
            result = getattr(prepare, order["prepare"])(**order["arguments"])
            _tell(channel, prepared=order["prepare"], result=result)
            status = 0
        else:
            channel.close()
            status = _serve(order, services[order["start"]], parent)
    except Exception as error:
        traceback.print_exc()
        if "prepare" in order:
            _tell(channel, prepared=order["prepare"], problem=f"{type(error).__name__}: {error}")
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def _serve(order: dict[str, Any], service: Any, parent: int) -> int:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, 256)
    Identity(order["uid"], order["gid"]).drop()
    die_with(parent, signal.SIGKILL)
    os.umask(0o077)
    os.environ.clear()
    os.environ.update(order["environ"])
    try:
        serve(service, order["environ"])
    except BadSettings as error:
        sys.stderr.write(f"{service.name}: {error}\n")
        return 1
    return 0


def _reap(channel: socket.socket, names: dict[int, str]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if name := names.pop(pid, None):
                _tell(channel, ended=name, pid=pid, status=os.waitstatus_to_exitcode(status))


def _tell(channel: socket.socket, **what: Any) -> None:
    channel.send(json.dumps(what).encode())


def _noted(_signal: int, _frame: FrameType | None) -> None:
    """Wakes the loop through its descriptor; Python needs a handler for that."""


if __name__ == "__main__":
    main()
