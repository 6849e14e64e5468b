"""From how many rows on something is said: the page names it, and imports no statistics."""

LEAST_ROWS = 10
