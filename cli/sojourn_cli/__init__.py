"""`sojourn`: the command of administrators and scripts, a plain REST client."""
