"""Processes that carry stages out."""
