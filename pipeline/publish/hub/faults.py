"""Every error of the hub as one sentence that says what to do next, without secrets."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline import display
from pipeline.errors import LabError
from pipeline.system import retry

SECRETS = re.compile(
    r"(Bearer\s+)[\w.~+/=-]+|\bhf_(?:(?:oauth|jwt|rt)_[\w.-]+|[A-Za-z0-9]{10,})|\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"
    r"|((?:X-Amz-[\w-]+|Signature|Key-Pair-Id|Policy|sig|token)=)[^&\s\"'\\]+",
    re.IGNORECASE,
)
LONGEST = 1 << 16  # characters of an error that are looked through: what a hub answers may have no end
NOBODY = (
    "Nobody is logged in to the Hugging Face Hub here; run `hf auth login` in a terminal, or set HF_TOKEN,"
    " with a token that may write."
)
OFFLINE = "HF_HUB_OFFLINE is set, so the hub is not asked; unset it and start the lab again."
AGAIN = "files that have arrived are not sent again"
LATER = f"try again in some minutes: {AGAIN}"
CLIENT = ("huggingface_hub", "httpx", "hf_xet")
PASSING = (408, 429, 500, 502, 503, 504)
LONGEST_WAIT = 30.0
MOST_ADDRESSES = 3  # for one file, if the storage refuses them
STORAGE = re.compile(r"storage|quota|exceed|payment|billing|too large|upgrade", re.IGNORECASE)


def scrub(text: str) -> str:
    """The text, or its first part, without tokens and signatures."""
    return SECRETS.sub(lambda match: f"{match[1] or match[2] or ''}[removed]", display.head(text, LONGEST))


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the client's errors inside into LabError with a sentence about `what`, a repository or the hub.

    The scrubbed traceback goes to the log.
    """
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        ours = isinstance(error, (OSError, MemoryError)) and not type(error).__module__.startswith(CLIENT)
        if ours:  # errors of this machine: a full disk, a missing file
            raise
        print(scrub(traceback.format_exc()), file=sys.stderr)
        raise LabError(sentence(error, what)) from None


def sentence(error: BaseException, what: str) -> str:
    """The sentence for an error of the client."""
    answer = _answer(error)
    status = answer.status_code if answer is not None else None
    text = _short(error)
    rules = [
        (busy(status or 0) is not None, busy(status or 0) or ""),
        (_named(error, "LocalTokenNotFoundError"), NOBODY),
        (_named(error, "OfflineModeIsEnabled"), OFFLINE),
        (
            status == 401,
            "The hub does not take the token; log in with `hf auth login --force`, or set another HF_TOKEN,"
            " which goes before the login.",
        ),
        (
            status in (402, 413) or (status in (400, 403, None) and bool(STORAGE.search(text))),
            f"The hub has no room for it ({text}); free some there, or choose another account, then publish"
            " again.",
        ),
        (
            status == 403,
            f"The login may not write to {what} ({text}); take a token that may, or ask whoever owns it.",
        ),
        (
            status == 404,
            f"{what} is not on the hub, or its owner is not, or the login cannot see it; check the name.",
        ),
        (status in (409, 412), f"Somebody else is changing {what}; publish again."),
        (status == 400, f"The hub does not take this ({text}); correct it and publish again."),
        (
            "CERTIFICATE_VERIFY_FAILED" in text,
            "The hub's certificate is not trusted here; name your proxy's authority in SSL_CERT_FILE.",
        ),
        (
            _unreachable(error),
            f"The hub cannot be reached ({text}); check the network and the proxy, then {LATER}.",
        ),
    ]
    unknown = f"The hub gave an unexpected response: {type(error).__name__}: {text}."
    return next((told for holds, told in rules if holds), unknown)


def busy(status: int) -> str | None:
    """The sentence for an answer with that status, if the hub is busy or has problems; else None."""
    if status == 429:
        return f"The hub has too many requests from this login (429); {LATER}."
    return f"The hub has problems of its own ({status}); {LATER}." if status >= 500 else None


def wait(error: BaseException, tries: int) -> float | None:
    """Seconds to wait before the next try; None if retrying cannot help."""
    answer = _answer(error)
    if answer is None:
        passing = _unreachable(error) and "CERTIFICATE_VERIFY_FAILED" not in str(error)
        return retry.backoff(tries, LONGEST_WAIT) if passing else None
    if answer.request.method == "PUT" and answer.status_code in (400, 403):
        # Storage addresses expire; the next try asks the hub for a new one.
        return 0.0 if tries < MOST_ADDRESSES else None
    if answer.status_code not in PASSING:
        return None
    try:
        told = float(answer.headers.get("Retry-After", ""))
        return min(told, LONGEST_WAIT) if told >= 0 else retry.backoff(tries, LONGEST_WAIT)
    except ValueError:
        return retry.backoff(tries, LONGEST_WAIT)


def status_of(error: BaseException) -> int | None:
    """The status code in an error."""
    answer = _answer(error)
    return answer.status_code if answer is not None else None


def _answer(error: BaseException | None) -> Any:
    """The answer that led to the error, or to the one it was raised from."""
    while error is not None:
        if (answer := getattr(error, "response", None)) is not None:
            return answer
        error = error.__cause__
    return None


def _unreachable(error: BaseException | None) -> bool:
    while error is not None:
        kinds = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("httpx")}
        if kinds & {"TransportError", "TimeoutException"}:
            return True
        error = error.__cause__
    return False


def _named(error: BaseException, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(error).__mro__)


def _short(error: BaseException) -> str:
    """The hub's message, else the underlying error."""
    while error.__cause__ is not None and getattr(error, "response", None) is None:
        error = error.__cause__
    said = getattr(error, "server_message", None) or str(error)
    return display.sentences(scrub(said), 200)
