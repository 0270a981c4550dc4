"""Facts arriving by the bus: whether a computer is connected, and what it reports of itself."""

from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import Actor, Event
from sojourn_shared.service import NotYet, Park, open_report

from .domain import computers as domain
from .domain.computers import ComputerGuarantee, ComputerUser, Health, NoSuchComputer, StandingRight
from .store import Tx


async def on_agent(event: Event, tx: Tx) -> None:
    """Copy what expiry says of a computer's liveness: no new version of the computer, no event."""
    if event.service == "expiry" and isinstance(connected := event.data.entity.get("connected"), bool):
        await tx.set_connected(event.subject, connected)


async def on_health(computer_id: str, jws: bytes, tx: Tx) -> None:
    """Keep what a computer says of itself, and tell others when something of it is new.

    Raises NotYet (a computer that is not known yet), Park (no health report by its keeper).
    """
    try:
        computer = await tx.computer(computer_id, for_update=True)
    except NoSuchComputer:
        raise NotYet(f"no computer {computer_id} is known yet") from None
    report = open_report(jws, computer_id, computer.keeper_public_key)
    if not isinstance(report, wire.HealthReport):
        raise Park(f"a report of another kind, sent as health by {computer_id}")
    if not await tx.first_time(f"{computer_id}/{report.id}"):
        return
    heard = domain.report_health(computer, _health(report), now=tx.now)
    if heard is not computer:
        is_news = heard.version != computer.version
        actor = Actor(kind="computer", id=computer.id, name=computer.name)
        await tx.save_computer(heard, "computer.changed" if is_news else None, actor)


def _health(report: wire.HealthReport) -> Health:
    return Health(
        seq=report.seq,
        at=report.at,
        guarantees={name: ComputerGuarantee(word=one.word, why=one.why) for name, one in report.guarantees.items()},
        users=[ComputerUser(name=user.name, uid=user.uid) for user in report.users],
        standing_rights=[StandingRight(user=right.user, through=right.through) for right in report.standing_rights],
        agent_version=report.agent_version,
    )
