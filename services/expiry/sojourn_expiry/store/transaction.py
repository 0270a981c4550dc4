"""The transaction of this service, and the wake-up calls that its tasks wait for."""

from sojourn_shared.service import Transaction

CLOCK = "clock"
DOCUMENTS = "documents"


class Tx(Transaction):
    """One transaction of `expiry`."""

    def wake_clock(self) -> None:
        """Something may be due earlier than the clock believes."""
        self.wake(CLOCK)

    def wake_publisher(self) -> None:
        """A computer's document has to be written anew."""
        self.wake(DOCUMENTS)
