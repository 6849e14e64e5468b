"""`serve`: one exported model at an address, until Ctrl-C. A process of its own has the model loaded."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import uvicorn

from pipeline import display, settings
from pipeline.errors import InputError, LabError
from pipeline.exports.chat import chat_processes
from pipeline.serving import connections, endpoint, listening, offer
from pipeline.serving.desk import Desk
from pipeline.serving.offer import Offer
from pipeline.store import Store, device_locks
from pipeline.system import hardware
from pipeline.system.files import to_json

PORT = 8000
SHORTEST_TOKEN = 16
GRACE_SECONDS = 3  # for answers to end once the server is stopped
BAD_TOKEN = (
    f"OLIVE_LAB_SERVE_TOKEN: it must have {SHORTEST_TOKEN} letters or more, printable ASCII without spaces;"
    " leave it unset for a new one each time"
)
OPEN = (
    "Warning: whoever reaches port {} of this machine and has the token can ask the model. What they send is"
    " not encrypted."
)
STOPPED = "Stopped serving: answers that were not complete have ended."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `serve` takes."""
    parser.add_argument("target", metavar="RUN|FOLDER")
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="FILE.onnx_adapter",
        help="another adapter file to serve, under its file's name; may be repeated (those in the folder are"
        " served anyway)",
    )  # fmt: skip
    # The page starts it so: it says JSON lines, and ends when its standard input does.
    parser.add_argument("--attended", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument(
        "--port",
        type=listening.port,
        default=PORT,
        help=f"port to listen on (default: {PORT}; 0: a free one)",
    )
    parser.add_argument(
        "--allow-host", type=listening.name, action="append", default=[], metavar="NAME",
        help="a DNS name under which clients may ask; may be repeated (localhost and IP addresses always"
        " work)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted. Raises LabError if the model, the port or a GPU cannot be used."""
    if not args.attended:
        return _run(args)
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        return _run(args)
    except LabError as error:
        _say({"error": str(error)})
        return 1


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1 << 16):  # not through `sys.stdin`, whose lock would have Python abort
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _say(value: dict[str, Any]) -> None:
    print(to_json(value), flush=True)


def _count(here: int) -> None:
    with suppress(OSError):  # whoever attended it has gone, and with that this process ends
        _say({"answering": here})


def _run(args: argparse.Namespace) -> int:
    home = settings.home()
    offered = offer.of(home, args.target, args.adapter)
    token, given = _token()
    listener = listening.listen(args.host, args.port)
    signal.signal(signal.SIGTERM, _interrupt)
    held = _device(home, args.attended) if offered.on_gpu else None
    try:
        asyncio.run(_serve(home, offered, listener, token, given, args))
        if not args.attended:
            print(STOPPED, flush=True)
    finally:
        listener.close()
        if held is not None:
            os.close(held)
    return 0


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _token() -> tuple[str, bool]:
    """The token, and whether the environment has given it. Raises InputError for one that is none."""
    token = settings.serve_token()
    if token is None:
        return secrets.token_urlsafe(32), False
    good = token.isascii() and token.isprintable() and " " not in token
    if not good or len(token) < SHORTEST_TOKEN:
        raise InputError(BAD_TOKEN)
    return token, True


def _device(home: Path, attended: bool) -> int | None:
    """Take a GPU from the queue; None if there is none here, which loading the model reports."""
    devices = [device for device in hardware.devices() if device != "cpu"]
    if not devices:
        return None

    def tell(text: str) -> None:
        if attended:
            _say({"note": text})
        else:
            print(text, flush=True)

    device, held = device_locks.hold(Store(home), devices, tell)
    settings.compute_on(device)
    tell(f"It computes on {device}; no run of the queue starts there until it is stopped.")
    return held


async def _serve(
    home: Path, offered: Offer, listener: socket.socket, token: str, given: bool, args: argparse.Namespace
) -> None:
    """Load the model, say where it is, and answer."""
    desk = Desk(home, offered, _count if args.attended else None)
    try:
        await desk.load()
        _tell(desk, listening.address(args.host, listener), token, given, args)
        connections.Patient.most = connections.most()
        app = endpoint.create(desk, token, [args.host, *args.allow_host])
        await _Server(desk, app).serve([listener])
    finally:
        await chat_processes.shutdown()


def _tell(desk: Desk, address: str, token: str, given: bool, args: argparse.Namespace) -> None:
    if args.attended:
        _say({"url": f"{address}/v1", "models": list(desk.offer.names)})
        return
    if args.host not in listening.LOOPBACK:
        print(OPEN.format(args.port), file=sys.stderr)
    print(f"Olive Lab serves {display.line(desk.offer.source.name)} at {address}/v1")
    print(f"Models: {display.names(desk.offer.names)}")
    print("Token: the one in OLIVE_LAB_SERVE_TOKEN" if given else f"Token: {token}")
    print("Ctrl-C stops it.", flush=True)


class _Server(uvicorn.Server):
    """uvicorn, which ends the answers that are being written once it is told to stop."""

    def __init__(self, desk: Desk, app: Any) -> None:
        config = uvicorn.Config(
            app,
            http=connections.Patient,
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            proxy_headers=False,
            server_header=False,
            use_colors=False,
        )
        super().__init__(config)
        self.desk = desk

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop, and tell the answers; the second time, at once. The signal is not raised again at the end."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.desk.close()
