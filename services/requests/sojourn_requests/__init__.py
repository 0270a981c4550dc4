"""The requests service of Sojourn."""
