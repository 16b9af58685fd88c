"""A listener that answers in registries' own names: see `server.intercept_tls` and `server.intercept_connect`."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from proxy.settings.bases import Model

# A shell pattern's characters are those of hosts besides.
_TARGET = re.compile(r"(?P<host>[a-z0-9_.*?-]+|\[(?P<v6>[0-9a-f:.]+)\])(:(?P<port>[1-9][0-9]{0,4}))?", re.ASCII)


def _tunnel_target(value: str) -> str:
    found = _TARGET.fullmatch(value.lower())
    if found is None or int(found["port"] or 443) > 65535 or not _is_good(found["v6"]):
        raise ValueError(
            "not a host, with a port if it is not 443: write auth.docker.io, *.example.com or one.test:8443"
        )
    return value.lower()


def _is_good(v6: str | None) -> bool:
    try:
        return v6 is None or bool(ipaddress.IPv6Address(v6))
    except ValueError:
        return False


class InterceptSettings(Model):
    """An authority's certificate and key (PEM), by which each registry has a certificate here that nodes trust."""

    ca_certificate: Path
    ca_key: Path


TunnelTarget = Annotated[str, AfterValidator(_tunnel_target)]
