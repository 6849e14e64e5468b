"""Olive Lab's pipeline: a run executes a recipe, stage by stage, in child processes."""

__version__ = "0.1.0"
