"""Runs against each other, on the Runs tab."""
