"""`app` starts the page: the only place where this package imports `webapp`."""

from __future__ import annotations

import argparse

from pipeline.cli.queue import Verb


def app(args: argparse.Namespace) -> int:
    """Serve the page in a browser, as `python -m webapp` does."""
    from webapp import __main__ as page  # noqa: TID251 -- started here, not used

    return page.run(args)


def add(verb: Verb) -> None:
    """Add the verb to the parser."""
    verb("app", app).flags = _flags


def _flags(added: argparse.ArgumentParser) -> None:
    from webapp import __main__ as page  # noqa: TID251

    page.add_arguments(added)
