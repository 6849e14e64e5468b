"""The verbs of the terminal; each module adds its own to the parser."""
