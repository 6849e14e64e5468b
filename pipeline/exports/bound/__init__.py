"""Bound exports: an exported graph with one adapter as its own constants, for runtimes without adapters."""
