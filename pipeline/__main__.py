"""`python -m pipeline`, or `olive-lab` where a wheel is installed: the lab's verbs on the command line.

Exit codes: 0 good, 1 the run or stage failed, 2 bad input and nothing was started.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from pipeline import display, settings
from pipeline.cli import azure, base_models, history, hub, models, page, publish, queue, runs, scorecard
from pipeline.errors import LONGEST_PROBLEM, InputError, LabError, sentence
from pipeline.store import Store
from pipeline.system import files, terminal_guard


def installed() -> int:
    """`main` as the command `olive-lab`, which a wheel installs; messages then name that command."""
    settings.call_it(settings.COMMAND)
    return main()


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and carry out the verb."""
    settings.quiet_this_process()
    settings.keep_private()
    terminal_guard.guard()
    args = _parser().parse_args(argv)
    action: Callable[[argparse.Namespace], int] = args.action
    try:
        if action not in (
            runs.serve,
            page.app,
        ):  # the page shows the notice itself, and a worker has nobody to tell
            _tell_notice()
        code = action(args)
        sys.stdout.flush()  # here, so that a closed pipe is caught below
        return code
    except LabError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe: drop what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        print(f"{sentence(error)}{'' if isinstance(error, OSError) else _kept()}", file=sys.stderr)
        return 1


def _kept() -> str:
    """Keep the current traceback in the home; a sentence that says where it is."""
    file = files.keep_traceback(traceback.format_exc())
    return f" The details are in {file}." if file else ""


def _tell_notice() -> None:
    """Print once what users should know about the database, such as that it was damaged and restored."""
    with suppress(LabError):  # the verb reports this itself, if it needs the store
        home = settings.home()
        if (home / "runs.db").exists() and (notice := Store(home).unheard()):
            print(notice, file=sys.stderr)


class _Verb(argparse.ArgumentParser):
    """A verb. Its `flags` are added only when it is used: they need imports that other verbs do without."""

    flags: Callable[[argparse.ArgumentParser], None] | None = None

    def error(self, message: str) -> NoReturn:
        """As in argparse, but a long argument is cut, not repeated whole."""
        super().error(display.cut(message, LONGEST_PROBLEM))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, after adding the flags."""
        flags, self.flags = self.flags, None
        if flags is not None:
            flags(self)
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = _Verb(prog=settings.command(), description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Verb)

    def verb(name: str, action: Callable[[argparse.Namespace], int]) -> _Verb:
        added = verbs.add_parser(name, help=(action.__doc__ or "").splitlines()[0])
        added.set_defaults(action=action)
        return added

    runs.add_start(verb)
    page.add(verb)
    base_models.add(verb)
    history.add(verb)
    runs.add_follow(verb)
    queue.add(verb)
    scorecard.add(verb)
    models.add(verb)
    publish.add(verb)
    azure.add(verb)
    hub.add(verb)
    models.add_download(verb)
    models.add_report(verb)
    runs.add_worker(verb)
    return parser


if __name__ == "__main__":
    sys.exit(main())
