"""What this service refuses, and with which code."""

from sojourn_shared.errors import DomainError


class NotPending(DomainError):
    code, status, title = "not-pending", 409, "The request is not pending any more"


class AlreadyDecided(DomainError):
    code, status, title = "already-decided", 409, "The request is already decided"


class SelfApproval(DomainError):
    code, status, title = "self-approval", 403, "Nobody decides on their own request"


class DurationOutOfRange(DomainError):
    code, status, title = "duration-out-of-range", 422, "The duration is out of range"


class TicketRequired(DomainError):
    code, status, title = "ticket-required", 422, "A ticket is needed"


class NoApprover(DomainError):
    code, status, title = "no-approver", 422, "Nobody could decide on this request"


class FactMissing(DomainError):
    code, status, title = "fact-missing", 422, "A fact for this rule is not known"


class RequestLimit(DomainError):
    code, status, title = "request-limit", 422, "Too many requests are pending"


class AskingDisabled(DomainError):
    code, status, title = "asking-disabled", 422, "Asking is not open here"


class UnknownApprover(DomainError):
    code, status, title = "unknown-approver", 422, "There is no such approver"
