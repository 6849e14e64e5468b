"""The one record of all runs: SQLite in WAL mode, and a folder for each run. The only SQL of the project.

The web process and the command line add queued rows, requests and notes; the worker writes the rest.
"""

from __future__ import annotations

from pipeline.store.history import History
from pipeline.store.queue import Queue


class Store(Queue, History):
    """Runs and their stages."""


__all__ = ["Store"]
