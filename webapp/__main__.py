"""`python -m webapp`: serve the page. Port, home and options are checked before Gradio is imported."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import socket
import sys
from pathlib import Path

from pipeline import home_check, settings
from pipeline.errors import LabError, sentence
from pipeline.runs.voting import judge_client
from pipeline.runs.voting.judge_client import Judge
from pipeline.serving import loading
from pipeline.serving.listening import LOOPBACK, address, listen, name, port
from pipeline.store import Store
from pipeline.system import locks, terminal_guard

LOCK = "webapp.lock"
UNCONFINED = (
    "this system has no Landlock (Linux 5.19 and newer, if switched on). Files of models are checked,"
    " but what reads them may open other files too, so take only models of people you trust."
)
SWITCH_SECONDS = 0.0005  # that a thread may run Python while others wait


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m webapp", description="Serve the Olive Lab page.")
    add_arguments(parser)
    return parser


def arguments(given: list[str]) -> argparse.Namespace:
    """The parsed command line."""
    return parser().parse_args(given)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ours to a parser; the command line's verb `app` has the same."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument("--port", type=port, default=7860, help="port to listen on (default: 7860)")
    parser.add_argument(
        "--allow-host", type=name, action="append", default=[], metavar="NAME",
        help="a DNS name under which browsers may open the page; may be repeated (localhost and IP addresses"
        " always work)",
    )  # fmt: skip
    parser.add_argument(
        "--models", type=Path, action="append", default=[], metavar="FOLDER",
        help="a model folder, or a folder of these, to offer on the page; may be repeated (the page takes no"
        " other folder but those in the home)",
    )  # fmt: skip
    parser.add_argument(
        "--hub-login", action="store_true",
        help="let everybody who opens the page use private models and datasets that this machine's login may"
        " read on the hub (public and gated models work without)",
    )  # fmt: skip
    parser.add_argument(
        "--shared-models", action="store_true",
        help="offer also models that other users of this machine may change; trust each of them: they could"
        " have files of yours read in a model's place",
    )  # fmt: skip
    judge_client.add_arguments(parser)


def main(given: list[str] | None = None) -> int:
    """Serve until interrupted; see `run`."""
    terminal_guard.guard()
    return run(arguments(sys.argv[1:] if given is None else given))


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted. Returns 2 with a message if the port, the home or --models cannot be used."""
    settings.keep_private()
    with contextlib.ExitStack() as kept:
        try:
            judge = judge_client.named(args)
            listener = kept.enter_context(listen(args.host, args.port))
            home = settings.home()
            Store(home)
            settings.uploads()
            lock = locks.take(home / LOCK)
            if lock is None:
                raise LabError(
                    f"Olive Lab already serves {home}; stop it, or set OLIVE_LAB_HOME to another folder."
                )
            kept.callback(os.close, lock)
            with loading.answered(listener):
                from webapp import local_models  # half of what is imported before Gradio

                local_models.offer(args.models, hub_login=args.hub_login, shared=args.shared_models)
        except (LabError, OSError) as error:
            print(sentence(error), file=sys.stderr)
            return 2
        for warning in _warnings(args.host, args.port, home):
            print(f"Warning: {warning}", file=sys.stderr)
        serve(listener, args, judge)
    return 0


def _warnings(host: str, port: int, home: Path) -> list[str]:
    """What the operator should know before others use the page."""
    from pipeline.inputs import confined
    from webapp import local_models

    found = []
    if host not in LOOPBACK:
        found.append(
            f"anybody who reaches port {port} of this machine can use the lab, its data and its models. There"
            " is no login."
        )
    if not confined.works():
        found.append(UNCONFINED)
    if (shared := home_check.warning(home)) is not None:
        found.append(shared)
    return [*found, *local_models.left_out()]


def serve(listener: socket.socket, args: argparse.Namespace, judge: Judge | None = None) -> None:
    """Build the app and run it on the socket; until then, a page says that it is starting."""
    _favor_the_page()
    with loading.answered(listener):
        with settings.importing_gradio():
            import uvicorn

            from pipeline.serving import connections
            from webapp.app import create

        app = create(
            [args.host, *args.allow_host],
            args.models,
            hub_login=args.hub_login,
            shared_models=args.shared_models,
            judge=judge,
        )
    connections.Patient.most = connections.most()
    config = uvicorn.Config(
        app,
        http=connections.Patient,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
        proxy_headers=False,
        use_colors=False,
    )
    print(f"Olive Lab is at {address(args.host, listener)}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def _favor_the_page() -> None:
    """Keep the thread that answers requests fast while other threads read datasets.

    By default it waits 5 ms for each busy thread whenever it resumes; and twice per event Gradio searches all
    package folders for matplotlib, if that is not installed.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    if importlib.util.find_spec("matplotlib") is None:
        sys.modules["matplotlib"] = None  # type: ignore[assignment]  # makes the import fail at once


if __name__ == "__main__":
    sys.exit(main())
