"""The language that every part of Sojourn speaks: contracts, matching, signing, and the frame of a service."""
