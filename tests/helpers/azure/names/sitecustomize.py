"""Every name under .localhost is this machine, as RFC 6761 says and not every resolver does.

On PYTHONPATH of the tests' processes, so that the lab itself needs to know nothing of it.
"""

from __future__ import annotations

import socket
from typing import Any

_ask = socket.getaddrinfo


def _getaddrinfo(host: Any, *given: Any, **named: Any) -> Any:
    local = isinstance(host, str) and host.endswith(".localhost")
    return _ask("127.0.0.1" if local else host, *given, **named)


socket.getaddrinfo = _getaddrinfo
