"""Identifiers: UUIDv7 (RFC 9562, section 5.7) as text, so that ids made later sort later."""

import os
from datetime import datetime
from typing import NewType
from uuid import UUID

from .clock import milliseconds

ComputerId = NewType("ComputerId", str)
PolicyId = NewType("PolicyId", str)
RequestId = NewType("RequestId", str)
GrantId = NewType("GrantId", str)
RunId = NewType("RunId", str)


def new_id(now: datetime) -> str:
    """A new UUIDv7: 48 bits of `now` in milliseconds, 74 random bits."""
    random = int.from_bytes(os.urandom(10))
    value = (milliseconds(now) & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))


def is_id(text: str) -> bool:
    """Whether `text` is a UUID in its canonical lower-case form: the only spelling used on the wire."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
