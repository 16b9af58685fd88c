"""The next page of a list, as a client is led there and comes back."""

from urllib.parse import parse_qsl

import pytest

from proxy.cache.tags import next_query
from proxy.oci.digest import Digest
from proxy.oci.route import ReferrersRoute, TagsRoute, parse_route

TAGS = "/v2/a/tags/list"
REFERRERS = f"/v2/a/referrers/{Digest.of(b'x')}"


def asked_next(path: str, link: str) -> dict[str, str]:
    """What upstream is asked when a client follows the link that it was given."""
    route = parse_route("GET", path, dict(parse_qsl(next_query([link]) or "")))
    assert isinstance(route, TagsRoute | ReferrersRoute)
    return dict(route.query)


@pytest.mark.parametrize("path", [TAGS, REFERRERS])
def test_the_keys_of_the_specification_come_back(path: str) -> None:
    """`n` and `last`."""
    assert asked_next(path, '<https://reg.test/v2/a/x?n=5&last=b%2Fc>; rel="next"') == {"n": "5", "last": "b/c"}


@pytest.mark.parametrize(
    ("path", "key"), [(TAGS, "next_page"), (TAGS, "nextToken"), (REFERRERS, "nextToken"), (REFERRERS, "cursor")]
)
def test_every_key_of_the_next_page_comes_back(path: str, key: str) -> None:
    """A link whose key is dropped leads to the page it came from, and a client that follows it never ends."""
    assert asked_next(path, f'<https://reg.test/v2/a/x?{key}=opaque>; rel="next"') == {key: "opaque"}
