"""What the models of the configuration are made of."""

import ipaddress
import re
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict

# Labels of letters, digits, hyphens and the underscores that some internal names have; IPv4 addresses fit as well.
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?", re.ASCII)


def check_url(value: str) -> str:
    """An http or https URL that can be dialled, without its last slashes. Raises ValueError."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not is_host(parts):
        raise ValueError("not an http:// or https:// URL")
    if parts.username is not None or "?" in value or "#" in value:
        raise ValueError("the URL holds more than scheme, host, port and path")
    return value.rstrip("/")


def is_host(parts: SplitResult) -> bool:
    """Does the URL name a host that could be dialled, and a port, if any, that is one?"""
    host = parts.hostname or ""
    try:
        _ = parts.port
        return bool(_HOST.fullmatch(host)) or bool(ipaddress.IPv6Address(host.partition("%")[0]))
    except ValueError:
        return False


def _proxy_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme != "http" or not is_host(parts):
        raise ValueError("not an http:// URL")
    return value


HttpUrl = Annotated[str, AfterValidator(check_url)]
ProxyUrl = Annotated[str, AfterValidator(_proxy_url)]


class Model(BaseModel):
    """Frozen, and what it does not know is a mistake."""

    # Built when the file is read, the whole at once, and not each part by itself before.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
