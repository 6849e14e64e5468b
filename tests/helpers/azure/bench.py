"""The storage emulator (Azurite), a fake of the rest of Azure, and an environment that leads to both."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from azure.storage.blob import ContainerClient

from pipeline import settings
from tests.helpers.azure import authority
from tests.helpers.azure.fake_arm import ACCOUNT, CLIENT_SECRET, KEY, TENANT, Azure
from tests.helpers.azure.proxy import Proxy
from tests.helpers.lab import until

HERE = Path(__file__).parent
AZURITE = HERE / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


def missing() -> str | None:
    """What the tests with Azure need and is not here, as a sentence."""
    if shutil.which("node") is None:
        return "node is not here, which the storage emulator needs; install it (Debian: apt-get install npm)"
    if not AZURITE.is_file():
        return "the storage emulator is not here; `make azure-test` installs it"
    return None


class Bench:
    """Everything that runs, and `environment` for a process that is to find it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        authority.make(folder)
        self.emulator, self.emulator_port = _start(folder)
        self.proxy = Proxy(folder, self.emulator_port)
        self.azure = Azure(folder)
        self.azure.blob_port = self.proxy.port
        (folder / "bin").mkdir(exist_ok=True)
        self.az("ann@example.org")

    @property
    def environment(self) -> dict[str, str]:
        ca = str(self.folder / "ca.pem")
        return {
            "ARM_CLOUD_METADATA_URL": f"{self.azure.url}/metadata/endpoints?api-version=2020-09-01",
            "REGISTRY_DISCOVERY_ENDPOINT_URL": self.azure.url,
            "AZURE_AUTHORITY_HOST": self.azure.url,
            "REQUESTS_CA_BUNDLE": ca,
            "SSL_CERT_FILE": ca,
            "MSI_ENDPOINT": f"{self.azure.url}/msi/token",
            "MSI_SECRET": "secret-of-the-machine",
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": "app-of-ann",
            "AZURE_CLIENT_SECRET": CLIENT_SECRET,
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(HERE / "names"), str(settings.ROOT)]),
        }

    def az(self, who: str | None) -> None:
        """Put an `az` there that is logged in as `who`, or not at all."""
        answer = (
            f'echo \'{{"accessToken": "{self.azure.token(who)}", "expires_on": {int(time.time()) + 3600}}}\''
            if who
            else "echo \"ERROR: Please run 'az login' to setup account.\" >&2; exit 1"
        )
        self.cli(answer)

    def cli(self, script: str) -> None:
        """Put an `az` there that does what the lines of shell say."""
        path = self.folder / "bin" / "az"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def container(self) -> ContainerClient:
        """The container, past the proxy, with the account's own key."""
        url = f"https://{ACCOUNT}.blob.core.localhost:{self.emulator_port}"
        return ContainerClient(
            url, self.azure.container, credential=KEY, connection_verify=str(self.folder / "ca.pem")
        )

    def forget(self) -> None:
        """As new, with another container: emptied, it would still have blocks that belong to no file."""
        self.proxy.forget()
        self.azure.forget()
        self.azure.blob_port = self.proxy.port
        self.az("ann@example.org")
        with self.container() as container:
            container.create_container()

    def close(self) -> None:
        self.proxy.forget()
        for server in (self.proxy.server, self.azure.server):
            server.shutdown()
            server.server_close()
        self.emulator.kill()  # asked to end, it would wait for its clients
        self.emulator.wait()


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    command = [
        "node", "--require", str(HERE / "names" / "near.cjs"), str(AZURITE), "--blobHost", "127.0.0.1",
        "--blobPort", "0", "--location",
        str(folder / "blobs"), "--silent", "--skipApiVersionCheck", "--disableTelemetry", "--oauth", "basic",
        "--cert", str(folder / "cert.pem"), "--key", str(folder / "key.pem"),
    ]  # fmt: skip
    said = folder / "azurite.log"
    with said.open("wb") as log:
        # It asks for the source of a copy itself, at the proxy's address.
        trusting = {**os.environ, "NODE_EXTRA_CA_CERTS": str(folder / "ca.pem")}
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=trusting)

    def listens() -> re.Match[str] | None:
        if process.poll() is not None:
            raise RuntimeError(f"the storage emulator did not start: {said.read_text()}")
        return re.search(r"successfully listens on https://127\.0\.0\.1:(\d+)", said.read_text())

    return process, int(until(listens, "the storage emulator", 180)[1])
