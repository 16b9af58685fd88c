"""A certificate authority, made by the `openssl` command, and TLS clients that trust it."""

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates into `directory`; `ca` is its own. Skips the test where there is no openssl."""

    def __init__(self, directory: Path, name: str = "authority", above: "Authority | None" = None) -> None:
        """`above`: who has issued its certificate; without, it has itself."""
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        self._directory, self._count = directory / name, 0
        self._directory.mkdir(parents=True)
        self.ca, self._key = self._directory / "ca.crt", self._directory / "ca.key"
        issuer = f"-CA {above.ca} -CAkey {above._key}" if above is not None else ""
        _openssl(
            f"req -x509 -days 2 {_KEY} {issuer} -subj /CN={name} -keyout {self._key} -out {self.ca} "
            "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign"
        )

    def issue(self, subject: str = "/CN=localhost", alternatives: str = "", days: int = 2, usage: str = "") -> Pair:
        """A certificate for `subject`, with `alternatives` (`DNS:a,URI:b`) as its SAN and extended `usage`."""
        self._count += 1
        made = Pair(self._directory / f"{self._count}.crt", self._directory / f"{self._count}.key")
        request, extensions = self._directory / f"{self._count}.csr", self._directory / f"{self._count}.ext"
        lines = [f"subjectAltName={alternatives}"] if alternatives else []
        lines += [f"extendedKeyUsage={usage}"] if usage else []
        extensions.write_text("\n".join(["basicConstraints=CA:FALSE", *lines]))
        _openssl(f"req -new {_KEY} -subj {subject} -keyout {made.key} -out {request}")
        _openssl(
            f"x509 -req -in {request} -CA {self.ca} -CAkey {self._key} -CAcreateserial -days {days} "
            f"-extfile {extensions} -out {made.certificate}"
        )
        return made

    def server(self) -> Pair:
        """A certificate for 127.0.0.1."""
        return self.issue("/CN=proxy", "IP:127.0.0.1,DNS:localhost")

    def locked(self, pair: Pair) -> Path:
        """The key of `pair`, encrypted."""
        file = pair.key.with_suffix(".locked")
        _openssl(f"pkcs8 -topk8 -in {pair.key} -passout pass:secret -out {file}")
        return file

    def client(self, pair: Pair | None = None) -> ssl.SSLContext:
        """What a client goes by that trusts this authority, and shows its certificate if it has one."""
        context = ssl.create_default_context(cafile=self.ca)
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return context


def _openssl(arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], check=True, capture_output=True)


def tls_listener(pair: Pair, **more: object) -> list[dict[str, object]]:
    """The setting `listen` with one listener that has this certificate; keywords are further keys of its `tls`."""
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)} | more
    return [{"address": "127.0.0.1:0", "tls": tls}]
