"""A client for a storage container that survives drops, throttling and expired access signatures.

Every request is small (at most a block of 4 MiB), is given up after a minute without a byte, and is retried
until nothing has got through for a while.
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
STALL_SECONDS = 30.0  # without a byte; then the request is retried
PATIENCE_SECONDS = 300.0  # without a successful request; then the transfer fails
LONGEST_WAIT = 30.0
MOST_REFUSALS = 3  # of new access signatures
PASSING = (408, 429, 500, 502, 503, 504)
# Codes for an expired signature; the last is used by the emulator and by firewalls.
EXPIRED = ("AuthenticationFailed", "InvalidAuthenticationInfo", "AuthorizationFailure")


class Container:
    """A container client that is reopened with a new access signature whenever the old one expires.

    `opener` returns an open client. Threads may share it.
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
        """The result of `action` for an open client, retried as often as needed.

        Raises LabError after `patience` seconds without success, and at once if retrying cannot help.
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
        """Seconds to wait before the next try; None if retrying cannot help.

        `number` is that of the refused client, None if opening a client was refused.
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
        """Make the next request open a new client, unless another thread has done so."""
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
    """Seconds that the service asks to wait, at most half a minute; None if it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        told = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return min(told, LONGEST_WAIT) if told > 0 else None


def client_options() -> dict[str, Any]:
    """Options of all clients of the storage service: retries are ours, and no request waits forever."""
    return {"retry_total": 0, "connection_timeout": STALL_SECONDS, "read_timeout": STALL_SECONDS}


@contextmanager
def together() -> Iterator[Callable[[Iterable[Callable[[], T]]], Iterator[T]]]:
    """Run jobs on a few threads; results come in order, and only a few jobs are taken in advance."""
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
