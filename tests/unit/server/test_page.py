"""The status page as HTML: everything shown, nothing wrong, nothing of it anybody else's markup."""

import copy
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.server.page import Notice, View, render, render_login
from proxy.server.tag_table import Shown
from tests.fakes.status import NOW, at, digest_named, make_fill, make_job, make_stats, make_tag, make_upstream

VOID = {"input", "link", "meta", "wbr"}
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\u202e"


class Page(HTMLParser):
    """The page's elements with what encloses them; fails where they are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append((tag, attributes.get("id")))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, id_ in self._open:
            if id_:
                self.text[id_] = self.text.get(id_, "") + data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def everything(self) -> str:
        return self.text["content"]


def page(
    tags: list[dict[str, Any]] | None = None, shown: Shown | None = None, more: bool = False, **stats: Any
) -> Page:
    return Page(render(View(NOW, shown or Shown(), make_stats(**stats), tags or [], more)))


def test_the_summary() -> None:
    """What was saved, what is cached, how many requests, how many tags moved."""
    shown = page([make_tag()])
    assert shown.text["tile-saved"] == "Saved upstream8.0 GiB9.0 GiB sent, 1.0 GiB fetched"
    assert shown.text["tile-cached"] == "In the cache3.0 GiB77 blobs, 100 GiB at most"
    assert shown.text["tile-requests"] == "Requests200in 1 cluster"
    assert shown.text["tile-drifted"] == "Tags that moved upstream0of 1 tag, 0 held"
    assert shown.text["facts"] == "1.2.3, 1 of 1 worker serving"


def test_clusters() -> None:
    """Name, mode, upstreams, requests, hit ratio, bytes; one without requests has no ratio."""
    first = make_stats()["clusters"][0]
    idle = first | {"name": "idle", "mode": "metadata-only", "upstreams": ["docker.io", "ghcr.io"], "hit_ratio": None}
    text = page(clusters=[first, idle]).text["clusters"]
    assert "defaulttransparentall20075.0 %5.0 MiB" in text
    assert "idlemetadata-onlydocker.io, ghcr.io200–5.0 MiB" in text


def test_upstreams() -> None:
    """Health with what fails and until when; what is left of the rate limit, as a meter too."""
    failing = [{"scope": "library/nginx", "reason": "5xx", "failures": 3, "until": at(45)}]
    limit = {"remaining": 12, "limit": 100, "window": 21600, "seen": at(-120), "reserve": 10}
    shown = page(
        upstreams=[make_upstream(state="failing", failing=failing, rate_limit=limit), make_upstream("ghcr.io")]
    )
    text = shown.text["upstreams"]
    assert "failinglibrary/nginx: 5xx, 3 in a row, asked again in 45 s" in text
    assert "12 of 100 pulls left in 6 hsaid 2 min ago, 10 kept for what is not cached" in text
    (meter,) = shown.all("meter")
    assert (meter["value"], meter["max"], meter["low"]) == ("12", "100", "10")
    assert "ok" in text


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"remaining": 0, "limit": 100, "window": None, "seen": None, "reserve": 0}, "0 of 100 pulls left"),
        ({"remaining": 5, "limit": None, "window": None, "seen": at(0), "reserve": None}, "5 pulls leftsaid 0 s ago"),
        (
            {"remaining": 120, "limit": 100, "window": 60, "seen": at(-1), "reserve": 10},
            "120 of 100 pulls left in 1 min",
        ),
        ({"remaining": 0, "limit": 0, "window": 60, "seen": at(-1), "reserve": 0}, "0 of 0 pulls left in 1 min"),
    ],
)
def test_rate_limits_that_say_little(limit: dict[str, Any], words: str) -> None:
    """Whatever an upstream leaves out is left out; what it says is shown as it is."""
    assert words in page(upstreams=[make_upstream(rate_limit=limit)]).text["upstreams"]


def test_fills() -> None:
    """A progress element with a name of its own, percent, bytes, readers and when it began."""
    shown = page(fills=[make_fill(size=3 << 20, arrived=1 << 20)])
    (bar,) = shown.all("progress")
    assert (bar["value"], bar["max"]) == (str(1 << 20), str(3 << 20))
    assert "library/nginx sha256:" in str(bar["aria-label"])
    assert "33 %1.0 MiB of 3.0 MiB35 s ago" in shown.text["fills"]


def test_a_fill_is_not_whole_before_it_is() -> None:
    """99 % up to the last byte; an empty one is whole; without a size there is no percent."""
    assert "99 %" in page(fills=[make_fill(size=10**9, arrived=10**9 - 1)]).text["fills"]
    assert "100 %" in page(fills=[make_fill(size=0, arrived=0)]).text["fills"]
    assert "%" not in page(fills=[make_fill(size=None, arrived=12)]).text["fills"]


def test_warm_jobs() -> None:
    """How many images, how far it is in bytes and images, what there is to say of it, who asked and when."""
    text = page(warm=[make_job(failed=1, note="the cache is smaller than the images")]).text["warm"]
    assert "nginx:1, redis:7, python:3k3q7running1 of 3 done, 1 failed; the cache is smaller than the images" in text
    assert "25 %1.0 MiB of 4.0 MiB30 s agoby 127.0.0.1" in text
    assert "100 %4.0 MiB of 4.0 MiB" in page(warm=[make_job(state="done", done=3)]).text["warm"]


def test_a_job_of_many_images() -> None:
    """Names the first ones."""
    text = page(warm=[make_job(references=[f"app{number}:v1" for number in range(1000)])]).text["warm"]
    assert "app0:v1, app1:v1, app2:v1 and 997 morek3q7" in text


@pytest.mark.parametrize(
    "job",
    [
        {"state": "queued", "bytes": {"done": 0, "total": 0}},
        {"bytes": {"done": 9, "total": 9}},
        {"state": "stopped"},
    ],
)
def test_a_job_is_not_whole_before_it_is(job: dict[str, Any]) -> None:
    """Before all manifests are here nobody knows how much there is; what ended early has no progress."""
    assert "%" not in page(warm=[make_job(**job)]).text["warm"]


def test_what_comes_and_goes_has_ids() -> None:
    """The script tells rows apart by them: no two alike, the same in every rendering, letters and digits only."""
    fills = [make_fill(digest_named(str(number))) for number in range(3)]
    tags = [make_tag(f"docker.io/library/{name}:v1") for name in ("a", "b", "c")]
    ids = [str(attributes["id"]) for _, attributes in page(tags, fills=fills).elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    later = page(tags, fills=[make_fill(fill["digest"], arrived=999) for fill in fills])
    assert ids == [attributes["id"] for _, attributes in later.elements if "id" in attributes]
    assert all(id_.replace("-", "").isalnum() for id_ in ids)


def test_a_tag() -> None:
    """Its digest, its age and when it is due, its pulls and whose; a button to refresh it."""
    tag = make_tag()
    shown = page([tag])
    text = shown.text["tags"]
    assert "docker.io/library/nginx:latest" in text
    assert "1 min ago" in text
    assert "next check due in 9 min" in text
    assert "1,234prod 1,200, dev 34" in text
    posts = [form["action"] for form in shown.all("form") if form["method"] == "post"]
    assert posts == ["/tags/refresh", "/tags/hold", "/tags/purge"]
    references = [field["value"] for field in shown.all("input") if field["name"] == "reference"]
    assert references == [tag["reference"], f"{tag['reference']}@{tag['digest']}", tag["reference"]]


def test_a_tag_that_moved_upstream() -> None:
    """Says so, and to which digest."""
    text = page([make_tag(drifted=True, upstream_digest="sha256:" + "b" * 64, state="stale", expires=at(-30))]).text[
        "tags"
    ]
    assert "stalemoved upstream" in text
    assert "upstream: sha256:bbbbbbbbbbbb…" in text
    assert "was due 30 s ago" in text


def test_a_tag_that_cannot_be_checked() -> None:
    """Says why."""
    text = page([make_tag(unchecked="it needs a client's credentials")]).text["tags"]
    assert "not checked in the background: it needs a client's credentials" in text


def test_a_held_tag() -> None:
    """Since when, by whom, at what; it can be released, not held again."""
    held = {"digest": "sha256:" + "c" * 64, "since": at(-7200), "by": "127.0.0.1"}
    shown = page([make_tag(state="held", held=held)])
    assert "held at sha256:cccccccccccc… by 127.0.0.1, 2 h ago" in shown.text["tags"]
    assert "until it is released" in shown.text["tags"]
    posts = [form["action"] for form in shown.all("form") if form["method"] == "post"]
    assert posts == ["/tags/refresh", "/tags/release", "/tags/purge"]


def test_a_tag_that_is_only_held() -> None:
    """Nothing is cached for it: no times, no digest to hold."""
    nothing: dict[str, Any] = dict.fromkeys(("digest", "fetched", "checked", "expires", "age"))
    shown = page([make_tag(state="absent", **nothing)])
    assert "absent––" in shown.text["tags"]
    posts = [form["action"] for form in shown.all("form") if form["method"] == "post"]
    assert posts == ["/tags/refresh", "/tags/purge"]


def test_history() -> None:
    """Every digest that a tag had, each with a button that rolls back to it."""
    old = {"digest": "sha256:" + "d" * 64, "first_seen": at(-86400), "last_seen": at(-3600), "pulls": 7, "clusters": {}}
    shown = page([make_tag(history=[old])])
    assert "sha256:dddddddddddd…first 1 d ago, last 1 h ago, 7 pulls" in shown.text["tags"]
    (button,) = [one for one in shown.all("button") if str(one.get("aria-label", "")).startswith("Hold this")]
    assert button["aria-label"] == f"Hold this {old['digest']}"


def test_every_button_of_a_row_names_its_tag() -> None:
    """For who hears the page: fifty buttons called Refresh are none."""
    shown = page([make_tag(), make_tag("ghcr.io/team/app:v1")])
    labels = [str(button.get("aria-label")) for button in shown.all("button") if button.get("aria-label")]
    assert len(set(labels)) == len(labels) == 6


def test_which_tags_are_shown() -> None:
    """All or those that moved, with their numbers; the one that is shown is marked. A search has no totals."""
    totals = {"known": 1234, "drifted": 3, "held": 0, "unchecked": 0}
    view = View(NOW, Shown(drifted=True), make_stats(tags=totals), [])
    shown = Page(render(view))
    assert "All (1,234)Moved upstream (3)" in shown.text["tags"]
    (current,) = [link for link in shown.all("a") if link.get("aria-current")]
    assert current["href"] == "/?drifted=1#tags"
    assert "AllMoved upstream" in page(shown=Shown(q="nginx")).text["tags"]


def test_pages() -> None:
    """A link to what comes after the last tag shown, with the search and the filter; one back to the beginning."""
    shown = page([make_tag()], Shown("ngi&nx", True, "a"), more=True)
    links = [str(link["href"]) for link in shown.all("a")]
    assert "/?q=ngi%26nx&drifted=1&last=docker.io%2Flibrary%2Fnginx%3Alatest#tags" in links
    assert "First page" in shown.text["tags"]
    assert "Next page" not in page([make_tag()]).text["tags"]


def test_buttons_come_back_to_the_same_tags() -> None:
    """What is searched for goes along with every button."""
    shown = page([make_tag()], Shown("nginx", True, "a"))
    posts = {form["action"] for form in shown.all("form") if form["method"] == "post"}
    assert all(str(action).endswith("?q=nginx&drifted=1&last=a") for action in posts)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (Shown(), "No tag is cached yet."),
        (Shown(q="x"), "No tag fits."),
        (Shown(drifted=True), "No tag is known to have moved upstream."),
        (Shown(last="z"), "No more tags."),
    ],
)
def test_where_there_is_nothing(shown: Shown, words: str) -> None:
    """A sentence instead of an empty table."""
    found = page(shown=shown)
    assert words in found.text["tags"]
    assert "Nothing is being downloaded." in found.text["fills"]
    assert "No images are being warmed." in found.text["warm"]


def test_what_cannot_be_had_is_said() -> None:
    """Without an answer there is a line that says why, and the rest of the page."""
    found = Page(render(View(NOW, Shown(), None, None, trouble="no worker serves")))
    assert found.text["trouble"] == "no worker serves"
    assert "tags" not in found.text
    assert "summary" not in Page(render(View(NOW, Shown(), None, [make_tag()], trouble="x"))).text


def test_what_is_not_known_yet() -> None:
    """Before a worker serves there are no tags to count, and a disk that cannot be asked has no figures."""
    text = page(tags=[], cache={"bytes": None, "blobs": None, "max_size": 1 << 30}).text
    assert text["tile-cached"] == "In the cache––, 1.0 GiB at most"
    stats = make_stats(tags=None, workers={"configured": 2, "serving": 0})
    found = Page(render(View(NOW, Shown(), stats, [])))
    assert "tile-drifted" not in found.text
    assert found.text["facts"] == "1.2.3, 0 of 2 workers serving"
    assert "AllMoved upstream" in found.text["tags"]


def test_a_notice() -> None:
    """What came of a button stands in a region that is there before, so that it is read out."""
    found = Page(render(View(NOW, Shown(), make_stats(), [], notice=Notice("bad", ("one", "two")))))
    assert found.text["notice"] == "onetwo"
    (region,) = [one for tag, one in page().elements if one.get("id") == "notice"]
    assert region["role"] == "status"


def test_tables_are_tables_for_everybody() -> None:
    """Every table is named by its heading; columns and rows have headers; cells say their column on narrow screens."""
    found = page([make_tag()], fills=[make_fill()])
    ids = {attributes.get("id") for _, attributes in found.elements}
    tables = found.all("table")
    assert len(tables) == 4
    assert all(one["aria-labelledby"] in ids for one in tables)
    assert {head["scope"] for head in found.all("th")} == {"col", "row"}
    assert all(cell["data-label"] for cell in found.all("td"))
    for name in ("header", "main", "footer", "nav"):
        assert found.all(name)


def test_every_field_has_a_label() -> None:
    """The search and the token."""
    for shown in (page(), Page(render_login("x"))):
        fields = {field["id"] for field in shown.all("input") if field.get("type") != "hidden"}
        assert fields == {label["for"] for label in shown.all("label")}


def test_log_out() -> None:
    """Whoever has a session can end it; without one there is nothing to end."""
    found = Page(render(View(NOW, Shown(), make_stats(), [], session=True)))
    assert [form["action"] for form in found.all("form") if form["method"] == "post"] == ["/logout"]
    assert not [form for form in page().all("form") if form["method"] == "post"]


def test_log_in() -> None:
    """A form that posts the token; what was wrong is said, escaped."""
    shown = Page(render_login(HOSTILE))
    (form,) = shown.all("form")
    assert (form["method"], form["action"]) == ("post", "/login")
    assert shown.text["refused"] == HOSTILE.replace("\u202e", "\ufffd")
    assert not shown.all("script")
    assert "refused" not in Page(render_login()).text


def replaced(value: Any, text: str) -> Any:
    """`value` with `text` for all of its words that are not times, digests or the page's own vocabulary."""
    if isinstance(value, dict):
        return {key: replaced(inner, text) for key, inner in value.items()}
    if isinstance(value, list):
        return [replaced(inner, text) for inner in value]
    return text if isinstance(value, str) and not value.startswith("2026-") else value


