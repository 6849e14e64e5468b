"""Every error of Azure as one sentence that says what to do next, without secrets."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline import display, settings
from pipeline.errors import LabError
from pipeline.inputs.azure_workspace import Place

MOST_SAID = 200  # characters of what Azure says
LONGEST = 1 << 16  # of an error that are looked through: what answers may have no end
SECRETS = re.compile(
    r"(sig(?:=|%3D))[^&\s\"'\\]+|(Bearer\s+)[\w.~+/=-]+|(SharedKey(?:Lite)?\s+\w+:)\S+"
    r"|\beyJ[\w-]{8,}(?:\.[\w-]*)*"
    r"|((?:token|secret|password|AccountKey|identity[_-]header)[\"']?\s*[:=]\s*)"
    r"(?:\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?|[^\s\"',&;]+)",
    re.IGNORECASE,
)
UNAVAILABLE = {
    "cli": "The Azure CLI is not logged in here; run `az login` (`az login --use-device-code` on a machine"
    " without a browser) and try again.",
    "identity": "No managed identity responds here; enable one for this compute instance, or choose the"
    " login cli or environment.",
    "environment": "The service principal is not set; set AZURE_TENANT_ID, AZURE_CLIENT_ID and"
    " AZURE_CLIENT_SECRET, or choose the login cli or identity.",
}
NO_CLI = "The Azure CLI is not installed here; install it and run `az login`, or choose another login."
DEAF_CLI = (
    "The Azure CLI does not respond here; run `az account get-access-token` in a terminal to see why, then"
    " try again."
)
EXISTS = re.compile(r"(?<!longer )\bexists\b|\balready exist")  # but not "does not exist"
LOCKED = "ScopeLocked"
AGAIN = "what was uploaded stays, and publishing again continues from there"
STORAGE_CODES = {
    "KeyBasedAuthenticationNotPermitted": "The storage account allows no keys, and the login itself may not"
    " use it; ask for the role Storage Blob Data Contributor on it.",
    "AuthorizationPermissionMismatch": "The login may not use the workspace's storage account; ask for the"
    " role Storage Blob Data Contributor on it.",
    "AuthorizationFailure": "The storage account refuses this machine, most likely its firewall; allow this"
    " network there, or publish from inside it.",
    "AuthenticationFailed": "The storage account refuses its own access signature, also a new one; check this"
    " machine's clock, then try again.",
    "AccountIsDisabled": "The storage account is disabled; ask whoever runs the workspace.",
    "ContainerNotFound": "The workspace's container in its storage account is gone; ask whoever runs it.",
}


def scrub(text: str) -> str:
    """The text, or its first part, without signatures, tokens, keys and secrets."""
    return SECRETS.sub(
        lambda match: f"{next((group for group in match.groups() if group), '')}[removed]",
        display.head(text, LONGEST),
    )


@contextmanager
def explained(place: Place) -> Iterator[None]:
    """Turn errors of Azure inside into LabError with a sentence; the scrubbed traceback goes to the log."""
    try:
        yield
    except (LabError, OSError, MemoryError) as error:
        if type(error).__module__.partition(".")[0] in ("azure", "requests", "urllib3"):
            raise LabError(_told(error, place)) from None
        raise
    except Exception as error:
        raise LabError(_told(error, place)) from None


def _told(error: BaseException, place: Place) -> str:
    print(scrub(traceback.format_exc()), file=sys.stderr)
    return sentence(error, place)


def sentence(error: BaseException, place: Place) -> str:
    """The sentence for an error of the `azure` packages."""
    from azure.core import exceptions as core
    from azure.identity import CredentialUnavailableError

    text, told = scrub(" ".join(str(error).split())), said(error)
    status, code = getattr(error, "status_code", None), code_of(error)
    again = f"try again in some minutes: {AGAIN}"
    refused = isinstance(error, core.ClientAuthenticationError)
    unreachable = isinstance(error, (core.ServiceRequestError, core.ServiceResponseError))
    exists = status in (400, 409) and EXISTS.search(text) is not None
    rules = [
        (isinstance(error, CredentialUnavailableError), _unavailable(text, place)),
        (status != 401 and code in STORAGE_CODES, STORAGE_CODES.get(code, "")),
        (
            "AADSTS" in text or (refused and status is None),
            f"Azure refused the login: {told}. {_renew(place)}",
        ),
        (
            status == 403,
            f"The login may not {_action(text)}; ask for the role {role(place)} on {place}.",
        ),
        (status == 401 or refused, f"Azure no longer takes the login. {_renew(place)}"),
        (
            LOCKED in code + text,
            f"A lock prevents changes to {place}; ask whoever runs it to remove the lock ({told}).",
        ),
        (
            exists,
            "That version already exists with other content; leave the version empty to use the next one.",
        ),
        (
            status == 404 or isinstance(error, core.ResourceNotFoundError),
            f"{str(place)[0].upper()}{str(place)[1:]}, or what is asked of it, does not exist, or the login"
            f" cannot see it ({told}); `{settings.command()} azure workspaces` lists those it sees.",
        ),
        (
            status == 409,
            f"Azure is busy with another operation on this ({told}); {again}.",
        ),
        (status == 429, f"Azure has too many requests (429); {again}."),
        (status is not None and status >= 500, f"Azure has problems of its own ({status}); {again}."),
        (
            "CERTIFICATE_VERIFY_FAILED" in text,
            "Azure's certificate is not trusted here; name your proxy's authority in REQUESTS_CA_BUNDLE.",
        ),
        (
            unreachable,
            f"Azure cannot be reached ({told}); check the network and the proxy, then {again}.",
        ),
    ]
    unknown = f"Azure gave an unexpected response: {type(error).__name__}: {told}."
    return next((line for holds, line in rules if holds), unknown)


def passes(error: BaseException) -> bool:
    """Whether a conflict is temporary, because another operation is running; a lock is not."""
    text = code_of(error) + str(error)
    return getattr(error, "status_code", None) == 409 and LOCKED not in text and not EXISTS.search(text)


def code_of(error: BaseException) -> str:
    """The error's code, as Resource Manager or the storage service names it; "" if it has none."""
    found = getattr(error, "error_code", None) or getattr(getattr(error, "error", None), "code", None)
    return str(getattr(found, "value", found) or "")


def role(place: Place) -> str:
    """The role that allows everything the lab does there."""
    if place.registry:
        return "AzureML Registry User"
    return "AzureML Data Scientist" if place.workspace else "Reader"


def _unavailable(text: str, place: Place) -> str:
    if place.login == "cli" and "az login" not in text:
        return NO_CLI if "not found" in text else DEAF_CLI
    return UNAVAILABLE[place.login]


def _renew(place: Place) -> str:
    return {
        "cli": "Run `az login` again.",
        "identity": "Check the managed identity of this compute instance.",
        "environment": "Check AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET.",
    }[place.login]


def _action(text: str) -> str:
    found = re.search(r"perform action '([^']+)'", text)
    return f"do {display.line(found[1])}" if found else "do this"


def said(error: BaseException) -> str:
    """Azure's own message in an error, without the client's repetitions; scrubbed, and short."""
    inner = getattr(error, "error", None)
    text = getattr(inner, "message", None) or getattr(error, "message", None) or str(error)
    # The storage service adds ids and times on separate lines after its sentence.
    return display.sentences(scrub(str(text).partition("\nRequestId:")[0]), MOST_SAID)
