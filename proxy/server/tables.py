"""The page's building blocks: sections, tables, badges and moments."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from hashlib import sha256

from proxy.server import figures
from proxy.server.markup import Content, Markup, element


@dataclass(frozen=True, slots=True)
class Cell:
    """`head`: it names its row. `number`: it is compared with those above and below it."""

    content: Content
    head: bool = False
    number: bool = False


def section(id_: str, title: str, *content: Content) -> Markup:
    """A landmark with its heading."""
    heading = element("h2", title, id=f"{id_}-title")
    return element("section", heading, content, id=id_, aria_labelledby=f"{id_}-title")


def table(id_: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], ids: Sequence[str] = ()) -> Markup:
    """A table; on narrow screens its rows become blocks whose cells name themselves (status.css).

    `ids`: what each row is, so that the script tells a row that changed from another one.
    """
    # The roles are spelled out because a table that is displayed as blocks is none for screen readers any more.
    head = element("tr", [element("th", name, scope="col", role="columnheader") for name in heads], role="row")
    body = [
        element(
            "tr", [_cell(cell, name) for cell, name in zip(row, heads, strict=True)],
            role="row", id=row_id(ids[number]) if ids else None,
        )
        for number, row in enumerate(rows)
    ]  # fmt: skip
    groups = element("thead", head, role="rowgroup"), element("tbody", body, role="rowgroup")
    return element("table", groups, role="table", aria_labelledby=f"{id_}-title")


def row_id(name: str) -> str:
    """An id for what has any name: the hash of it."""
    return f"row-{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _cell(cell: Cell, name: str) -> Markup:
    if cell.head:
        return element("th", cell.content, scope="row", role="rowheader", data_label=name)
    return element("td", cell.content, role="cell", data_label=name, class_="number" if cell.number else None)


def badge(kind: str, word: str) -> Markup:
    """A word with a colour: `good`, `warn`, `bad` or `plain`."""
    return element("span", word, class_=f"badge {kind}")


def empty(words: str) -> Markup:
    """What stands where there is nothing to show."""
    return element("p", words, class_="empty")


def moment(text: str, now: float) -> Markup:
    """`3 min ago` or `in 5 min`; the time itself (RFC 3339) for machines and on hovering."""
    ago = figures.since(text, now)
    words = f"{figures.span(ago)} ago" if ago >= 0 else f"in {figures.span(-ago)}"
    exact = figures.moment(text).astimezone(UTC)
    return element("time", words, datetime=text, title=f"{exact:%Y-%m-%d %H:%M:%S} UTC")
