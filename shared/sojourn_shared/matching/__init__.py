"""Which rule matches these facts: pure, the same on the computer and on the server, and it explains itself.

A fact that is not known never matches, and neither does a rule that names nothing: silence must not elevate.
`match` looks at one rule after the other; `rule_set.RuleSet` answers the same where many rules are asked often.
"""

from .linear import Check, Match, NoMatch, checks_of, match

__all__ = ["Check", "Match", "NoMatch", "checks_of", "match"]
