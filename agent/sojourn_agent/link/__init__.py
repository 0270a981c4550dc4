"""The link: the agent's only process with a network, and the one with no rights.

It passes signed documents in and signed reports out over a socketpair to the keeper; it holds no seed and can start
nothing. Started by the keeper as `python -m sojourn_agent.link --fd N`; it ends when the keeper's end closes.
"""
