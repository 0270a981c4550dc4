"""The link's end of the socketpair to the keeper."""

import asyncio
import select
import socket
import time
from collections import deque
from collections.abc import Callable

from sojourn_agent.between import FRAME_LIMIT, Frames, FromKeeper, FromLink, Signature, SignNonce, SignRenewal, pack

SIGN_WITHIN = 1.5
"""Seconds. The event loop stands still meanwhile, and a NATS server waits 2 s for the login."""
UNREAD_LIMIT = 16 * FRAME_LIMIT
"""Bytes. A keeper that leaves more unread hangs: the link then ends, rather than to eat the computer's memory."""


class KeeperPipe:
    """Frames in and out; signatures are asked for and awaited here, every other message goes to `on_message`."""

    def __init__(self, end: socket.socket, on_message: Callable[[FromKeeper], None]) -> None:
        end.setblocking(False)
        self._end = end
        self._on_message = on_message
        self._frames = Frames(FromKeeper)
        self._unsent = bytearray()
        self._arrived: deque[FromKeeper] = deque()
        self._asks = 0
        self._renewals: dict[int, asyncio.Future[str | None]] = {}
        self._loop = asyncio.get_running_loop()
        self.gone = asyncio.Event()
        self._loop.add_reader(end, self._on_readable)

    def send(self, message: FromLink) -> None:
        """Never waits. After the keeper is gone it does nothing."""
        if self.gone.is_set():
            return
        self._unsent += pack(message)
        self._write()
        if len(self._unsent) > UNREAD_LIMIT:
            self.close()
        elif self._unsent:
            self._loop.add_writer(self._end, self._write)

    def sign_nonce(self, nonce: str) -> bytes:
        """The keeper's signature (base64) of the NATS server's nonce; blocks for at most SIGN_WITHIN.

        nats-py calls this synchronously, so the event loop cannot read the answer; what else arrives meanwhile is
        handled afterwards, in order. Raises OSError, and nothing else: any other exception would leave nats-py for
        ever neither connected nor closed.
        """
        self._asks += 1
        ask = self._asks
        self.send(SignNonce(ask=ask, nonce=nonce))
        until = time.monotonic() + SIGN_WITHIN
        while not self.gone.is_set():
            for message in self._arrived:
                if isinstance(message, Signature) and message.ask == ask:
                    self._arrived.remove(message)
                    self._loop.call_soon(self._hand_on)
                    if message.signature is None:
                        raise ConnectionRefusedError("the keeper does not sign this: it is no nonce")
                    return message.signature.encode()
            if not self._wait(until - time.monotonic()):
                raise TimeoutError("the keeper did not sign in time")
        raise ConnectionResetError("the keeper is gone")

    async def sign_renewal(self, nonce: str) -> str | None:
        """The keeper's JWS over the nonce of an HTTPS call; null when it refuses or does not answer in time."""
        self._asks += 1
        future: asyncio.Future[str | None] = self._loop.create_future()
        self._renewals[self._asks] = future
        self.send(SignRenewal(ask=self._asks, nonce=nonce))
        try:
            async with asyncio.timeout(SIGN_WITHIN):
                return await future
        except TimeoutError:
            return None
        finally:
            self._renewals = {ask: waiting for ask, waiting in self._renewals.items() if waiting is not future}

    def close(self) -> None:
        if not self.gone.is_set():
            self.gone.set()
            self._loop.remove_reader(self._end)
            self._loop.remove_writer(self._end)
            self._end.close()

    def _on_readable(self) -> None:
        self._read()
        self._hand_on()

    def _hand_on(self) -> None:
        while self._arrived:
            message = self._arrived.popleft()
            if not isinstance(message, Signature):
                self._on_message(message)
            elif (future := self._renewals.get(message.ask)) and not future.done():
                future.set_result(message.signature)

    def _read(self) -> None:
        """Take what is there. A keeper that closed, or that sends what is no frame, is gone."""
        try:
            chunk = self._end.recv(256 * 1024)
            self._arrived += self._frames.feed(chunk)
        except BlockingIOError:
            return
        except (OSError, ValueError):  # msgspec's errors are ValueErrors
            chunk = b""
        if not chunk:
            self.close()

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._end.send(self._unsent[:FRAME_LIMIT])]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._end)

    def _wait(self, seconds: float) -> bool:
        """Wait, without the event loop, until something can be read (and read it) or sent; false when time is up."""
        if seconds <= 0:
            return False
        writing = [self._end] if self._unsent else []
        readable, writable, _ = select.select([self._end], writing, [], seconds)
        if writable:
            self._write()
        if readable and not self.gone.is_set():
            self._read()
        return bool(readable or writable)
