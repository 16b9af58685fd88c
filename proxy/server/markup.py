"""HTML built so that nothing gets into it unescaped: whatever is not `Markup` already is text.

The syntax is that of the HTML standard (https://html.spec.whatwg.org/multipage/syntax.html).
"""

import html
import re
from collections.abc import Iterable
from typing import TypeAlias

# Without an end tag; others of the standard's list are not used.
_VOID = frozenset({"input", "link", "meta", "wbr"})
# What has no place in a document, and what would turn around the text beside it. Surrogates cannot be encoded.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Markup(str):
    """HTML, escaped where it had to be."""

    __slots__ = ()


Content: TypeAlias = "str | int | Iterable[Content] | None"
Attribute: TypeAlias = "str | int | bool | None"


def escaped(content: Content) -> Markup:
    """`content` as HTML; None is nothing, several things stand one after the other."""
    if isinstance(content, Markup):
        return content
    if content is None:
        return Markup()
    if isinstance(content, str | int):
        return Markup(html.escape(_UNSEEN.sub("\ufffd", str(content))))
    return Markup("".join(map(escaped, content)))


def element(name: str, /, *content: Content, **attributes: Attribute) -> Markup:
    """An element. Attributes: `class_` for class, `data_live` for data-live; True has no value, False and None go."""
    # By identity: 0 is a value, though it equals False.
    said = {key: value for key, value in attributes.items() if value is not None and value is not False}
    words = [name, *(_attribute(key, value) for key, value in said.items())]
    end = "" if name in _VOID else f"</{name}>"
    return Markup(f"<{' '.join(words)}>{escaped(content)}{end}")


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    return name if value is True else f'{name}="{escaped(value)}"'
