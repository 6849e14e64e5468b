"""A container of the storage service that outlasts drops, throttling and the end of its access signature.

Every request is small (a block of 4 MiB at most), waits no longer than a minute without a byte, and is tried
again until nothing has got through for a while.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline.errors import LabError
from pipeline.publish.azure import faults
from pipeline.system import retry

T = TypeVar("T")
BLOCK = 4 << 20  # bytes of one request
THREADS = 4  # requests at a time; as many blocks are in memory, and two more
STALL_SECONDS = 30.0  # without a byte; then the request is given up and made again
PATIENCE_SECONDS = 300.0  # without a request that got through; then all is given up
LONGEST_WAIT = 30.0
MOST_REFUSALS = 3  # of access signatures that are new
PASSING = (408, 429, 500, 502, 503, 504)
# What a signature that has ended is answered with; the last by the emulator, and by firewalls.
EXPIRED = ("AuthenticationFailed", "InvalidAuthenticationInfo", "AuthorizationFailure")


class Container:
    """A container client that is opened again, with a new access signature, whenever the old one has ended.

    `opener` gives an open client. Threads may use it together.
    """

    def __init__(self, opener: Callable[[], Any], patience: float = PATIENCE_SECONDS) -> None:
        self._opener, self._patience = opener, patience
        self._lock = threading.Lock()
        self._client: Any = None
        self._number = 0
        self._refusals = 0
        self._last = time.monotonic()
        self.retries = 0

    def do(self, action: Callable[[Any], T]) -> T:
        """What `action` returns for an open client, tried as often as it takes.

        Raises LabError once nothing got through for the time of patience, at once what no repetition cures.
        """
        began = time.monotonic()
        number: int | None = None

        def call() -> T:
            nonlocal number
            number = None
            client, number = self._open()
            done = action(client)
            self._last, self._refusals = time.monotonic(), 0
            return done

        return retry.persist(
            call,
            wait=lambda error, tries: self._wait(error, number, tries),
            left=lambda: self._patience - (time.monotonic() - max(began, self._last)),
            before_wait=self._count,
            gave_up=lambda error: LabError(self._gave_up(error)),
        )

    def _count(self) -> None:
        self.retries += 1

    def _open(self) -> tuple[Any, int]:
        with self._lock:
            if self._client is None:
                self._client, self._number = self._opener(), self._number + 1
            return self._client, self._number

    def _wait(self, error: Any, number: int | None, tries: int) -> float | None:
        """Seconds to wait before the next try; None if there is no use in one.

        `number` is that of the client that was refused, None if already opening one was.
        """
        from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

        if not isinstance(error, AzureError):
            return None
        status = getattr(error, "status_code", None)
        if number is not None and status in (401, 403) and faults.code_of(error) in EXPIRED:
            return self._renew(number)
        if isinstance(error, ClientAuthenticationError):
            return None
        refused = isinstance(error, HttpResponseError) and status is not None and status >= 400
        if refused and status not in PASSING:
            return None
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return None
        told = _retry_after(error)
        return told if told is not None else retry.backoff(tries, LONGEST_WAIT) * random.uniform(0.8, 1.2)  # noqa: S311

    def _renew(self, number: int) -> float | None:
        """Have the next request open a new client, unless another thread has seen to that."""
        with self._lock:
            if number == self._number and self._client is not None:
                self._client = None
                self._refusals += 1
            return None if self._refusals > MOST_REFUSALS else 0.0

    def _gave_up(self, error: Any) -> str:
        why = faults.said(error)
        return (
            f"Nothing got through to or from Azure for {self._patience:.0f} seconds ({why}); check the"
            f" network and try again: {faults.AGAIN}."
        )


def _retry_after(error: Any) -> float | None:
    """Seconds that the service asks to wait, at most half a minute; None if it asks for no time at all."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        told = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return min(told, LONGEST_WAIT) if told > 0 else None


def client_options() -> dict[str, Any]:
    """How every client of the storage service is made: retries are ours, and no request waits for ever."""
    return {"retry_total": 0, "connection_timeout": STALL_SECONDS, "read_timeout": STALL_SECONDS}


@contextmanager
def together() -> Iterator[Callable[[Iterable[Callable[[], T]]], Iterator[T]]]:
    """Carry out jobs on a few threads; their results come in order, and few jobs are taken ahead of them."""
    with ThreadPoolExecutor(THREADS) as pool:

        def run(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
            waiting: list[Future[T]] = []
            try:
                for job in jobs:
                    waiting.append(pool.submit(job))
                    if len(waiting) > THREADS:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for left in waiting:
                    left.cancel()

        yield run
