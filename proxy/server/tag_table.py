"""The table of tags: what is sticky, since when, until when, where upstream has moved on, and what to do about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from proxy.server import figures
from proxy.server.markup import Content, Markup, element
from proxy.server.tables import Cell, badge, empty, moment, row_id, section, table

Tag = Mapping[str, Any]

_STATES = {"fresh": "good", "stale": "warn", "expired": "bad", "held": "plain"}


@dataclass(frozen=True, slots=True)
class Shown:
    """Which tags are: those that `q` means, those that moved upstream only, those after the reference `last`."""

    q: str = ""
    drifted: bool = False
    last: str = ""

    def query(self, **more: str) -> str:
        """`?q=…&drifted=1&last=…`, or nothing where nothing was chosen."""
        words = {"q": self.q, "drifted": "1" if self.drifted else "", "last": self.last} | more
        chosen = {key: value for key, value in words.items() if value}
        return f"?{urlencode(chosen, errors='replace')}" if chosen else ""


def tag_section(tags: Sequence[Tag], shown: Shown, more: bool, totals: Mapping[str, int], now: float) -> Markup:
    """The section `tags`. `totals`: how many are `known` and `drifted`, where that is known."""
    if tags:
        heads = ("Tag", "State", "Digest", "Checked", "Pulls", "Actions")
        rows = [_row(tag, shown, now) for tag in tags]
        body = table("tags", heads, rows, [tag["reference"] for tag in tags])
    else:
        body = empty(_nothing(shown))
    return section("tags", "Tags", _views(shown, totals), _search(shown), body, _pages(tags, shown, more))


def _nothing(shown: Shown) -> str:
    if shown.last:
        return "No more tags."
    if shown.q:
        return "No tag fits."
    return "No tag is known to have moved upstream." if shown.drifted else "No tag is cached yet."


def _views(shown: Shown, totals: Mapping[str, int]) -> Markup:
    def view(name: str, drifted: bool, number: int | None) -> Markup:
        words = name if number is None else f"{name} ({figures.count(number)})"
        current = "page" if shown.drifted is drifted and not shown.last else None
        address = f"/{Shown(shown.q, drifted).query()}#tags"
        return element("li", element("a", words, href=address, aria_current=current))

    # With a search the totals would be those of other tags.
    known, drifted = (None, None) if shown.q else (totals.get("known"), totals.get("drifted"))
    items = view("All", False, known), view("Moved upstream", True, drifted)
    return element("nav", element("ul", items), aria_label="Which tags", class_="views")


def _search(shown: Shown) -> Markup:
    return element(
        "form",
        element("label", "Name or pattern", for_="q"),
        element("input", type="search", id="q", name="q", value=shown.q, placeholder="docker.io/library/*:latest"),
        element("input", type="hidden", name="drifted", value="1") if shown.drifted else None,
        element("button", "Search", type="submit"),
        method="get", action="/#tags", role="search", class_="search",
    )  # fmt: skip


def _pages(tags: Sequence[Tag], shown: Shown, more: bool) -> Markup | None:
    links = []
    if shown.last:
        links.append(element("a", "First page", href=f"/{Shown(shown.q, shown.drifted).query()}#tags"))
    if more and tags:
        further = Shown(shown.q, shown.drifted, tags[-1]["reference"])
        links.append(element("a", "Next page", href=f"/{further.query()}#tags", rel="next"))
    return element("nav", links, aria_label="Pages of tags", class_="pages") if links else None


def _row(tag: Tag, shown: Shown, now: float) -> list[Cell]:
    return [
        Cell(_name(tag), head=True),
        Cell(_state(tag)),
        Cell(_digests(tag)),
        Cell(_checked(tag, now)),
        Cell((figures.count(tag["pulls"]), element("small", _clusters(tag["clusters"]))), number=True),
        Cell(_actions(tag, shown, now)),
    ]


def _name(tag: Tag) -> Content:
    """The reference, to be broken where people would."""
    first, *rest = f"{tag['registry']}/{tag['repository']}".split("/")
    return first, [("/", element("wbr"), part) for part in rest], element("wbr"), f":{tag['tag']}"


def _state(tag: Tag) -> Content:
    parts = [badge(_STATES.get(tag["state"], "plain"), tag["state"])]
    if tag["drifted"]:
        parts.append(badge("warn", "moved upstream"))
    if tag["gone"] is not None:
        parts.append(badge("warn", "deleted upstream"))
    if tag["held"] is not None and tag["state"] != "held":
        parts.append(badge("plain", "held"))
    unchecked = element("small", f"not checked in the background: {tag['unchecked']}") if tag["unchecked"] else None
    return parts, unchecked


def _digests(tag: Tag) -> Content:
    upstream = tag["upstream_digest"]
    moved = element("small", "upstream: ", _digest(upstream)) if upstream else None
    return _digest(tag["digest"]) if tag["digest"] else figures.NOTHING, moved


def _digest(digest: str) -> Markup:
    return element("code", figures.short(digest), title=digest)


def _checked(tag: Tag, now: float) -> Content:
    if tag["checked"] is None:
        return figures.NOTHING
    due = "next check due " if tag["state"] == "fresh" else "was due "
    until: Content = "until it is released" if tag["state"] == "held" else (due, moment(tag["expires"], now))
    return moment(tag["checked"], now), element("small", until)


def _clusters(clusters: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {figures.count(pulls)}" for name, pulls in clusters.items())


def _actions(tag: Tag, shown: Shown, now: float) -> Content:
    reference = tag["reference"]
    refresh = _button("refresh", "Refresh", reference, shown, about=reference)
    held = hold = None
    if tag["held"] is not None:
        held = _held(tag["held"], now)
        hold = _button("release", "Release", reference, shown, about=reference)
    elif tag["digest"] is not None:
        hold = _button("hold", "Hold", f"{reference}@{tag['digest']}", shown, about=reference)
    purge = _button("purge", "Purge", reference, shown, about=reference)
    more = element(
        "details", element("summary", "More"), element("p", hold, purge), _history(tag, shown, now),
        id=f"more-{row_id(reference)}",
    )  # fmt: skip
    return refresh, held, more


def _held(held: Mapping[str, Any], now: float) -> Markup:
    by = f" by {held['by']}" if held["by"] else ""
    return element("small", "held at ", _digest(held["digest"]), f"{by}, ", moment(held["since"], now))


def _history(tag: Tag, shown: Shown, now: float) -> Markup | None:
    if not tag["history"]:
        return None
    items = [
        element(
            "li", _digest(one["digest"]), element("small", "first ", moment(one["first_seen"], now), ", last ",
            moment(one["last_seen"], now), f", {figures.several(one['pulls'], 'pull')}"),
            _button("hold", "Hold this", f"{tag['reference']}@{one['digest']}", shown, one["digest"]),
        )
        for one in tag["history"]
    ]  # fmt: skip
    return element("ol", items, aria_label=f"Digests of {tag['reference']}")


def _button(action: str, word: str, reference: str, shown: Shown, about: str) -> Markup:
    """A form of one button; `about` tells screen readers which of the many it is."""
    return element(
        "form",
        element("input", type="hidden", name="reference", value=reference),
        element("button", word, type="submit", aria_label=f"{word} {about}"),
        method="post", action=f"/tags/{action}{shown.query()}", class_="action",
    )  # fmt: skip
