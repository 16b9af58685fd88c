"""The names in a client's certificate, and what a context is like."""

from typing import Any

import pytest

from proxy.server.tls import certificate_names

CN = ((("commonName", "prod"),),)


@pytest.mark.parametrize(
    ("certificate", "names"),
    [
        (None, set()),
        ({}, set()),
        ({"subject": CN}, {"prod"}),
        ({"subject": CN, "subjectAltName": (("IP Address", "10.0.0.1"), ("email", "a@b"))}, {"prod"}),
        ({"subject": CN, "subjectAltName": (("DNS", "a"), ("URI", "spiffe://b/c"))}, {"a", "spiffe://b/c"}),
        # No kind passes for another.
        ({"subject": CN, "subjectAltName": (("DNS", "spiffe://b/c"),)}, set()),
        ({"subject": CN, "subjectAltName": (("URI", "prod"),)}, set()),
        ({"subject": ((("commonName", "spiffe://b/c"),),)}, set()),
        ({"subject": (*CN, *((("commonName", "dev"),),))}, set()),
        ({"subject": ((("organizationName", "prod"),),)}, set()),
    ],
)
def test_names_of_a_certificate(certificate: dict[str, Any] | None, names: set[str]) -> None:
    """DNS names and URIs of the SAN; without any, the subject's one common name."""
    assert certificate_names(certificate) == names
