"""A token server for the real registries: distribution's token specification, RS256, each user's rights by repository.

The registries verify what it signs against its certificate, so a token that says too little is refused by them.
"""

import base64
import json
import threading
import time
import uuid
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.clients.process import free_port, run

SERVICE = "registry.test"
ISSUER = "tokens.test"


class TokenServer:
    """`rights`: for each repository who may pull, "" for nobody in particular; `pusher` may do everything."""

    def __init__(self, directory: Path, passwords: Mapping[str, str], rights: Mapping[str, set[str]]) -> None:
        self.passwords = dict(passwords)
        self.rights = {repository: set(users) for repository, users in rights.items()}
        # The Authorization of every request that came, in their order.
        self.seen: list[str] = []
        self._key, self._certificate = directory / "token.key", directory / "token.crt"
        directory.mkdir(parents=True, exist_ok=True)
        run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=tokens.test", "-days", "2"),
            *("-keyout", self._key, "-out", self._certificate),
        )
        pem = self._certificate.read_text().splitlines()
        self._chain = ["".join(line for line in pem if not line.startswith("-----"))]
        self.port = free_port()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, name="token server")
        self._thread.start()

    @property
    def place(self) -> str:
        """Its host and port, as `token_realms` names them."""
        return f"127.0.0.1:{self.port}"

    def auth(self) -> dict[str, object]:
        """What a registry's configuration says of it."""
        return {
            "token": {
                "realm": f"http://{self.place}/token",
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self._certificate),
            }
        }

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def token(self, user: str, *scopes: str) -> str:
        """A token of `user` for as much of `scopes` as the user may do."""
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = [one for one in actions.split(",") if self._may(user, name, one)]
            if kind == "repository" and allowed:
                access.append({"type": "repository", "name": name, "actions": allowed})
        now = int(time.time())
        claims = {
            "iss": ISSUER, "sub": user, "aud": SERVICE, "iat": now, "nbf": now - 5, "exp": now + 300,
            "jti": uuid.uuid4().hex, "access": access,
        }  # fmt: skip
        head = {"typ": "JWT", "alg": "RS256", "x5c": self._chain}
        signed = f"{_packed(json.dumps(head).encode())}.{_packed(json.dumps(claims).encode())}"
        return f"{signed}.{_packed(self._signature(signed.encode()))}"

    def _may(self, user: str, repository: str, action: str) -> bool:
        return user == "pusher" or (action == "pull" and user in self.rights.get(repository, set()))

    def _signature(self, text: bytes) -> bytes:
        place = self._key.with_name(f"sign-{uuid.uuid4().hex}")
        place.write_bytes(text)
        run("openssl", "dgst", "-sha256", "-sign", self._key, "-out", f"{place}.sig", place)
        return Path(f"{place}.sig").read_bytes()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                header = self.headers.get("Authorization", "")
                server.seen.append(header)
                user = server.user_of(header)
                query = parse_qs(urlsplit(self.path).query)
                scopes = [one for scope in query.get("scope", []) for one in scope.split()]
                body = b"{}" if user is None else json.dumps({"token": server.token(user, *scopes)}).encode()
                self.send_response(401 if user is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                # Clients try the form first and go on with GET where there is none.
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                self.send_error(405)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
                return

        return Handler

    def user_of(self, header: str) -> str | None:
        """Who a Basic header is: "" for none at all, None for a wrong one."""
        if not header:
            return ""
        try:
            user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
        except ValueError:
            return None
        return user if self.passwords.get(user) == password else None


def _packed(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
