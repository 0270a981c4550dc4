"""What a domain raises when it says no: a code, a status and a sentence, without knowing HTTP."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple


class FieldError(NamedTuple):
    """One thing wrong with a body: an RFC 6901 pointer into what was sent, and a sentence."""

    pointer: str
    detail: str


class DomainError(Exception):
    """A refusal that the caller can understand.

    `code` ends the problem's `type` (`/problems/<code>`); `title` is the same for every occurrence, the
    sentence given to the constructor tells this one. `more` are extension members of the problem.
    """

    code: ClassVar[str]
    status: ClassVar[int]
    title: ClassVar[str]

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = (), **more: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.more = more


class NotFound(DomainError):
    code, status, title = "not-found", 404, "There is no such thing here"


class Unauthenticated(DomainError):
    code, status, title = "unauthenticated", 401, "Sign in first"


class NotPermitted(DomainError):
    code, status, title = "not-permitted", 403, "Not permitted"


class InvalidBody(DomainError):
    code, status, title = "invalid-body", 422, "The request cannot be understood"


class Unavailable(DomainError):
    code, status, title = "unavailable", 503, "Temporarily unavailable"
