"""What is said on the agent's socket (`elevate` ↔ keeper and warden), and between keeper and warden.

One packet (SOCK_SEQPACKET) is one JSON message of at most 64 KiB. `elevate` speaks it with the standard library
alone; who calls is never in a message, the kernel says it.
"""

from typing import Any, Literal

import msgspec

from sojourn_shared.contracts.wire import Application, Wire

VERSION = 1

Op = Literal["run", "check", "facts", "status", "done", "cancel", "agent"]

# --- elevate → keeper -------------------------------------------------------------------------------------------------


class Hello(Wire, frozen=True, kw_only=True):
    """The first packet. `run`, `check` and `facts` come with exactly four descriptors: 0, 1, 2 and the working folder;
    all others with none.

    `relay`: which of 0 and 1 is the terminal that the person types at, if the client is in its foreground.
    `interactive`: the person can be asked. `target`: the grant of `done`, the request of `cancel`.
    """

    v: int
    op: Op
    argv: list[str] = msgspec.field(default_factory=list)
    env: dict[str, str] = msgspec.field(default_factory=dict)
    winsz: tuple[int, int] | None = None
    relay: Literal[0, 1] | None = None
    minutes: int | None = None
    because: str | None = None
    ticket: str | None = None
    once: bool = False
    no_wait: bool = False
    interactive: bool = False
    target: str | None = None


class Reason(Wire, frozen=True, kw_only=True):
    """What the person answered to `AskPerson`."""

    minutes: int
    because: str
    ticket: str | None = None


class More(Wire, frozen=True, kw_only=True):
    """Every later packet of the client: the person's answer, a signal to pass on, a new window size."""

    reason: Reason | None = None
    sig: int | None = None
    winsz: tuple[int, int] | None = None


# --- keeper or warden → elevate ---------------------------------------------------------------------------------------


class _Packet(Wire, frozen=True, tag_field="type"):
    pass


class Refused(_Packet, frozen=True, tag="refused", kw_only=True):
    """The end: nothing ran. `exit` as the contract's section 1; `next`: what the person can do."""

    exit: int
    why: str
    next: str | None = None


class Say(_Packet, frozen=True, tag="say", kw_only=True):
    """A line for the person."""

    text: str


class AskPerson(_Packet, frozen=True, tag="ask", kw_only=True):
    """No grant covers it: for how long, and why? `problem`: what was wrong with the answer before."""

    application: str
    why: str
    default_minutes: int
    longest_minutes: int
    justification_min: int
    ticket: Literal["optional", "required"] | None
    approvers: list[str]
    minutes: int | None
    problem: str | None


class Pending(_Packet, frozen=True, tag="pending", kw_only=True):
    """The request is on the computer's disk, and on its way; decisions follow as `Say`, then `Started` or `Refused`."""

    request_id: str
    text: str


class Stored(_Packet, frozen=True, tag="stored", kw_only=True):
    """`--no-wait`: the end."""

    request_id: str


class Started(_Packet, frozen=True, tag="started", kw_only=True):
    """From now on the warden speaks. `relay`: the descriptor whose terminal is to be set raw, if any."""

    run_id: str
    grant_id: str
    pid: int
    relay: Literal[0, 1] | None


class Ended(_Packet, frozen=True, tag="ended", kw_only=True):
    """The end of a run."""

    exit: int
    why: str | None = None


class Told(_Packet, frozen=True, tag="told", kw_only=True):
    """The answer to all other questions. `lines` go to standard output; `data` is the same for programs."""

    exit: int
    lines: list[str] = msgspec.field(default_factory=list)
    data: Any = None


ToClient = Refused | Say | AskPerson | Pending | Stored | Started | Ended | Told

# --- warden → keeper --------------------------------------------------------------------------------------------------


class Found(_Packet, frozen=True, tag="found", kw_only=True):
    """The file was judged. `pid`: the process that waits to become it; null when nothing is to be run; `in_leaf`:
    it was born in its leaf.

    `key`: under which the keeper may remember the facts. `hidden`: the caller could not have opened the file.
    `writable`: the first part of its path that others can write to. `working_directory` null: / is used instead.
    """

    application: Application
    key: tuple[int, int, int, int, int, int] | None
    hidden: bool
    writable: str | None
    pid: int | None
    in_leaf: bool
    working_directory: str | None


class NotFound(_Packet, frozen=True, tag="not_found", kw_only=True):
    """The file is not run, whatever is granted."""

    exit: int
    code: str
    why: str


class Over(_Packet, frozen=True, tag="over", kw_only=True):
    """The run is at its end on the warden's side; the keeper ends what is left, then says `Finish`."""

    how: Literal["exited", "client_gone"]
    exit_status: int | None = None


FromWarden = Found | NotFound | Over

# --- keeper → warden --------------------------------------------------------------------------------------------------


class Go(_Packet, frozen=True, tag="go", kw_only=True):
    """Execute now. `deadline`: seconds of BOOTTIME. `leaf`: the folder to kill if the keeper cannot."""

    run_id: str
    grant_id: str
    deadline: float | None
    leaf: str | None


class Deadline(_Packet, frozen=True, tag="deadline", kw_only=True):
    """The run goes on until then (seconds of BOOTTIME)."""

    at: float | None


class Tell(_Packet, frozen=True, tag="tell", kw_only=True):
    """A line for the person, on the terminal."""

    text: str


class Finish(_Packet, frozen=True, tag="finish", kw_only=True):
    """Nothing of the run is left: say so to the client, and exit. `exit` null: the application's own status."""

    exit: int | None
    why: str | None = None


ToWarden = Go | Deadline | Tell | Finish


def pack(packet: Wire) -> bytes:
    return msgspec.json.encode(packet)


read_hello = msgspec.json.Decoder(Hello).decode
read_more = msgspec.json.Decoder(More).decode
read_from_warden = msgspec.json.Decoder(FromWarden).decode
read_to_warden = msgspec.json.Decoder(ToWarden).decode
