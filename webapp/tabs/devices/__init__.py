"""Runtimes on devices as places to publish to, for the Publish tab."""
