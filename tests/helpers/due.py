"""Which fault a request meets, in the fakes of services."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Planned(Protocol):
    """What is done to `times` requests that match, after `skip` good ones."""

    match: str
    times: int
    skip: int


P = TypeVar("P", bound=Planned)


def due(planned: Iterable[P], line: str, lock: threading.Lock) -> P | None:
    """The first fault that a request, `METHOD path`, meets, counted off; None if it is a good one."""
    with lock:
        for one in planned:
            if one.times and re.search(one.match, line):
                if one.skip:
                    one.skip -= 1
                    continue
                one.times -= 1
                return one
    return None
