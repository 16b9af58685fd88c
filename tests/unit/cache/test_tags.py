"""The query of a list's next page, out of upstream's Link headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.tags import next_query


@pytest.mark.parametrize(
    ("links", "query"),
    [
        ([], None),
        ([""], None),
        (['</v2/a/tags/list?n=5&last=b>; rel="next"'], "n=5&last=b"),
        (["</v2/a/tags/list?n=5&last=b>; rel=next"], "n=5&last=b"),
        (['</v2/a/tags/list?n=5>;REL = "Next"'], "n=5"),
        (['<?n=5>; rel="prev next"'], "n=5"),
        (['<?n=5>; title="x"; rel="next"'], "n=5"),
        (['<https://elsewhere.example/v2/a/tags/list?last=b>; rel="next"'], "last=b"),
        (['<?n=1>; rel="prev", <?n=2>; rel="next"'], "n=2"),
        (['<?n=1>; rel="prev"', '<?n=2>; rel="next"'], "n=2"),
        (['<?n=1>; rel="first"'], None),
        (['<?n=1>; rel="nextish"'], None),
        (["<?n=1>"], None),
        (['<>; rel="next"'], None),
        (['</v2/a/tags/list>; rel="next"'], None),
        (['<?last=a%20b%26c&ns=docker.io>; rel="next"'], "last=a+b%26c"),
        (['<?ns=docker.io>; rel="next"'], None),
        (["nonsense; rel=next"], None),
        (['<?unheard_of=1>; rel="next"'], None),
        (['<?last=1%0d%0aSet-Cookie:y>; rel="next"'], "last=1%0D%0ASet-Cookie%3Ay"),
    ],
)
def test_links_and_their_queries(links: list[str], query: str | None) -> None:
    """RFC 8288. Only the query is taken, without ns: our next page is at our own path."""
    assert next_query(links) == query


@given(st.dictionaries(st.sampled_from(["n", "last", "next_page", "ns"]), st.text(min_size=1, max_size=40)))
def test_any_query_comes_through_as_it_was(pairs: dict[str, str]) -> None:
    """Whatever its values hold."""
    from urllib.parse import parse_qsl, urlencode

    wanted = {name: value for name, value in pairs.items() if name != "ns"}
    found = next_query([f'</v2/a/tags/list?{urlencode(pairs)}>; rel="next"'])
    assert dict(parse_qsl(found or "")) == wanted


@given(st.text(alphabet=st.characters(exclude_characters="[]"), max_size=60).map(lambda text: f"<{text}>; rel=next"))
def test_what_comes_out_fits_into_a_header(link: str) -> None:
    """Printable ASCII without the sign that ends a link's target."""
    query = next_query([link])
    assert query is None or (query.isascii() and query.isprintable() and ">" not in query)


def test_a_target_that_is_no_url_is_no_next_page() -> None:
    """Brackets that hold no IPv6 address."""
    assert next_query(['<http://[bad/?n=1>; rel="next"']) is None


def test_empty_values_are_kept() -> None:
    """`last=` is not the same as no `last` to every registry."""
    assert next_query(['<?last=&n=5>; rel="next"']) == "last=&n=5"
