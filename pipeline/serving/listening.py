"""The port and the names under which a server is reached, as a command line gives them."""

from __future__ import annotations

import argparse
import re
import socket

from pipeline.errors import LabError

BACKLOG = 2048
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def listen(host: str, port: int) -> socket.socket:
    """Take the port. Raises LabError if that cannot be done."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise LabError(
            f"Port {port} of {host} cannot be used ({error.strerror}). Is Olive Lab running already? If not,"
            " choose another port with --port."
        ) from None
    return listener


def address(host: str, listener: socket.socket) -> str:
    """How a browser or a client writes it: `http://127.0.0.1:7860`."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def port(text: str) -> int:
    """A port number; the system would silently wrap larger ones around."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; allowed: 0 to 65535")
    return int(text)


def name(text: str) -> str:
    """A host's name as a browser sends it, without scheme and port."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a host's name; write it like lab.example.com")
    return text
