"""Runs and their ways compared: which is better, on which rows."""
