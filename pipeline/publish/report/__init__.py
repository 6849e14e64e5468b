"""The report of a run: one page that says what was done, how good it is, and by which files."""
