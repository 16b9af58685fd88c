"""A certificate authority for listeners that intercept: made once by an operator, and short certificates by it.

The only room that knows the extra `intercept` (cryptography).
"""

import datetime
import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.server.tls import TLSError

_PEM = serialization.Encoding.PEM
# Clocks of nodes may be late.
_EARLIER = datetime.timedelta(hours=1)
_NAME = "pullthrough"
# Keys that sign without a digest of their own choice.
_WITHOUT_HASH = ("Ed25519PrivateKey", "Ed448PrivateKey")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, PEM. Of `key` nothing is shown."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Pair(…)"


class Authority:
    """One that was read."""

    def __init__(self, certificate: x509.Certificate, key: CertificateIssuerPrivateKeyTypes) -> None:
        self._certificate = certificate
        self._key = key
        # Those of one authority have one key: it lives no longer than they do.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())

    @property
    def ends(self) -> datetime.datetime:
        """When its certificate ends."""
        return self._certificate.not_valid_after_utc

    def issue(self, name: str, now: datetime.datetime, life: datetime.timedelta) -> Pair:
        """A certificate for a server called `name`, with the authority's own behind it, and its key."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, _NAME)]))
            .issuer_name(self._certificate.subject)
            .public_key(self._leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - _EARLIER, self._certificate.not_valid_before_utc))
            .not_valid_after(min(now + life, self.ends))
            # Critical, since the subject does not say whom it is for (RFC 5280, section 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName([_alternative(name)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._leaf_key.public_key()), critical=False)
            .add_extension(_issued_by(self._certificate), critical=False)
        )
        algorithm = None if type(self._key).__name__.lstrip("_") in _WITHOUT_HASH else hashes.SHA256()
        leaf = builder.sign(self._key, algorithm)
        return Pair(leaf.public_bytes(_PEM) + self._certificate.public_bytes(_PEM), _key_pem(self._leaf_key))


def read_authority(certificate_file: Path, key_file: Path, now: datetime.datetime) -> Authority:
    """The authority in these files. Blocks. Raises TLSError for what cannot sign certificates at `now`."""
    certificate_pem, key_pem = _read(certificate_file), _read(key_file)
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        own = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TLSError(f"{certificate_file} is no certificate (PEM)") from error
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except TypeError as error:
        raise TLSError(f"{key_file}: the private key is encrypted; a key without a password is needed") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TLSError(f"{key_file} is no private key (PEM)") from error
    if key.public_key() != own:
        raise TLSError(f"{certificate_file} and {key_file} do not belong together")
    if not hasattr(key, "sign"):
        raise TLSError(f"{key_file} is no key that signs")
    if (why := _no_authority(certificate)) is not None:
        raise TLSError(f"{certificate_file} is no authority's: {why}")
    if now >= certificate.not_valid_after_utc:
        raise TLSError(f"{certificate_file} ended on {certificate.not_valid_after_utc:%Y-%m-%d}")
    return Authority(certificate, key)  # type: ignore[arg-type]  # it signs


def create_authority(names: Collection[str], now: datetime.datetime, life: datetime.timedelta) -> Pair:
    """A new authority; where `names` are given, for these and what is below them only (RFC 5280, section 4.2.1.10).

    `names` are hosts, in lower case and without ports, or IP addresses and networks. Raises ValueError for others.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _NAME),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{_NAME} {now:%Y-%m-%d %H:%M:%S}"),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(_constraints(names), critical=True)
    return Pair(builder.sign(key, hashes.SHA256()).public_bytes(_PEM), _key_pem(key))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TLSError(f"{file}: {error.strerror}") from error


def _no_authority(certificate: x509.Certificate) -> str | None:
    try:
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "it may not sign certificates"
    except x509.ExtensionNotFound:
        return "it does not say that it may sign certificates"
    except ValueError:
        return "its extensions cannot be read"
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
    return None if usage.key_cert_sign else "its key may not sign certificates"


def _issued_by(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(certificate.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _constraints(names: Collection[str]) -> x509.NameConstraints:
    """`names` and no others, of whatever kind: of a kind that is not mentioned all would be good."""
    permitted: list[x509.GeneralName] = []
    for name in sorted(names):
        if not name:
            raise ValueError("an empty name")
        try:
            permitted.append(x509.IPAddress(ipaddress.ip_network(name)))
        except ValueError:
            permitted.append(x509.DNSName(name))
    kinds = {type(one) for one in permitted}
    excluded: list[x509.GeneralName] = []
    if x509.IPAddress not in kinds:
        excluded += [x509.IPAddress(ipaddress.ip_network(everything)) for everything in ("0.0.0.0/0", "::/0")]
    if x509.DNSName not in kinds:
        excluded.append(x509.DNSName(""))
    return x509.NameConstraints(permitted, excluded or None)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
