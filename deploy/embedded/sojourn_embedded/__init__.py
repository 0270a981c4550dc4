"""Everything of Sojourn on one machine: `sojourn up`."""
