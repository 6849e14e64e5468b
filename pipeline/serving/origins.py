"""Where a request comes from, as a browser says it: pages of other sites are recognized.

Wherever a server of ours listens, any page that a user visits can send requests to it from their browser. The
browser says where a request comes from (`Origin`, `Sec-Fetch-Site`), so foreign ones are recognized. A page
whose DNS name was rebound to our address is recognized by its `Host`: a name that the server was not started
with. An IP address cannot be rebound.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import ip_address

from starlette.datastructures import Headers

from pipeline.serving.listening import LOOPBACK

SCHEMES = ("http", "https")
# All that a `Host` may be: a name or an IPv4 address, or an IPv6 address in brackets, and perhaps a port.
HOST = re.compile(r"(?:([a-z0-9._-]+)|\[([0-9a-f]*:[0-9a-f:.]*)\])(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
FOREIGN = "This request comes from another site, so it is refused."


def rebound(headers: Headers, names: Collection[str] = ()) -> str | None:
    """Why the `Host` of a request is refused, or None. `names` are accepted besides localhost and IPs."""
    host = headers.get("host", "")
    if is_ours(hostname(host), names):
        return None
    return (
        f"Olive Lab does not answer to the name {host[:100]!r}. Open it as localhost or by its IP"
        " address; if the name is yours, start Olive Lab with --allow-host and that name."
    )


def is_foreign(headers: Headers) -> bool:
    """Whether a page of another origin than ours has sent a request, by its `Origin`."""
    origin, host = headers.get("origin"), headers.get("host", "").lower()
    return origin is not None and origin.lower() not in {f"{scheme}://{host}" for scheme in SCHEMES}


def crosses(headers: Headers) -> bool:
    """Whether a browser says that another site than ours has caused a request (`Sec-Fetch-Site`)."""
    return headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def is_ours(name: str, names: Collection[str]) -> bool:
    """Whether a name or an address is one of ours."""
    if name in LOOPBACK or name in names:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def hostname(host: str) -> str:
    """The name or address in a `Host`, in small letters; "" for what is not one."""
    found = HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""
