"""WWW-Authenticate, parsed and judged."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.challenge import Challenge, challenge_for_client, parse_challenges, realm_allowed

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'


def parsed(*headers: str) -> list[tuple[str, dict[str, str]]]:
    return [(challenge.scheme, dict(challenge.parameters)) for challenge in parse_challenges(headers)]


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        (HUB, [("bearer", {"realm": "https://auth.docker.io/token", "service": "registry.docker.io",
                           "scope": "repository:a/b:pull,push"})]),
        ("", []),
        (" ", []),
        ("Basic", [("basic", {})]),
        ('BEARER REALM="x"', [("bearer", {"realm": "x"})]),
        ("Bearer realm=https://a/t,service=s", [("bearer", {"realm": "https://a/t", "service": "s"})]),
        ('Bearer realm = "x" , service = "y"', [("bearer", {"realm": "x", "service": "y"})]),
        ('Bearer realm="x" service="y"', [("bearer", {"realm": "x", "service": "y"})]),
        ('Bearer realm="a\\"b\\\\c"', [("bearer", {"realm": 'a"b\\c'})]),
        ('Bearer realm="x",scope=""', [("bearer", {"realm": "x", "scope": ""})]),
        ('Basic realm="a, b=c", Bearer realm="d"', [("basic", {"realm": "a, b=c"}), ("bearer", {"realm": "d"})]),
        ('Bearer realm="x",error="invalid_token", Basic', [("bearer", {"realm": "x", "error": "invalid_token"}),
                                                           ("basic", {})]),
        (', Basic realm="x"', [("basic", {"realm": "x"})]),
        ('Bearer realm="unterminated', [("bearer", {})]),
        ("=x", []),
        ('"Bearer"', []),
    ],
)  # fmt: skip
def test_headers_and_their_challenges(header: str, challenges: list[tuple[str, dict[str, str]]]) -> None:
    """RFC 9110, 11.6.1: quoted strings and tokens, escapes, several challenges in one header, bad white space."""
    assert parsed(header) == challenges


def test_several_headers_are_one_list() -> None:
    """In their order; ECR and Artifactory send one each."""
    assert parsed('Basic realm="x"', HUB)[1][0] == "bearer"
    assert len(parsed('Basic realm="x"', HUB)) == 2


PARAMETERS = st.dictionaries(
    st.sampled_from(["realm", "service", "scope", "error", "x-y"]), st.text(min_size=0, max_size=20), max_size=4
)


@given(st.lists(st.tuples(st.sampled_from(["bearer", "basic", "negotiate"]), PARAMETERS.filter(bool)), max_size=3))
def test_quoted_parameters_of_any_content_read_back(challenges: list[tuple[str, dict[str, str]]]) -> None:
    """Commas, quotes, equal signs and backslashes inside a value end nothing."""

    def written(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    clean = [(scheme, {name: " ".join(v.split()) for name, v in of.items()}) for scheme, of in challenges]
    header = ", ".join(f"{scheme} " + ", ".join(f"{n}={written(v)}" for n, v in of.items()) for scheme, of in clean)
    assert parsed(header) == clean


@given(st.text(max_size=80) | st.text(alphabet='Bearer alm="x,\\ \t', max_size=80))
def test_no_header_makes_it_raise_and_none_injects_a_line(header: str) -> None:
    """Whatever is passed on to a client is one printable header line."""
    parse_challenges([header])
    passed = challenge_for_client([header], "https://a.test", ())
    assert passed is None or passed.isprintable()


@pytest.mark.parametrize(
    ("realm", "upstream", "realms", "allowed"),
    [
        ("https://a.test/token", "https://a.test", (), True),
        ("https://A.TEST:443/token?x=y", "https://a.test/v", (), True),
        ("http://a.test/token", "http://a.test:80", (), True),
        ("https://a.test:8443/token", "https://a.test", (), False),
        ("https://a.test/token", "https://a.test:5000", (), False),
        ("https://[::1]:5000/t", "https://[::1]:5000", (), True),
        # Other hosts only where they are named.
        ("https://auth.docker.io/token", "https://registry-1.docker.io", ("auth.docker.io",), True),
        ("https://auth.docker.io/token", "https://registry-1.docker.io", (), False),
        ("https://auth.docker.io:443/token", "https://registry-1.docker.io", ("auth.docker.io",), True),
        ("https://auth.docker.io:8443/token", "https://registry-1.docker.io", ("auth.docker.io",), False),
        ("https://auth.docker.io:8443/t", "https://registry-1.docker.io", ("auth.docker.io:8443",), True),
        ("https://x.auth.docker.io/t", "https://registry-1.docker.io", ("auth.docker.io",), False),
        ("https://auth.docker.io.evil/t", "https://registry-1.docker.io", ("auth.docker.io",), False),
        ("https://evil/auth.docker.io", "https://registry-1.docker.io", ("auth.docker.io",), False),
        # Never from https to http, nor to anything else.
        ("http://a.test/token", "https://a.test", (), False),
        ("http://auth.test/token", "https://a.test", ("auth.test",), False),
        ("https://auth.test/token", "http://a.test", ("auth.test",), True),
        ("ftp://a.test/token", "http://a.test", (), False),
        ("file:///etc/passwd", "http://a.test", ("",), False),
        # Addresses that say one host and mean another.
        ("https://a.test@evil/token", "https://a.test", (), False),
        ("https://user:pw@a.test/token", "https://a.test", (), False),
        ("https://@a.test/token", "https://a.test", (), False),
        ("https://evil\\@a.test/token", "https://a.test", (), False),
        ("https://a.test\\.evil/token", "https://a.test", (), False),
        ("https://a.test%2eevil/token", "https://a.test", (), False),
        ("https://a.test.:443/token", "https://a.test", (), False),
        ("//a.test/token", "https://a.test", (), False),
        ("/token", "https://a.test", (), False),
        ("a.test/token", "https://a.test", (), False),
        ("", "https://a.test", (), False),
        ("https://", "https://a.test", (), False),
        ("https://a.test:x/token", "https://a.test", (), False),
        ("https://a.test:99999/token", "https://a.test", (), False),
        ("https://[::1/token", "https://[::1]", (), False),
        ("https://[::1%25lo]/t", "https://[::1]", (), False),
    ],
)
def test_which_realms_get_credentials(realm: str, upstream: str, realms: tuple[str, ...], allowed: bool) -> None:
    """The upstream's own host and port, or what its token_realms name (CVE-2020-15157, CVE-2026-33540)."""
    assert realm_allowed(realm, upstream, realms) is allowed


