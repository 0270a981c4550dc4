"""The gateway service of Sojourn."""
