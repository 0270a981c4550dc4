"""Opening a computer's report: signed by its keeper, of the kind that its subject says, from the computer it names."""

from collections.abc import Callable

import msgspec

from sojourn_shared.contracts import wire
from sojourn_shared.signing import BadSignature, PublicKey, verify

from .inbox import Park

_read: Callable[[bytes], wire.Report] = msgspec.json.Decoder(wire.Report).decode


def open_report(jws: bytes, computer_id: str, keeper_public_key: str) -> wire.Report:
    """The report in `jws`. Raises Park when it is not one by that computer's keeper: nobody will ever make it true."""
    key = PublicKey.from_text(keeper_public_key)
    try:
        report = _read(verify(jws.decode(), "sojourn-report", {key.kid: key}))
    except (BadSignature, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise Park(f"no report by the keeper of {computer_id}: {error}") from None
    if report.computer_id != computer_id:
        raise Park(f"sent by {computer_id}, but it names {report.computer_id}")
    return report
