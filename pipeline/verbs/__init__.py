"""Verbs of the command line beyond a single run; each module adds its own to the parser."""
