"""Passes that make weights smaller, and the rows they look at."""
