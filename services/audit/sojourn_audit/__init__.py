"""The audit service of Sojourn."""
