"""The few calls that go over HTTPS: enrolment, renewal, and the document when NATS is out of reach.

Only the standard library, and blocking: the link calls it in a thread. TLS is always verified; plain http is for
loopback alone.
"""

import http.client
import ipaddress
import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

ANSWER_LIMIT = 1024 * 1024
WITHIN_S = 10.0
"""Seconds for connecting, and again for each read."""


class NoAnswer(Exception):
    """The server was not reached, or what came was no answer of it; the message is a sentence for people."""


class Answer(NamedTuple):
    status: int
    body: bytes


def post(server: str, path: str, body: bytes, *, token: str | None = None, ca_pem: str | None = None) -> Answer:
    """POST the JSON `body` to `<server>/api/v1<path>`; any status is an answer, redirects are not followed.

    `ca_pem`: the only authorities to trust instead of this computer's. Raises NoAnswer; ValueError for a bad `server`.
    """
    base = urlsplit(checked_server(server))
    assert base.hostname
    connection: http.client.HTTPConnection
    if base.scheme == "https":
        context = ssl.create_default_context(cadata=ca_pem)
        connection = http.client.HTTPSConnection(base.hostname, base.port, timeout=WITHIN_S, context=context)
    else:
        connection = http.client.HTTPConnection(base.hostname, base.port, timeout=WITHIN_S)
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.request("POST", f"{base.path.rstrip('/')}/api/v1{path}", body, headers)
        response = connection.getresponse()
        answer = response.read(ANSWER_LIMIT + 1)
    except ssl.SSLCertVerificationError as error:
        raise NoAnswer(
            f"{server} shows a certificate that this computer does not trust: {error.verify_message}"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"{server} cannot be reached: {str(error) or type(error).__name__}") from None
    finally:
        connection.close()
    if len(answer) > ANSWER_LIMIT:
        raise NoAnswer(f"{server} answered with more than {ANSWER_LIMIT} bytes")
    return Answer(response.status, answer)


def checked_server(server: str) -> str:
    """`server` as it was given, if it is an address that may be called. Raises ValueError with what to do."""
    try:
        parts = urlsplit(server)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{server!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query or parts.fragment:
        raise ValueError(f"{server!r} is no address of a server: give one like https://sojourn.example.com")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError(f"{server} would send secrets in the clear: use https:// (plain http only to loopback)")
    return server


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this computer itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
