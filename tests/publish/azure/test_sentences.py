"""What Azure refuses becomes a sentence that is true, and that says whom to ask for what."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core import exceptions as core
from azure.mgmt.core.exceptions import ARMErrorFormat

from pipeline.errors import LabError
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import faults
from pipeline.publish.azure.transfer import blob_client
from pipeline.publish.azure.transfer.blob_client import Container

WORKSPACE = Place("cli", "sub-1", "group", "Travel-WS")
REGISTRY = Place("cli", registry="ours")


def error(kind: type[core.HttpResponseError], status: int, text: str) -> Any:
    made = kind(text)
    made.status_code = status
    return made


NO_RIGHT = "no authorization to perform action 'Microsoft.MachineLearningServices/a/write' over scope"


@pytest.mark.parametrize(
    ("where", "role"),
    [
        (WORKSPACE, "AzureML Data Scientist on workspace Travel-WS"),
        (REGISTRY, "AzureML Registry User on registry ours"),
        (Place("cli", "sub-1"), "Reader on the subscription"),
    ],
)
def test_the_role_to_ask_for_is_that_of_the_place(where: Place, role: str) -> None:
    told = faults.sentence(error(core.HttpResponseError, 403, NO_RIGHT), where)
    assert told == (
        f"The login may not do Microsoft.MachineLearningServices/a/write; ask for the role {role}."
    )


def test_a_name_keeps_its_capitals() -> None:
    told = faults.sentence(error(core.ResourceNotFoundError, 404, "gone"), WORKSPACE)
    assert told.startswith("Workspace Travel-WS, or what is asked of it, does not exist")


@pytest.mark.parametrize(
    ("kind", "status", "text", "told"),
    [
        (
            core.ResourceExistsError, 409,
            "(ScopeLocked) The scope cannot perform write operation because these scope(s) are locked: 'x'",
            "A lock prevents changes to workspace Travel-WS; ask whoever runs it to remove the lock",
        ),
        (core.ResourceExistsError, 409, "(Conflict) Another operation runs", "Another operation runs"),
        (
            core.HttpResponseError, 400, "(BadRequest) The datastore 'workspaceblobstore' does not exist.",
            "an unexpected response: HttpResponseError: (BadRequest) The datastore",
        ),
        (core.HttpResponseError, 400, "It no longer exists", "an unexpected response"),
        (core.HttpResponseError, 400, "A version with this name already exists", "already exists with other"),
        (core.ResourceExistsError, 409, "Such a version exists.", "already exists with other content"),
    ],
)  # fmt: skip
def test_only_what_exists_is_said_to_exist(kind: Any, status: int, text: str, told: str) -> None:
    said = faults.sentence(error(kind, status, text), WORKSPACE)
    assert told in said
    assert ("already exists" in said) == ("already exists" in told)


def test_what_may_not_be_done_is_cut() -> None:
    long = f"perform action '{'a' * 1_000_000}'"
    assert len(faults.sentence(error(core.HttpResponseError, 403, long), WORKSPACE)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "SharedKey acct:AbCd/123+=",
        "sig%3DAbCd%252F123",
        '"client_secret": "AbCd 123"',
        "'sas_token': 'AbCd 123'",
        "X-IDENTITY-HEADER': 'AbCd123'",
        "identity_header: AbCd123",
        "password=AbCd123",
        "AccountKey=AbCd/123==;EndpointSuffix",
        "https://a/b?sv=1&SIG=AbCd123",
        "Bearer\nAbCd123",
        "a token cut short: eyJAbCdEfGhIjK",
        "https://x.blob.core/c/b?sv=1&sig=AbCd%2F123%3D&se=2",
        "Authorization: Bearer AbCd.123-1~2/3==",
        '{"access_token": "AbCd%2F123%3D", "x": 1}',
        "client_secret=AbCd%2F123%3D&grant=x",
        "sasToken: AbCd%2F123%3D",
        "the token eyJAbCd123OiJub25l.eyJAbCd123UiOiIx.sig-part is bad",
    ],
)
def test_no_way_to_write_a_secret_shows_it(text: str) -> None:
    shown = faults.scrub(text)
    assert "[removed]" in shown
    assert not any(piece in shown for piece in ("AbCd", "123", "eyJ"))


def test_of_an_error_without_end_the_first_part_is_looked_through() -> None:
    assert "AbCd" not in faults.scrub(f"{'x ' * (faults.LONGEST // 2 - 5)}sig=AbCdEfGhIjKl")
    assert len(faults.scrub("x" * 10**7)) <= faults.LONGEST


def test_what_has_no_secret_stays_as_it_is() -> None:
    text = "What is in Azure is not what was sent (model.onnx); nothing was registered, publish again."
    assert faults.scrub(text) == text


@pytest.mark.parametrize("told", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_wait_that_is_none_never_becomes_a_storm(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_client, "LONGEST_WAIT", 0.4)
    tries: list[float] = []

    def action(client: Any) -> None:
        tries.append(time.monotonic())
        failed = error(core.HttpResponseError, 429, "too many")
        failed.response = SimpleNamespace(headers={"Retry-After": told})
        raise failed

    with pytest.raises(LabError, match="Nothing got through to or from Azure for 1 seconds"):
        Container(lambda: None, 1.0).do(action)
    assert 2 <= len(tries) <= 6


LONG = (
    "The policy 'Models need an owner' does not allow this request. Set the tag owner to a person of the team"
    " that runs the workspace, in the portal or with the command line. Fix C is the last of many words."
)


def answered(status: int, code: str, message: str) -> core.HttpResponseError:
    """An error as the client raises it for an answer of Resource Manager."""
    body = json.dumps({"error": {"code": code, "message": message}})
    response = SimpleNamespace(
        status_code=status,
        reason="Bad Request",
        text=lambda *_: body,
        headers={},
        content_type="application/json",
    )
    return core.HttpResponseError(response=response, error_format=ARMErrorFormat)


def test_what_azure_says_is_said_once_and_ends_with_a_sentence() -> None:
    told = faults.sentence(answered(400, "PolicyViolation", LONG), WORKSPACE)
    assert told == (
        "Azure gave an unexpected response: HttpResponseError: The policy 'Models need an owner'"
        " does not allow this request. Set the tag owner to a person of the team that runs the workspace, in"
        " the portal or with the command line."
    )
    short = faults.sentence(answered(409, "Conflict", "Another operation is in progress."), WORKSPACE)
    assert short.count("Another operation is in progress") == 1
    assert "Code:" not in short


def test_a_secret_in_it_stays_out() -> None:
    told = faults.sentence(
        answered(400, "Bad", "No good: https://a/b?sv=1&sig=AbCd%2F123 is refused."), WORKSPACE
    )
    assert "AbCd" not in told


def test_what_gave_up_says_whole_words() -> None:
    failed = answered(503, "Busy", "word " * 100)
    with pytest.raises(LabError) as raised:
        Container(lambda: None, 0.0).do(lambda client: (_ for _ in ()).throw(failed))
    assert "(word word" in str(raised.value)
    assert "word…)" in str(raised.value)
