"""HTML that nothing gets into unescaped."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from proxy.server.markup import Markup, element, escaped


class Read(HTMLParser):
    """What a parser sees: elements with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_elements() -> None:
    """Contents one after the other, attributes in their HTML names; what has no end tag gets none."""
    made = element("p", "a", None, [1, element("code", "b")], class_="x", data_live="1", hidden=True, title=None)
    assert made == '<p class="x" data-live="1" hidden>a1<code>b</code></p>'
    assert element("input", name="n", value=0, disabled=False) == '<input name="n" value="0">'


def test_only_markup_is_taken_as_it_is() -> None:
    """Text is escaped wherever it stands, once."""
    assert escaped("<b>") == "&lt;b&gt;"
    assert escaped(Markup("<b>")) == "<b>"
    assert escaped(escaped("&")) == "&amp;"
    assert element("a", href='"><script>') == '<a href="&quot;&gt;&lt;script&gt;"></a>'


def test_what_cannot_be_seen_is_shown_as_missing() -> None:
    """Control characters, lone surrogates, and what turns the direction of the text beside it."""
    assert escaped("a\x00\x1b\u202e\ud800b") == "a\ufffd\ufffd\ufffd\ufffdb"
    assert escaped("a\n\tä漢b") == "a\n\tä漢b"


@given(st.text(), st.text())
def test_any_text_comes_back_as_text(content: str, attribute: str) -> None:
    """A parser finds the one element with exactly that attribute and that text (HTML reads CR as LF)."""
    read = Read(element("p", content, title=attribute))
    ((name, attributes),) = read.elements
    assert (name, set(attributes)) == ("p", {"title"})
    assert Markup(read.text) == _seen(content)
    assert attributes["title"] == _seen(attribute)


def _seen(text: str) -> str:
    import html

    return html.unescape(escaped(text))
