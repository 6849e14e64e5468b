"""Datasets before they are used: made into JSON lines, and checked."""
