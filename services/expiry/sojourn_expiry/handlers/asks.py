"""The questions of agents: nothing here is signed by them, and nothing that they say is believed to anybody's harm."""

import msgspec
import structlog

from sojourn_expiry.keys import StateKeys
from sojourn_expiry.store import Tx, computers, liveness
from sojourn_shared.contracts import wire
from sojourn_shared.service import House

log = structlog.get_logger(__name__)

NONCE_CHARACTERS = 256
HIGHEST_VERSION = 1 << 52
"""Versions are milliseconds since 1970; no true one comes near this, and JSON holds it exactly."""

_read = msgspec.json.Decoder(wire.Heartbeat).decode


async def on_heartbeat(computer_id: str, body: bytes, house: House) -> bytes | None:
    """The time, signed over the agent's nonce, and the newest document when the agent holds less.

    An agent that holds more than was ever signed here (an old database was restored) gets a document above it. Not
    answered: what is no heartbeat, and a computer that is not known (yet): the agent asks again.
    """
    try:
        beat = _read(body)
    except msgspec.MsgspecError as error:
        log.warning("not a heartbeat", computer=computer_id, error=str(error))
        return None
    if len(beat.nonce) > NONCE_CHARACTERS:
        log.warning("a nonce is too long", computer=computer_id, characters=len(beat.nonce))
        return None
    keys: StateKeys = house.parts
    async with Tx.begin(house) as tx:
        computer = await computers.get(tx, computer_id)
        if computer is None:
            log.info("a heartbeat of an unknown computer", computer=computer_id)
            return None
        await liveness.heard(tx, computer_id, beat)
        if beat.epoch == computer.epoch and computer.version < beat.version < HIGHEST_VERSION:
            await computers.holds_newer(tx, computer_id, beat.version)
    time = wire.SignedTime(
        computer_id=computer_id,
        nonce=beat.nonce,
        server_time=house.clock(),
        epoch=computer.epoch or keys.epoch,
        version=computer.version,
    )
    newer = (computer.epoch, computer.version) > (beat.epoch, beat.version)
    return wire.encode(
        wire.HeartbeatAnswer(
            time=keys.signer.sign(wire.encode(time), "sojourn-time"), document=computer.document if newer else None
        )
    )


async def on_rules(computer_id: str, body: bytes, house: House) -> bytes | None:
    """No rule sets exist before application groups do: empty bytes, at once, so that nobody waits for an answer.

    Empty bytes have another digest than any that a document names, so an agent never takes them for a set.
    """
    return b""