EVERYTHING = make_stats(
    fills=[make_fill()],
    warm=[make_job(note="x")],
    upstreams=[
        make_upstream(
            failing=[{"scope": "x", "reason": "x", "failures": 1, "until": None}],
            rate_limit={"remaining": 1, "limit": 2, "window": 3, "seen": at(0), "reserve": 1},
        )
    ],
)
TAG = make_tag(
    drifted=True, upstream_digest="x", unchecked="x", held={"digest": "x", "since": at(0), "by": "x"},
    history=[{"digest": "x", "first_seen": at(0), "last_seen": at(0), "pulls": 1, "clusters": {"x": 1}}],
)  # fmt: skip


def skeleton(found: Page) -> list[tuple[str, frozenset[str]]]:
    """Which elements with which attributes, whatever those say, and wherever long words may be broken."""
    return [(tag, frozenset(attributes)) for tag, attributes in found.elements if tag != "wbr"]


def hostile_page(text: str) -> Page:
    tag = replaced(copy.deepcopy(TAG), text) | {"clusters": {text: 1}}
    notice = Notice("bad", (text,))
    stats = replaced(copy.deepcopy(EVERYTHING), text)
    return Page(render(View(NOW, Shown(text, True, text), stats, [tag], True, notice, trouble=text or "x")))


@given(st.text(min_size=1) | st.just(HOSTILE))
def test_no_text_becomes_markup(text: str) -> None:
    """Whatever repositories, tags, errors, clusters and searches are called, the page has the same elements."""
    assert skeleton(hostile_page(text)) == skeleton(hostile_page("x"))


def test_nothing_is_inline() -> None:
    """The policy would refuse it: no style, no script but the file's, no handler, no address but our own."""
    shown = hostile_page(HOSTILE)
    assert not shown.all("style")
    assert [script["src"] for script in shown.all("script")] == ["/static/status.js"]
    for _, attributes in shown.elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        for name in ("href", "src", "action"):
            if name in attributes:
                assert str(attributes[name]).startswith(("/", "#")) and not str(attributes[name]).startswith("//")
