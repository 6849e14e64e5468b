"""A message to an address of the user's choice when a run ends (`OLIVE_LAB_WEBHOOK`)."""

from __future__ import annotations

import html
import math
import threading
from functools import partial
from typing import Any

from pipeline import settings
from pipeline.store.run import Run
from pipeline.system import own_process, retry
from pipeline.system.files import to_json

TIMEOUT_SECONDS = 10
PAUSES = (5.0, 30.0)  # before each further try


def tell(run: Run) -> threading.Thread | None:
    """Post the run's name, status and error as JSON, in a thread; None if no address is set."""
    address = settings.webhook()
    if address is None:
        return None
    thread = threading.Thread(target=_post, args=(address, message(run)))
    own_process.start_thread(thread)
    return thread


def message(run: Run) -> dict[str, Any]:
    """The JSON to send. `text` is what chat services show; names and errors in it are anybody's texts, and no
    links or mentions: see Slack's "Escaping text"."""
    error = next((stage.error for stage in run.stages if stage.error), None)
    text = f"Run {run.name} ({run.id}) is {run.status}." + (f" {error}" if error else "")
    return {
        "run": run.id,
        "name": run.name,
        "owner": run.owner,
        "status": run.status,
        "seconds": round(sum(stage.seconds or 0.0 for stage in run.stages), 1),
        "error": error,
        "text": html.escape(text, quote=False),
    }


def _post(address: str, facts: dict[str, Any]) -> None:
    """Try a few times. A failure goes to the worker's log, without the address, which may be a secret."""
    try:
        retry.persist(partial(_send, address, facts), wait=_wait, left=lambda: math.inf)
        return
    except _Unusable:
        problem = "it is not a valid http or https address"
    except Exception as error:  # whatever it is: a thread's traceback would show the address
        problem = f"{type(error).__name__} {getattr(error, 'code', '')}".strip()
    print(f"OLIVE_LAB_WEBHOOK was not notified of the end of run {facts['run']}: {problem}", flush=True)


class _Unusable(Exception):
    """No further try helps."""


def _wait(error: BaseException, tries: int) -> float | None:
    return PAUSES[tries] if isinstance(error, (OSError, ValueError)) and tries < len(PAUSES) else None


def _send(address: str, facts: dict[str, Any]) -> None:
    import http.client  # imported late: they load ssl and more, which is rarely needed
    import urllib.request

    if not address.startswith(("http://", "https://")):
        raise _Unusable
    request = urllib.request.Request(  # noqa: S310
        address,
        data=to_json(facts).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "olive-lab"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310
            pass
    except (http.client.InvalidURL, OverflowError):  # a blank in it, or a port that is none
        raise _Unusable from None
    except http.client.HTTPException as error:  # what answers does not speak HTTP
        raise ConnectionError(type(error).__name__) from None
