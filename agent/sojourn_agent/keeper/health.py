"""The `health` report: what this computer can really promise, who uses it, and who is root there anyway.

Found by doing it, in a child; said on each connect, and when it changed.
"""

import logging
import sqlite3
from typing import TYPE_CHECKING

import msgspec

from sojourn_agent import VERSION
from sojourn_agent.probe import computer_users, probe, standing_rights
from sojourn_shared.contracts.wire import ComputerUser, Guarantee, HealthReport, Spool, StandingRight

from . import spool as spooling
from .children import ask

if TYPE_CHECKING:
    from .keeper import Keeper

log = logging.getLogger("sojourn.keeper")

_LOOK_WITHIN = 30.0
_LOOK_EACH = 900.0
"""Seconds: a new user or a new sudo right is on the computer's page within a quarter of an hour."""


class _Found(msgspec.Struct, frozen=True):
    guarantees: dict[str, Guarantee]
    users: list[ComputerUser]
    standing_rights: list[StandingRight]


class Health:
    """`guarantees` are those found last."""

    def __init__(self, keeper: "Keeper") -> None:
        self._keeper = keeper
        self._said: bytes | None = None
        self._busy = False
        self.guarantees: dict[str, Guarantee] = {}
        keeper.timekeeping.on_clock_changed = self.say
        keeper.loop.after(_LOOK_EACH, self._again)

    def say(self) -> None:
        """Look, and report what is found, whether it changed or not."""
        self._said = None
        self._look()

    def _again(self) -> None:
        self._keeper.loop.after(_LOOK_EACH, self._again)
        self._look()

    def _look(self) -> None:
        if self._busy:
            return
        self._busy = True
        parent = self._keeper.leaves.parent
        ask(
            self._keeper.loop,
            lambda: _Found(probe(parent), computer_users(), standing_rights()),
            _LOOK_WITHIN,
            self._on_found,
        )

    def _on_found(self, body: bytes | None) -> None:
        self._busy = False
        if body is None:
            log.error("this computer's abilities could not be found out in %d s", _LOOK_WITHIN)
            return
        if body == self._said:
            return
        found = msgspec.json.decode(body, type=_Found)
        self.guarantees = found.guarantees
        spool = self._keeper.spool
        try:
            with spool.transaction():
                spool.report(
                    HealthReport,
                    guarantees=found.guarantees,
                    users=found.users,
                    standing_rights=found.standing_rights,
                    spool=Spool(waiting=spool.waiting, limit=spooling.LIMIT),
                    clock_offset_s=self._keeper.timekeeping.offset_s(),
                    agent_version=VERSION,
                )
        except (sqlite3.Error, spooling.TooLong) as error:
            log.error("the computer's health cannot be reported: %s", error)
            return
        self._said = body
        self._keeper.linkage.offer_reports()
