"""The policy service of Sojourn."""
