"""Who is the same person as whom: the ground of “nobody decides on their own request”.

A person may have several accounts, and several OS users under each; two that share one are one person.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from sojourn_shared.contracts.events import Model

DECIDING_ROLES = frozenset({"approver", "administrator"})


@dataclass(frozen=True)
class Person:
    """All accounts and OS users (folded: see `folded`) that are known to be one person, or one party of a request."""

    account_ids: frozenset[str]
    os_users: frozenset[str]

    @classmethod
    def of(cls, account_ids: Iterable[str | None], os_users: Iterable[str]) -> Self:
        return cls(frozenset(filter(None, account_ids)), frozenset(map(folded, os_users)))

    def with_accounts(self, accounts: "Iterable[Account]") -> "Person":
        """This person, with everything that those of `accounts` state who are this person too.

        One step only: what it adds may match further accounts. Repeat until nothing is added.
        """
        mine = [account for account in accounts if self.is_also(account.person)]
        return Person(
            self.account_ids.union(account.id for account in mine),
            self.os_users.union(*(account.person.os_users for account in mine)),
        )

    def is_also(self, other: "Person") -> bool:
        return not (self.account_ids.isdisjoint(other.account_ids) and self.os_users.isdisjoint(other.os_users))


def folded(os_user: str) -> str:
    """One spelling: Windows names compare without case, and a doubt between two spellings is no second person."""
    return os_user.casefold()


@dataclass(frozen=True, kw_only=True)
class Account:
    """What this service knows of an account, as the gateway's events tell it.

    `os_users` None: nobody stated them, and then it cannot decide. `everywhere` False: it is limited to computer
    groups; no computer is in one yet.
    """

    id: str
    name: str
    email: str | None = None
    roles: frozenset[str] = frozenset()
    os_users: tuple[str, ...] | None = None
    everywhere: bool = True
    active: bool = True

    @property
    def person(self) -> Person:
        return Person.of([self.id], self.os_users or ())

    def may_decide_for(self, parties: Person, roles: frozenset[str]) -> bool:
        """Whether it could fill a seat that is open to `roles`, on a request of `parties`."""
        return (
            self.active
            and self.everywhere
            and self.os_users is not None
            and not self.roles.isdisjoint(roles)
            and not self.person.is_also(parties)
        )


class OnBehalfOf(Model):
    """The person for whom an API client decides."""

    account_id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Decider:
    """Who decides. `person` covers the account, the owner of the client or key, and the one it acts for.

    `identified`: somebody stated which OS users all of these are. `roles` are those of the person who decides: of the
    one a client acts for, not the client's.
    """

    id: str
    name: str
    person: Person
    roles: frozenset[str]
    identified: bool
    everywhere: bool = True
    on_behalf_of: OnBehalfOf | None = None


class Asker(Model):
    """Who asked. `id` is an account's or an API client's; `computer` when no single account is the OS user who asked.

    `account_ids` and `os_users` are all that was known to be the asker at that moment: they cannot decide, whatever is
    changed afterwards. `acted_for_another`: an API client that passed somebody else's wish on.
    """

    id: str
    name: str
    account_ids: tuple[str, ...] = ()
    os_users: tuple[str, ...] = ()
    acted_for_another: bool = False

    def only_passed_on(self, by: Decider | None) -> bool:
        """Whether the client that passed one person's wish on now passes another person's decision on: then these two
        persons are compared (and the client's owner with the first), not the client with itself."""
        return self.acted_for_another and by is not None and by.id == self.id and by.on_behalf_of is not None
