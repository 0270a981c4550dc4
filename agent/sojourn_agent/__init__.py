"""The agent of one computer: judges, starts and ends elevated applications, and reports what happened."""

VERSION = "0.1.0"
