"""Olive Lab's pipeline: a run is a recipe carried out stage by stage by child processes."""

__version__ = "0.1.0"
