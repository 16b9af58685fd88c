"""The status page as HTML: pure functions of what `GET stats` and `GET tags` answer (DESIGN, section 9).

It is whole without JavaScript. With it the page is fetched every two seconds and what differs is put in place, which
is why whatever comes and goes has an `id` (static/status.js). Nothing here is inline: the Content-Security-Policy of
`proxy.server.status` forbids it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from proxy.server import figures
from proxy.server.markup import Content, Markup, element
from proxy.server.tables import Cell, badge, empty, moment, section, table
from proxy.server.tag_table import Shown, tag_section

Stats = Mapping[str, Any]

_MODES = {"transparent": "manifests and blobs from here", "metadata-only": "blobs straight from the upstream"}
_UPSTREAM_STATES = {"ok": "good", "failing": "bad", "limited": "bad", "offline": "warn", "unused": "plain"}
# So many of a warm job's references are named; it may have a thousand.
_NAMED = 3
_JOB_STATES = {"queued": "plain", "running": "warn", "done": "good", "failed": "bad", "stopped": "plain"}


@dataclass(frozen=True, slots=True)
class Notice:
    """What came of a button: one line each."""

    kind: Literal["good", "bad"]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """What the page shows. `now` in Unix seconds; `stats` and `tags` are None where they cannot be had.

    `more`: tags follow those on this page. `trouble` says in one line why something is missing. `session`: whoever
    looks has logged in, and can log out.
    """

    now: float
    shown: Shown
    stats: Stats | None = None
    tags: Sequence[Mapping[str, Any]] | None = None
    more: bool = False
    notice: Notice | None = None
    trouble: str | None = None
    session: bool = False


def render(view: View) -> str:
    """The page."""
    main = element(
        "main",
        _notice(view.notice),
        element("p", view.trouble, class_="notice bad", id="trouble", role="alert") if view.trouble else None,
        _sections(view),
        id="status",
    )
    return _document("Status", _header(view), main, _footer(view), script=True)


def render_login(message: str | None = None) -> str:
    """The page for who has not shown the token yet; `message` says what was wrong. Posts `token` to /login."""
    form = element(
        "form",
        element("label", "Token", for_="token"),
        element(
            "input", type="password", id="token", name="token", required=True, autofocus=True,
            autocomplete="current-password", aria_describedby="hint" if message is None else "hint refused",
        ),
        element("p", "It stands in the file that ", element("code", "admin.token_file"), " names.", id="hint"),
        element("button", "Log in", type="submit"),
        method="post", action="/login", class_="login",
    )  # fmt: skip
    refused = element("p", message, class_="notice bad", id="refused", role="alert") if message else None
    main = element("main", element("h2", "Log in"), refused, form, id="login")
    return _document("Log in", element("header", _name()), main, None, script=False)


def _document(title: str, header: Content, main: Content, footer: Content, script: bool) -> str:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title} – pullthrough"),
        element("link", rel="icon", href="/static/icon.svg", type="image/svg+xml"),
        element("link", rel="stylesheet", href="/static/status.css"),
        element("script", src="/static/status.js", defer=True) if script else None,
    )
    skip = element("a", "To the content", href="#content", class_="skip")
    body = element("body", skip, header, element("div", main, id="content", tabindex=-1), footer)
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _name() -> Markup:
    return element("h1", element("a", "pullthrough", href="/"))


def _header(view: View) -> Markup:
    stats = view.stats
    facts: Content = None
    if stats is not None:
        workers = stats["workers"]
        serving = f"{workers['serving']} of {figures.several(workers['configured'], 'worker')} serving"
        facts = (
            f"{stats['version']}, ",
            badge("good" if workers["serving"] == workers["configured"] else "bad", serving),
        )
    # The script says here whether the page is live.
    live = element("p", id="live", role="status", data_keep=True)
    leave = element("form", element("button", "Log out", type="submit"), method="post", action="/logout", id="leave")
    return element("header", _name(), element("p", facts, id="facts"), live, leave if view.session else None)


def _footer(view: View) -> Markup:
    reload = element("a", "Reload", href=f"/{view.shown.query()}")
    return element("footer", element("p", f"As of {figures.clock_time(view.now)}. ", reload, id="as-of"))


def _notice(notice: Notice | None) -> Markup:
    lines = [element("p", line) for line in notice.lines] if notice else None
    # Always there, since screen readers hear only what changes inside of a region that they know.
    return element("div", lines, id="notice", role="status", class_=f"notice {notice.kind}" if notice else None)


def _sections(view: View) -> list[Markup]:
    stats, parts = view.stats, []
    if stats is not None:
        parts = [_summary(stats), _clusters(stats["clusters"]), _upstreams(stats["upstreams"], view.now)]
        parts += [_fills(stats["fills"], view.now)]
    if view.tags is not None:
        totals = stats["tags"] if stats is not None else None
        parts.append(tag_section(view.tags, view.shown, view.more, totals or {}, view.now))
    if stats is not None:
        parts.append(_warm(stats["warm"], view.now))
    return parts


def _summary(stats: Stats) -> Markup:
    cache, moved, tags = stats["cache"], stats["bytes"], stats["tags"]
    requests = sum(cluster["requests"] for cluster in stats["clusters"])
    blobs = figures.NOTHING if cache["blobs"] is None else figures.several(cache["blobs"], "blob")
    tiles = [
        ("saved", "Saved upstream", figures.size(moved["saved"]),
         f"{figures.size(moved['client'])} sent, {figures.size(moved['upstream'])} fetched"),
        ("cached", "In the cache", figures.size(cache["bytes"]),
         f"{blobs}, {figures.size(cache['max_size'])} at most"),
        ("requests", "Requests", figures.count(requests), f"in {figures.several(len(stats['clusters']), 'cluster')}"),
    ]  # fmt: skip
    if tags is not None:
        known = f"of {figures.several(tags['known'], 'tag')}, {figures.count(tags['held'])} held"
        tiles.append(("drifted", "Tags that moved upstream", figures.count(tags["drifted"]), known))
    shown = [
        element("div", element("dt", name), element("dd", value, element("small", more)), id=f"tile-{id_}")
        for id_, name, value, more in tiles
    ]
    return section("summary", "Summary", element("dl", shown, class_="tiles"))


def _clusters(clusters: Sequence[Stats]) -> Markup:
    rows = [
        [
            Cell(cluster["name"], head=True),
            Cell(element("span", cluster["mode"], title=_MODES.get(cluster["mode"]))),
            Cell("all" if cluster["upstreams"] is None else ", ".join(cluster["upstreams"])),
            Cell(figures.count(cluster["requests"]), number=True),
            Cell(figures.ratio(cluster["hit_ratio"]), number=True),
            Cell(figures.size(cluster["client_bytes"]), number=True),
        ]
        for cluster in clusters
    ]
    heads = ("Cluster", "Mode", "Upstreams", "Requests", "Hit ratio", "Sent")
    return section("clusters", "Clusters", table("clusters", heads, rows))


def _upstreams(upstreams: Sequence[Stats], now: float) -> Markup:
    rows = [
        [
            Cell((upstream["registry"], element("small", upstream["url"])), head=True),
            Cell((badge(_UPSTREAM_STATES.get(upstream["state"], "plain"), upstream["state"]),
                  [_failing(one, now) for one in upstream["failing"]])),
            Cell(_rate_limit(upstream, now)),
            Cell(figures.count(upstream["requests"]), number=True),
            Cell(figures.count(upstream["errors"]), number=True),
            Cell(figures.size(upstream["bytes"]), number=True),
        ]
        for upstream in upstreams
    ]  # fmt: skip
    heads = ("Upstream", "Health", "Rate limit", "Requests", "Errors", "Fetched")
    return section("upstreams", "Upstreams", table("upstreams", heads, rows))


def _failing(one: Stats, now: float) -> Markup:
    words = f"{one['scope']}: {one['reason']}, {figures.count(one['failures'])} in a row"
    return element("small", words, (", asked again ", moment(one["until"], now)) if one["until"] else None)


def _rate_limit(upstream: Stats, now: float) -> Content:
    said = upstream["rate_limit"]
    if said is None:
        return figures.NOTHING
    window = f" in {figures.span(said['window'])}" if said["window"] else ""
    if said["limit"] is None:
        left: Content = f"{figures.count(said['remaining'])} pulls left{window}"
    else:
        words = f"{figures.count(said['remaining'])} of {figures.count(said['limit'])} pulls left{window}"
        left = (
            element(
                "meter", words, min=0, max=said["limit"], value=min(said["remaining"], said["limit"]),
                low=said["reserve"] or None, aria_label=f"Rate limit of {upstream['registry']}",
            ),
            " ", words,
        )  # fmt: skip
    seen = ("said ", moment(said["seen"], now)) if said["seen"] else None
    reserve = f", {figures.count(said['reserve'])} kept for what is not cached" if said["reserve"] else None
    return left, element("small", seen, reserve)


def _fills(fills: Sequence[Stats], now: float) -> Markup:
    if not fills:
        return section("fills", "Fills", empty("Nothing is being downloaded."))
    rows = [
        [
            Cell((f"{fill['registry']}/{fill['repository']}",
                  element("small", element("code", figures.short(fill["digest"]), title=fill["digest"]))), head=True),
            Cell(_progress(fill["arrived"], fill["size"], f"{fill['repository']} {figures.short(fill['digest'])}")),
            Cell(figures.count(fill["readers"]), number=True),
            Cell(moment(fill["started"], now)),
        ]
        for fill in fills
    ]  # fmt: skip
    ids = [f"fill-{fill['registry']}-{fill['digest']}" for fill in fills]
    return section("fills", "Fills", table("fills", ("Blob", "Progress", "Readers", "Begun"), rows, ids))


def _progress(done: int, whole: int | None, name: str) -> Content:
    if whole is None:
        return element("progress", aria_label=name), " ", figures.size(done)
    percent = figures.share(done, whole)
    bar = element("progress", f"{percent} %", max=max(whole, 1), value=min(done, whole), aria_label=name)
    return bar, " ", element("span", f"{percent} %"), element("small", f"{figures.size(done)} of {figures.size(whole)}")


def _warm(jobs: Sequence[Stats], now: float) -> Markup:
    if not jobs:
        return section("warm", "Warm jobs", empty("No images are being warmed."))
    rows = [
        [
            Cell((_references(job["references"]), element("small", element("code", job["id"]))), head=True),
            Cell((badge(_JOB_STATES.get(job["state"], "plain"), job["state"]), element("small", _images(job)))),
            Cell(_job_progress(job)),
            Cell((moment(job["created"], now), element("small", "by ", job["by"]) if job["by"] else None)),
        ]
        for job in jobs
    ]
    ids = [f"job-{job['id']}" for job in jobs]
    return section("warm", "Warm jobs", table("warm", ("Images", "State", "Progress", "Asked for"), rows, ids))


def _references(references: Sequence[str]) -> str:
    more = f" and {figures.count(len(references) - _NAMED)} more" if len(references) > _NAMED else ""
    return ", ".join(references[:_NAMED]) + more


def _images(job: Stats) -> str:
    failed = f", {figures.count(job['failed'])} failed" if job["failed"] else ""
    note = f"; {job['note']}" if job["note"] else ""
    return f"{figures.count(job['done'])} of {figures.count(len(job['references']))} done{failed}{note}"


def _job_progress(job: Stats) -> Content:
    done, known = job["bytes"]["done"], job["bytes"]["total"]
    if job["state"] == "done":
        return _progress(known, known, f"Warm job {job['id']}")
    if job["state"] in {"failed", "stopped"}:
        return figures.size(done)
    # Images whose manifests have not come yet are not in what is known.
    return _progress(done, known if done < known else None, f"Warm job {job['id']}")
