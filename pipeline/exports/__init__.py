"""An exported folder: check it, load it, ask it."""
