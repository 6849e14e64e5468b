"""Datasets before they are used: made into JSON lines, checked, and what is in them."""
