"""Passes that measure: losses, divergences, answers."""
