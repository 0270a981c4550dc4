"""The expiry service of Sojourn."""
