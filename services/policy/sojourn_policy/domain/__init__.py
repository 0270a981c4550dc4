"""The rules of policies, computers and enrolment: pure functions, read first."""
