"""WWW-Authenticate challenges, parsed and judged. Pure.

The rule for realms (PROTOCOL, section 6): a token realm has the upstream's own host and port, or stands in its
`token_realms`; never http where the upstream is https. Credentials were lost elsewhere to realms that a registry chose
(CVE-2020-15157, CVE-2026-33540).
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from urllib.parse import urlsplit

_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
# One element at a time, from a fixed position on: a parameter, or a scheme (with a token68 that nobody needs).
_PARAMETER = re.compile(rf"({_WORD})[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([^ \t,\"]+))")
_SCHEME = re.compile(rf"({_WORD})(?:[ \t]+[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$)))?(?=[ \t,]|$)")
_BETWEEN = re.compile(r"[ \t,]+")
# Visible ASCII but the backslash, which some take for a slash.
_PLAIN_URL = re.compile(r"[!-\[\]-~]+")
# Registries' challenges have a few hundred bytes; longer ones are cut, and more of them not looked at.
_LONGEST_HEADER = 4096
_MOST_HEADERS = 8


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: the scheme in lower case and its parameters, names in lower case."""

    scheme: str
    parameters: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        """The parameter `name`, or an empty string."""
        return dict(self.parameters).get(name, "")


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """All challenges in WWW-Authenticate `headers` (RFC 9110, section 11.6.1), in their order."""
    return [
        challenge for header in islice(headers, _MOST_HEADERS) for challenge in _challenges(header[:_LONGEST_HEADER])
    ]


def _challenges(header: str) -> Iterator[Challenge]:
    position, scheme, parameters = 0, "", dict[str, str]()
    while position < len(header):
        if between := _BETWEEN.match(header, position):
            position = between.end()
        elif parameter := _PARAMETER.match(header, position):
            quoted = parameter[2]
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else parameter[3]
            # A parameter may stand once only (RFC 9110); of two the first is judged and handed on.
            parameters.setdefault(parameter[1].lower(), value)
            position = parameter.end()
        elif found := _SCHEME.match(header, position):
            if scheme:
                yield Challenge(scheme, tuple(parameters.items()))
            scheme, parameters = found[1].lower(), {}
            position = found.end()
        else:
            break
    if scheme:
        yield Challenge(scheme, tuple(parameters.items()))


def realm_allowed(realm: str, upstream_url: str, token_realms: Collection[str]) -> bool:
    """May a token be asked for at `realm`, by an upstream reached at `upstream_url`?"""
    if not _PLAIN_URL.fullmatch(realm):
        # Parsers differ over these, and another one than this dials.
        return False
    try:
        there, here = urlsplit(realm), urlsplit(upstream_url)
        origin = (there.hostname, _port(there.scheme, there.port))
        own = (here.hostname, _port(here.scheme, here.port))
    except ValueError:
        return False
    if there.scheme not in {"http", "https"} or not there.hostname or there.username is not None:
        return False
    if here.scheme == "https" and there.scheme != "https":
        return False
    if origin == own:
        return True
    named = {there.netloc.lower()}
    if there.port is None or there.port == _port(there.scheme, None):
        named.add(there.hostname)
    return bool(named & set(token_realms))


def _port(scheme: str, port: int | None) -> int:
    return port if port is not None else 443 if scheme == "https" else 80


def challenge_for_client(headers: Iterable[str], upstream_url: str, token_realms: Collection[str]) -> str | None:
    """The upstream's challenge as a client of ours may be given it; None where its realm is not to be trusted.

    Written anew from its parsed parts, so that nothing else travels in it.
    """
    for challenge in parse_challenges(headers):
        if challenge.scheme == "bearer" and not realm_allowed(challenge.get("realm"), upstream_url, token_realms):
            continue
        if challenge.scheme in {"bearer", "basic"}:
            parameters = ",".join(f'{name}="{_quoted(value)}"' for name, value in challenge.parameters)
            return f"{challenge.scheme.capitalize()} {parameters}"
    return None


def _quoted(value: str) -> str:
    printable = "".join(char for char in value if char.isprintable())
    return printable.replace("\\", "\\\\").replace('"', '\\"')
