"""Durations, sizes, percentages and addresses as people write them."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

# Longer numbers than these say nothing that anybody means, and would not fit a float.
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,15})?)"
_DURATION = re.compile(rf"{_NUMBER}(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(rf"{_NUMBER}\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)")
_PERCENT = re.compile(rf"{_NUMBER}\s*%")
_BYTES = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


def parse_duration(value: object) -> float:
    """Seconds out of `10s`, `5m`, `1h`, `7d`, `250ms` or 0. Raises ValueError."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _SECONDS[match[2]]
    if value in (0, "0") and not isinstance(value, bool):
        return 0.0
    raise ValueError("not a duration: write 10s, 5m, 1h or 7d")


def parse_size(value: object) -> int:
    """Bytes out of `512MiB`, `10GiB`, `2GB` or 0. Raises ValueError."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(float(match[1]) * _BYTES[match[2]])
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    raise ValueError("not a size: write 512MiB or 10GiB")


def parse_percent(value: object) -> float:
    """0.3 out of `30%`; at most `100%`, or 0. Raises ValueError."""
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value.strip())) and float(match[1]) <= 100:
        return float(match[1]) / 100
    if value in (0, "0") and not isinstance(value, bool):
        return 0.0
    raise ValueError("not a percentage: write 30%, at most 100%")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener is bound: a host name or IP address (no brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Can only this machine reach it?"""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(value: object) -> Address:
    """`0.0.0.0:5000` or `[::]:5000`. Raises ValueError."""
    if isinstance(value, Address):
        return value
    match = (
        re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/]+)):([0-9]{1,5})", value) if isinstance(value, str) else None
    )
    if match is None or int(match[3]) > 65535:
        raise ValueError("not an address: write 0.0.0.0:5000 or [::]:5000")
    if match[1] is None:
        return Address(match[2], int(match[3]))
    try:
        # In its one canonical spelling, since clusters are matched by it.
        return Address(str(ipaddress.IPv6Address(match[1])), int(match[3]))
    except ValueError:
        raise ValueError("not an address: brackets hold an IPv6 address") from None


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Percent = Annotated[float, BeforeValidator(parse_percent)]
ListenAddress = Annotated[Address, BeforeValidator(parse_address), PlainSerializer(str)]
