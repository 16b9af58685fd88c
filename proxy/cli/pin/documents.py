"""YAML as a tree of nodes that know where in the text they stand. Nothing is constructed, resolved to values or dumped.

ruamel.yaml counts in characters of the text, a byte order mark included, so a node's marks are positions in it.
"""

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scanner import Scanner

_MERGE = "tag:yaml.org,2002:merge"
# Each level takes some of the interpreter's stack; definitions of custom resources have about 40.
_DEEPEST = 200
_LINE_ENDS = "\r\n\x85\u2028\u2029\0"


class Unreadable(ValueError):
    """A text that is not what it should be: `line`, counted from 1, and why."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


def documents(text: str) -> list[Node]:
    """The root nodes of all documents that have content. Raises Unreadable."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Scanner = _Scanner
    yaml.max_depth = _DEEPEST
    # An anchor may be given again (YAML 1.2, section 7.1); aliases behind it mean the later one.
    yaml.composer.warn_double_anchors = False
    try:
        return [root for root in yaml.compose_all(text) if root is not None]
    except ReaderError as error:
        raise Unreadable(line_at(text, error.position), f"not YAML: the character #x{error.character:04x}") from error
    except MaxDepthExceededError as error:
        line = line_at(text, error.problem_mark.index)
        raise Unreadable(line, f"nested deeper than {_DEEPEST} levels") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        index = mark.index if mark is not None else 0
        raise Unreadable(line_at(text, index), f"not YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise Unreadable(1, f"not YAML: {error}") from error


def line_at(text: str, index: int) -> int:
    """The number, from 1, of the line that the character `index` is in, as editors count."""
    return text.count("\n", 0, index) + 1


class Entries:
    """The entries of mappings with their merge keys (`<<`) followed, as consumers of the file see them."""

    def __init__(self) -> None:
        self._known: dict[int, list[tuple[str, Node]]] = {}

    def of(self, node: Node) -> list[tuple[str, Node]]:
        """Key and value; a key that stands there twice comes twice, one that is overridden does not come merged."""
        if not isinstance(node, MappingNode):
            return []
        if id(node) not in self._known:
            # A mapping that merges itself has nothing more to give; anchors used again and again are followed once.
            self._known[id(node)] = []
            self._known[id(node)] = self._followed(node)
        return self._known[id(node)]

    def _followed(self, node: MappingNode) -> list[tuple[str, Node]]:
        found = [(key.value, value) for key, value in node.value if isinstance(key, ScalarNode) and key.tag != _MERGE]
        seen = {key for key, _ in found}
        for key, value in node.value:
            if key.tag == _MERGE:
                for merged in value.value if isinstance(value, SequenceNode) else [value]:
                    more = [(name, inner) for name, inner in self.of(merged) if name not in seen]
                    found += more
                    seen |= {name for name, _ in more}
        return found


class _Scanner(Scanner):
    """ruamel.yaml's, with tabs between tokens and behind plain scalars: Kubernetes' and compose's parsers take them."""

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        while self.reader.peek() == "\t" and (not self.allow_simple_key or self._ends_line(self._blanks())):
            self.reader.forward()
            super().scan_to_next_token()

    def scan_plain_spaces(self, indent: Any, start_mark: Any) -> Any:
        blanks = self._blanks()
        text = self.reader.prefix(blanks)
        if "\t" not in text:
            return super().scan_plain_spaces(indent, start_mark)
        self.reader.forward(blanks)
        return super().scan_plain_spaces(indent, start_mark) if self._ends_line(0) else [text]

    def _blanks(self) -> int:
        length = 0
        while self.reader.peek(length) in (" ", "\t"):
            length += 1
        return length

    def _ends_line(self, offset: int) -> bool:
        return self.reader.peek(offset) in (*_LINE_ENDS, "#")
