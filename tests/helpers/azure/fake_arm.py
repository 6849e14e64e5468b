"""What of Azure the storage emulator lacks: Resource Manager, the login, managed identity, the registry.

It answers as /metadata/endpoints, the machine learning provider and the registry's front end do, as far as
the real client asks. Where the real service's answer is not known, docs/how-to/azure.md says so.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from tests.helpers.azure import authority
from tests.helpers.due import due

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
SUB, GROUP, WORKSPACE = "00000000-1111-2222-3333-444444444444", "travel-rg", "travel-ws"
TENANT = "99999999-8888-7777-6666-555555555555"
CLIENT_SECRET = "words-of-the-client"
PROVIDER = "providers/Microsoft.MachineLearningServices"
W = f"/subscriptions/{SUB}/resourceGroups/{GROUP}/{PROVIDER}/workspaces/{WORKSPACE}"
MODELS = re.compile(r".*/models(?:/([^/]+))?(?:/versions(?:/([^/]+))?)?$")


@dataclass
class Fault:
    """Answer `times` requests whose method and path match with a status, after `skip` good ones.

    A status of 0 is no answer: the line is dropped.
    """

    match: str
    status: int
    code: str = "Fault"
    message: str = "made by the test"
    times: int = 1_000_000
    skip: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class Azure:
    """The state of the fake service, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.server = authority.serve(type("Handler", (_Handler,), {"azure": self}), folder)
        self.url = f"https://arm.localhost:{self.server.server_address[1]}"
        self.blob_port = 0
        self.emptied = 0
        self.lock = threading.Condition()
        self.forget()

    def forget(self) -> None:
        """As new: no models, no faults, nothing asked."""
        self.emptied += 1
        self.container = f"azureml-blobstore-{self.emptied}"
        self.models: dict[str, dict[str, dict[str, Any]]] = {}
        self.catalogue: dict[tuple[str, str], dict[str, Any]] = {}
        self.asked: list[str] = []
        self.subscriptions = [SUB]
        self.meeting = "^$"  # requests that are answered once two were there at one time
        self.at_once = self.most_at_once = 0
        self.secrets: set[str] = set()  # all that it gave
        self.faults: list[Fault] = []
        self.sas_seconds = 3600.0
        self.open_to_all = False  # the catalogue's files
        self.keys_allowed: bool | None = True  # None: the datastore itself says that it has none
        self.actions = ["*"]
        self.conflict = 409
        self.on_put: Any = None

    def count(self, match: str) -> int:
        """How many requests, as `METHOD path`, matched."""
        return sum(bool(re.search(match, line)) for line in self.asked)

    def sas(self) -> str:
        now = datetime.datetime.now(datetime.UTC)
        sas = generate_container_sas(
            ACCOUNT, self.container, KEY,
            permission=ContainerSasPermissions(read=True, write=True, create=True, list=True, add=True),
            start=now - datetime.timedelta(minutes=5),
            expiry=now + datetime.timedelta(seconds=self.sas_seconds),
        )  # fmt: skip
        quoted = sas.partition("sig=")[2].partition("&")[0]
        self.secrets |= {quoted, unquote(quoted)}
        return sas

    def token(self, who: str) -> str:
        made = token(who)
        self.secrets.add(made.split(".")[1])
        return made

    # -- what it answers -------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        lower = path.lower()
        if lower == "/metadata/endpoints":
            return 200, [self._metadata()]
        if "/.well-known/openid-configuration" in lower or lower.endswith("/discovery/instance"):
            return 200, self._openid(path)
        if lower.endswith("/oauth2/v2.0/token"):
            return self._token(body)
        if lower == "/msi/token":
            return 200, {"access_token": self.token("identity"), "expires_on": str(int(time.time()) + 3600)}
        if lower == "/subscriptions":
            return 200, {
                "value": [
                    {"subscriptionId": known, "displayName": "Travel", "tenantId": TENANT}
                    for known in self.subscriptions
                ]
            }
        if lower.endswith("/discovery"):
            return 200, self._discovery(path)
        if "/registries/" in lower:
            return self._registry(method, path, body)
        if lower.endswith("/workspaces"):
            return 200, {"value": [self._workspace()]}
        if lower.endswith("/microsoft.authorization/permissions"):  # says nothing of what is there
            return 200, {"value": [{"actions": self.actions, "notActions": []}]}
        if lower.startswith(W.lower()):
            return self._in_workspace(method, path[len(W) :], query, body)
        return problem(404, "ResourceNotFound", f"The Resource '{path.rpartition('/')[2]}' was not found.")

    def _in_workspace(self, method: str, path: str, query: Any, body: Any) -> tuple[int, Any]:
        if path == "":
            return 200, self._workspace()
        if path.endswith("/listSecrets"):
            if self.keys_allowed is True:
                return 200, {"secretsType": "Sas", "sasToken": self.sas()}
            return problem(
                403, "KeyBasedAuthenticationNotPermitted", "Key based authentication is not permitted."
            )
        if path.startswith("/datastores"):
            return 200, self._datastore()
        return self._models(method, path, query, body)

    def _models(self, method: str, path: str, query: Any, body: Any) -> tuple[int, Any]:
        match = MODELS.match(path)
        if match is None:
            return problem(404, "NotFound", path)
        name, version = match[1], match[2]
        if name is None:
            return 200, {"value": [self._container(found) for found in self.models]}
        known = self.models.get(name, {})
        if version is None and path.endswith("/versions"):
            newest = list(known.values())[::-1]
            return 200, {"value": newest[: int(query.get("$top", ["1000"])[0])]}
        if version is None:
            return (
                (200, self._container(name)) if known else problem(404, "NotFound", f"Model {name} not found")
            )
        if method == "GET":
            return (
                (200, known[version]) if version in known else problem(404, "NotFound", f"{name}:{version}")
            )
        if self.on_put is not None:
            self.on_put(name, version)
        with self.lock:
            return self._put(name, version, body, self.models.get(name, {}).get(version))

    def _put(self, name: str, version: str, body: Any, old: dict[str, Any] | None) -> tuple[int, Any]:
        given = body["properties"]
        if old is not None and old["properties"]["modelUri"] != given["modelUri"]:
            return problem(
                self.conflict, "UserError", "A model with this name and version exists, with another path."
            )
        made = {
            "id": f"{W}/models/{name}/versions/{version}",
            "name": version,
            "type": "Microsoft.MachineLearningServices/workspaces/models/versions",
            "systemData": {"createdAt": "2026-11-23T02:00:00Z", "createdBy": "Ann", "createdByType": "User"},
            "properties": {"isArchived": False, "isAnonymous": False, "flavors": {}, **given},
        }
        # What changed last is the last of them.
        self.models[name] = {**self.models.pop(name, {}), version: made}
        return 200 if old else 201, made

    def _container(self, name: str) -> dict[str, Any]:
        latest = max(self.models[name], key=int)
        changed = f"2026-11-23T02:00:00.{list(self.models).index(name):06d}Z"
        return {
            "id": f"{W}/models/{name}",
            "name": name,
            "properties": {"latestVersion": latest, "nextVersion": str(int(latest) + 1), "isArchived": False},
            "systemData": {"lastModifiedAt": changed},
        }

    def _workspace(self) -> dict[str, Any]:
        about = {"friendlyName": WORKSPACE, "discoveryUrl": f"{self.url}/discovery", "workspaceId": "w"}
        kind = "Microsoft.MachineLearningServices/workspaces"
        return {
            "id": W,
            "name": WORKSPACE,
            "type": kind,
            "location": "westeurope",
            "kind": "Default",
            "properties": about,
        }

    def _datastore(self) -> dict[str, Any]:
        return {
            "id": f"{W}/datastores/workspaceblobstore",
            "name": "workspaceblobstore",
            "properties": {
                "datastoreType": "AzureBlob", "accountName": ACCOUNT, "containerName": self.container,
                "endpoint": f"core.localhost:{self.blob_port}", "protocol": "https", "isDefault": True,
                "credentials": {"credentialsType": "None" if self.keys_allowed is None else "AccountKey"},
            },
        }  # fmt: skip

    # -- the catalogue ---------------------------------------------------------------------------------

    def _discovery(self, path: str) -> dict[str, Any]:
        name = path.split("/")[-2]
        about = {
            "registryName": name,
            "subscriptionId": SUB,
            "resourceGroup": "registry-rg",
            "location": "eastus",
        }
        return {**about, "primaryRegionResourceProviderUri": f"{self.url}/", "registryFqdns": {}}

    def _registry(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if "/registries/azureml/" not in path:
            return self._shared(method, path, body)
        *_, name, _, version = path.split("/")
        found = self.catalogue.get((name, version))
        if found is None:
            return problem(404, "NotFound", f"Model {name}:{version} not found")
        base = f"https://{ACCOUNT}.blob.core.localhost:{self.blob_port}/{self.container}"
        if "/datarefs/" in path:
            sas = {"credentialType": "SAS", "sasUri": f"{base}?{self.sas()}"}
            way = {"credentialType": "NoCredentials"} if self.open_to_all else sas
            return 200, {"blobReferenceForConsumption": {"blobUri": base, "credential": way}}
        about = {
            "modelUri": f"{base}/{found['prefix']}",
            "modelType": found["type"],
            "flavors": {},
            "tags": {},
        }
        about |= {
            "properties": {},
            "isAnonymous": False,
            "isArchived": False,
            "description": "of the catalogue",
        }
        where = f"azureml://registries/azureml/models/{name}/versions/{version}"
        return 200, {"id": where, "name": version, "properties": about, "systemData": {}}

    def _shared(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """A registry of one's own: its models, and for each version a container."""
        if "/tempdatarefs/" in path or "/datarefs/" in path:
            *_, name, _, version = path.split("/")
            if method == "PUT" and version in self.models.get(name, {}):
                return problem(409, "Conflict", "The asset is there already.")
            base = f"https://{ACCOUNT}.blob.core.localhost:{self.blob_port}/{self.container}"
            sas = {"credentialType": "SAS", "sasUri": f"{base}?{self.sas()}"}
            return 200, {"blobReferenceForConsumption": {"blobUri": base, "credential": sas}}
        return self._models(method, path, {}, body)

    # -- the login -------------------------------------------------------------------------------------

    def _metadata(self) -> dict[str, Any]:
        return {
            "name": "OliveLabTests",
            "portal": "https://portal.azure.localhost/",
            "resourceManager": self.url,
            "authentication": {"loginEndpoint": self.url, "audiences": [self.url]},
            "suffixes": {"storage": f"core.localhost:{self.blob_port}"},
        }

    def _openid(self, path: str) -> dict[str, Any]:
        base = f"{self.url}/{TENANT}"
        return {
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "issuer": f"{base}/v2.0",
            "tenant_discovery_endpoint": f"{base}/v2.0/.well-known/openid-configuration",
        }

    def _token(self, body: Any) -> tuple[int, Any]:
        if body.get("client_secret") != [CLIENT_SECRET]:
            return 401, {
                "error": "invalid_client",
                "error_description": "AADSTS7000215: Invalid client secret.",
            }
        return 200, {
            "token_type": "Bearer",
            "expires_in": 3600,
            "access_token": self.token(body["client_id"][0]),
        }


def token(who: str, seconds: float = 3600.0) -> str:
    """A token as the service gives: its middle part says whose it is."""
    now = int(time.time())
    facts = {"iss": f"https://sts.windows.net/{TENANT}/", "tid": TENANT, "oid": "object-1", "appid": who,
             "aud": "https://storage.azure.com", "iat": now, "nbf": now - 60,
             "exp": now + int(seconds)}  # fmt: skip
    if "@" in who:
        facts["upn"] = who
    parts = [{"alg": "none", "typ": "JWT"}, facts, {}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts)


def problem(status: int, code: str, message: str) -> tuple[int, Any]:
    return status, {"error": {"code": code, "message": message}}


class _Handler(BaseHTTPRequestHandler):
    azure: Azure
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        azure = self.azure
        with azure.lock:
            azure.at_once += 1
            azure.most_at_once = max(azure.most_at_once, azure.at_once)
            azure.lock.notify_all()
            if re.search(azure.meeting, self.path.partition("?")[0]):
                azure.lock.wait_for(lambda: azure.most_at_once >= 2, 60)
        try:
            self.answer()
        finally:
            with azure.lock:
                azure.at_once -= 1

    def answer(self) -> None:
        split = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        line = f"{self.command} {split.path}"
        azure = self.azure
        azure.asked.append(line)
        fault = due(azure.faults, line, azure.lock)
        headers = fault.headers if fault else {}
        if fault and fault.status == 0:
            self.close_connection = True
            return
        if fault:
            status, answer = problem(fault.status, fault.code, fault.message)
        else:
            form = "urlencoded" in self.headers.get("Content-Type", "")
            body = (parse_qs(raw.decode()) if form else json.loads(raw)) if raw else {}
            free = ("/metadata/", "/oauth2/", "openid-configuration", "/msi/", "/discovery/instance")
            if not any(part in self.path for part in free) and not self.headers.get("Authorization"):
                status, answer = problem(401, "AuthenticationFailed", "Authentication failed.")
            else:
                status, answer = azure.answer(
                    self.command, split.path.rstrip("/"), parse_qs(split.query), body
                )
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Said by the tests that care."""
