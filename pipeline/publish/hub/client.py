"""The hub's own client with a time limit: by itself it waits forever, or as long as a server asks.

Each call runs on its own thread. When nothing has got through for a while, the call fails, and the thread
ends with this process.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline import settings
from pipeline.errors import LabError
from pipeline.publish.hub import faults
from pipeline.system import retry

T = TypeVar("T")
STALL_SECONDS = 60.0  # of a request without a byte; then it is retried
LOOK_SECONDS = 0.2


class Hub:
    """The hub with this machine's login. Raises LabError if nobody is logged in.

    The login is that of `hf auth login` or HF_TOKEN. It is not stored elsewhere.
    """

    def __init__(self, patience: float) -> None:
        settings.quiet_this_process()
        from huggingface_hub import HfApi, constants, get_token, set_client_factory
        from huggingface_hub.utils import logging

        token = get_token()
        if token is None:
            raise LabError(faults.NOBODY)
        # Its messages about retries contain signed addresses.
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        # Neither way by pieces of an own protocol: see repository.Counted.
        constants.HF_HUB_DISABLE_XET = True
        set_client_factory(self._client)
        self.api = HfApi(token=token)
        self.retries = 0
        self._patience = patience
        self._last = time.monotonic()
        self._trouble = 0  # the status of the last answer, if it was an error

    def alive(self) -> None:
        """Note that something got through."""
        self._last = time.monotonic()

    def do(self, call: Callable[[], T]) -> T:
        """The result of the call, retried as often as needed.

        Raises LabError after `patience` seconds without success, and at once if retrying cannot help.
        """
        self.alive()
        return retry.persist(
            lambda: self._apart(call), wait=faults.wait, left=self._left, before_wait=self._count
        )

    def _left(self) -> float:
        return self._patience - (time.monotonic() - self._last)

    def _count(self) -> None:
        self.retries += 1

    def who(self) -> dict[str, Any]:
        """The owner of the token, according to the hub."""
        found: dict[str, Any] = self.do(self.api.whoami)
        return found

    def _apart(self, call: Callable[[], T]) -> T:
        done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def carry_out() -> None:
            try:
                done.put((call(), None))
            except BaseException as error:
                done.put((None, error))

        threading.Thread(target=carry_out, daemon=True).start()
        while True:
            try:
                found, error = done.get(timeout=min(LOOK_SECONDS, self._patience))
            except queue.Empty:
                if self._left() < 0:
                    if busy := faults.busy(self._trouble):
                        raise LabError(busy) from None
                    raise LabError(
                        f"Nothing got through to or from the hub for {self._patience:g} seconds; check the"
                        f" network and the proxy, then try again: {faults.AGAIN}."
                    ) from None
                continue
            if error is not None:
                raise error
            return found  # type: ignore[return-value]

    def _client(self) -> Any:
        from huggingface_hub.utils._http import default_client_factory

        client = default_client_factory()
        client.timeout = min(STALL_SECONDS, self._patience)
        client.event_hooks["response"].append(self._heard)
        return client

    def _heard(self, answer: Any) -> None:
        self._trouble = answer.status_code
        if answer.status_code < 400:
            self.alive()
        else:  # without the query, which has the signature of storage addresses
            asked = f"{answer.request.method} {answer.url.path}"
            print(f"The hub answered {answer.status_code} to {asked}", file=sys.stderr, flush=True)


def account(who: dict[str, Any]) -> dict[str, Any]:
    """From a `whoami`: name, the organisations with write access, and the token's name and role."""
    token = (who.get("auth") or {}).get("accessToken") or {}
    writes = ("admin", "write", "contributor")
    return {
        "name": str(who["name"]),
        "organisations": [
            str(org["name"]) for org in who.get("orgs", []) if org.get("roleInOrg", "write") in writes
        ],
        "token": str(token.get("displayName", "")),
        "role": str(token.get("role", "")),
        "scopes": [
            [str((scope.get("entity") or {}).get("name", "")), list(scope.get("permissions") or [])]
            for scope in (token.get("fineGrained") or {}).get("scoped") or []
        ],
    }


def foreign(who: dict[str, Any], repository: str) -> str:
    """The refusal for a repository in a namespace that is not the account's to write to, else "".

    It is the same whether the repository is there or not: by this login it could be asked which private ones
    exist.
    """
    owner = repository.partition("/")[0]
    if may_write(who, repository) or owner in (who["name"], *who["organisations"]):
        return ""
    return (
        f"You may not write to {owner} with this login; choose a name of your own account, or of an"
        " organisation that you may write to."
    )


def may_write(who: dict[str, Any], repository: str) -> bool | None:
    """Whether an account's token may write to a repository; None if only trying shows."""
    owner = repository.partition("/")[0]
    if who["role"] == "read":
        return False
    if who["role"] == "fineGrained":
        granted = [rights for entity, rights in who["scopes"] if entity in (owner, repository)]
        return any("repo.write" in rights for rights in granted)
    return True if owner in (who["name"], *who["organisations"]) else None