@given(st.text(max_size=30).map(lambda text: f"https://{text}") | st.text(max_size=30))
def test_an_allowed_realm_is_dialled_where_it_was_judged(realm: str) -> None:
    """Two parsers of URLs must not disagree: aiohttp's sees the same host that the rule saw."""
    from yarl import URL

    for text in (realm, realm.replace("https://", "https://a.test"), realm.replace("https://", "https://a.test/")):
        if realm_allowed(text, "https://a.test", ()):
            assert (URL(text).host, URL(text).port, URL(text).scheme) == ("a.test", 443, "https")
            assert urlsplit(text).hostname == "a.test"


def test_a_client_is_given_the_challenge_anew() -> None:
    """Written from its parts; Basic needs no realm to be trusted, since the client answers us."""
    assert challenge_for_client([HUB], "https://registry-1.docker.io", {"auth.docker.io"}) == HUB
    assert challenge_for_client(['basic realm="a\\"b"'], "https://a.test", ()) == 'Basic realm="a\\"b"'
    assert challenge_for_client(['Basic realm="a\x07\x85\u2028\udcffb"'], "https://a.test", ()) == 'Basic realm="ab"'


def test_a_client_is_given_no_realm_that_is_not_trusted() -> None:
    """The next challenge counts, or none; schemes that nobody here speaks are left out."""
    evil = 'Bearer realm="https://evil/token"'
    assert challenge_for_client([evil], "https://a.test", ()) is None
    assert challenge_for_client([evil, 'Basic realm="x"'], "https://a.test", ()) == 'Basic realm="x"'
    assert challenge_for_client(["Negotiate"], "https://a.test", ()) is None
    assert challenge_for_client(["Bearer"], "https://a.test", ()) is None


def test_a_parameter_by_name() -> None:
    """An absent one is empty."""
    assert Challenge("bearer", (("realm", "x"),)).get("realm") == "x"
    assert Challenge("bearer", ()).get("realm") == ""


def test_a_client_is_given_one_realm_only() -> None:
    """A second realm would be whatever the client makes of it: its credentials could go to the first."""
    two = 'Bearer realm="https://evil/token",realm="https://a.test/token"'
    assert "evil" not in (challenge_for_client([two], "https://a.test", ()) or "")


@pytest.mark.parametrize(
    "header",
    ['Negotiate, Bearer realm="x"', 'NTLM TlRMTVNT/x+y==, Bearer realm="x"', ',,Bearer realm="x"',
     'Bearer realm="y",, Bearer realm="x"'],
)  # fmt: skip
def test_a_challenge_before_it_hides_none(header: str) -> None:
    """`Negotiate, Basic …` in one header is what IIS and registries behind Kerberos send (RFC 9110, 11.6.1, 5.6.1)."""
    assert ("bearer", {"realm": "x"}) in parsed(header)


@pytest.mark.parametrize("header", [" " * 8000 + '"', "Bearer x=1" + " " * 8000 + '"'])
def test_parsing_is_linear(header: str) -> None:
    """Upstreams' headers may have 8 KiB, and parsing happens on the event loop."""
    from time import process_time

    before = process_time()
    parse_challenges([header])
    assert process_time() - before < 0.05
