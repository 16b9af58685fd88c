"""Plain HTTP requests, without redirects and from an address of choice."""

import hashlib
import http.client
from dataclasses import dataclass
from email.message import Message

MANIFEST_TYPES = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Message
    body: bytes

    @property
    def digest(self) -> str:
        """The digest of the bytes, whatever the headers say."""
        return "sha256:" + hashlib.sha256(self.body).hexdigest()

    @property
    def cache_status(self) -> str:
        return str(self.headers.get("Cache-Status", ""))


def ask(
    port: int,
    path: str,
    method: str = "GET",
    *,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    source: str = "127.0.0.1",
) -> Answer:
    """One request to 127.0.0.1, from the local address `source`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
    try:
        connection.request(method, path, body=body, headers={"Accept": MANIFEST_TYPES} | (headers or {}))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def answers(port: int, path: str, status: int = 200) -> bool:
    """Whether a GET is answered with `status`: for daemons that become ready."""
    try:
        return ask(port, path).status == status
    except (OSError, http.client.HTTPException):
        return False
