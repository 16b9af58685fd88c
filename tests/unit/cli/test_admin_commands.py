"""Commands that speak to a running server: what they print for each state, and one line for whatever goes wrong."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.cli.tags import _ago

OLD, NEW = "sha256:" + "1" * 64, "sha256:" + "2" * 64
REFERENCE = "docker.io/library/nginx:latest"
TOKEN = "the-token"
# What of a tag is known by its hold, or its history, alone.
UNKNOWN: dict[str, Any] = {"digest": None, "checked": None, "fetched": None, "expires": None}


def tag(**changes: Any) -> dict[str, Any]:
    """A fresh tag as the API describes it."""
    return {
        "registry": "docker.io", "repository": "library/nginx", "tag": "latest", "reference": REFERENCE,
        "digest": OLD, "state": "fresh", "fetched": "2026-11-01T00:00:00Z", "checked": "2026-11-02T00:00:00Z",
        "expires": "2026-11-03T00:00:00Z", "expires_in": {}, "age": 60, "pulls": 7, "clusters": {"prod": 5, "edge": 2},
        "upstream_digest": None, "gone": None, "drifted": False, "unchecked": None, "held": None,
        "history": [digest(OLD, pulls=7, clusters={"prod": 5, "edge": 2})],
    } | changes  # fmt: skip


def digest(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "digest": name, "first_seen": "2026-11-01T00:00:00Z", "last_seen": "2026-11-02T00:00:00Z", "pulls": 0,
        "clusters": {}, "nodes": [], "other_pulls": 0,
    } | changes  # fmt: skip


def node(number: int) -> dict[str, Any]:
    return {
        "address": f"10.0.0.{number}", "cluster": "prod", "pulls": 1, "first": "2026-11-01T00:00:00Z",
        "last": "2026-11-02T00:00:00Z",
    }  # fmt: skip


class Server:
    """An admin listener that answers as a test says; `asked` is what reached it."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.tokens: set[str | None] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                body = json.loads(self.rfile.read(length)) if length else None
                parts = urlsplit(self.path)
                server.asked.append((self.command, parts.path, dict(parse_qsl(parts.query)), body))
                server.tokens.add(self.headers.get("Authorization"))
                status, raw = server.answers.pop(0)
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                if status == 302:
                    self.send_header("Location", "http://elsewhere.test/")
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815 - names of the library's

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.01))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def says(self, body: Any, status: int = 200) -> None:
        """The next answer."""
        self.answers.append((status, body if isinstance(body, bytes) else json.dumps(body).encode()))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    """One that runs."""
    made = Server()
    yield made
    made.close()


@pytest.fixture
def run(server: Server) -> Callable[..., Result]:
    """Runs a command against it."""

    def one(*arguments: str, **environment: str) -> Result:
        found = CliRunner().invoke(main, [*arguments, "--admin", server.url], env=environment)
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        return found

    return one


# What is printed.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["fresh", "sha256:111111111111", "2026-11-03T00:00:00Z", "7", "prod, edge", "the same when last checked"]),
        ({"state": "stale"}, ["stale", "the next request"]),
        ({"state": "expired"}, ["expired", "the next request"]),
        (
            {"state": "held", "held": {"digest": OLD, "since": "2026-11-02T00:00:00Z", "by": "10.0.0.9"}},
            ["held", "released"],
        ),
        (
            UNKNOWN | {"state": "held", "digest": NEW, "held": {"digest": NEW, "since": "2026-11-02", "by": "x"}},
            ["held", "sha256:222222222222", "released", " - "],
        ),
        ({"drifted": True, "upstream_digest": NEW}, ["fresh", "sha256:111111111111", "sha256:222222222222"]),
        ({"gone": "2000-01-01T00:00:00Z"}, ["fresh", "sha256:111111111111", "deleted, as it said "]),
        ({"unchecked": "only clients' own credentials may ask for it"}, ["unchecked: only clients' own credentials"]),
        (
            UNKNOWN | {"state": "absent"},
            ["absent", " - "],
        ),
    ],
)  # fmt: skip
def test_a_line_for_each_state(
    server: Server, run: Callable[..., Result], changes: dict[str, Any], words: list[str]
) -> None:
    """In one line where nobody looks at it, whatever the state; what is unknown is a dash."""
    server.says({"tags": [tag(**changes)]})
    found = run("tags")
    assert (found.exit_code, found.stderr) == (0, "")
    title, line = found.stdout.splitlines()
    assert title.split() == ["REFERENCE", "STATE", "DIGEST", "CHECKED", "UNTIL", "PULLS", "CLUSTERS", "UPSTREAM"]
    assert line.startswith(f"{REFERENCE} ")
    for word in words:
        assert word in line + " "


def test_everything_about_a_tag_that_has_drifted(server: Server, run: Callable[..., Result]) -> None:
    """Which nodes got an old image, since when, until when, and what to do about it."""
    history = [
        digest(NEW),
        digest(OLD, pulls=40, clusters={"prod": 38, "edge": 2}, nodes=[node(n) for n in range(25)], other_pulls=3),
    ]
    drifted = tag(drifted=True, upstream_digest=NEW, history=history)
    server.says({"tags": [drifted]})
    found = run("tags", "nginx")
    lines = found.stdout.splitlines()
    assert lines[0] == f"{REFERENCE}  DRIFTED"
    assert f"  serves    {OLD} (fresh)" in lines
    assert f"  upstream  {NEW}" in lines
    assert "  until     2026-11-03T00:00:00Z" in lines
    assert "    0 pulls: nobody" in lines
    assert "    40 pulls: prod 38, edge 2" in lines
    assert sum(line.startswith("    10.0.0.") for line in lines) == 20
    assert "    and 5 more nodes, 3 pulls of others (--all-nodes)" in lines
    assert lines[-2:] == [
        f"  to serve the new one now: pullthrough refresh {REFERENCE}",
        f"  to stay with the old one: pullthrough hold {REFERENCE}@{OLD}",
    ]
    assert server.asked[0][2] == {"reference": "nginx", "nodes": "true", "n": "1000"}
    server.says({"tags": [drifted]})
    found = run("tags", "nginx", "--all-nodes")
    assert sum(line.startswith("    10.0.0.") for line in found.stdout.splitlines()) == 25


def test_until_when_where_clusters_have_times_of_their_own(server: Server, run: Callable[..., Result]) -> None:
    """Those that differ are named, each with its time, or the next request where that is over."""
    times = {"prod": "2999-01-01T00:00:00Z", "edge": "2000-01-01T00:00:00Z", "lab": "2999-06-01T00:00:00Z"}
    server.says({"tags": [tag(expires=times["prod"], expires_in=times)]})
    lines = run("tags", "nginx").stdout.splitlines()
    assert f"  until     {times['prod']}; edge: the next request; lab: {times['lab']}" in lines


def test_everything_about_a_tag_that_is_gone_upstream(server: Server, run: Callable[..., Result]) -> None:
    """It is said to be, instead of any digest."""
    server.says({"tags": [tag(gone="2000-01-01T00:00:00Z", drifted=True, upstream_digest=NEW)]})
    (line,) = [line for line in run("tags", "nginx").stdout.splitlines() if line.startswith("  upstream  ")]
    assert line.startswith("  upstream  deleted, as it said ")


def test_everything_about_a_tag_that_is_held(server: Server, run: Callable[..., Result]) -> None:
    """Since when, by whom, and how it is let go; also where nobody was ever served it."""
    held = {"digest": NEW, "since": "2026-11-02T00:00:00Z", "by": "10.0.0.9"}
    server.says({"tags": [tag(**UNKNOWN | {"digest": NEW, "history": [], "state": "held", "held": held})]})
    lines = run("tags", "nginx").stdout.splitlines()
    assert "  held      since 2026-11-02T00:00:00Z by 10.0.0.9" in lines
    assert lines[-1] == f"  to let it go by the upstream again: pullthrough release {REFERENCE}"
    assert not any("refresh" in line for line in lines)


def test_what_is_asked_for(server: Server, run: Callable[..., Result]) -> None:
    """Filters as they are given, page after page; a pattern and `--drifted` as the API has them."""
    server.says({"tags": [tag(reference="a")], "last": "a"})
    server.says({"tags": [tag(reference="b")]})
    filters = ["--unchecked", "--held", "--registry", "r", "--repository", "x/*", "--cluster", "c"]
    found = run("tags", "docker.io/*", *filters)
    assert [line.split()[0] for line in found.stdout.splitlines()[1:]] == ["a", "b"]
    wanted = {
        "reference": "docker.io/*", "unchecked": "true", "held": "true", "registry": "r", "repository": "x/*",
        "cluster": "c", "n": "1000",
    }  # fmt: skip
    assert [query for _, _, query, _ in server.asked] == [wanted, wanted | {"last": "a"}]
    server.says({"tags": [tag()]})
    assert json.loads(run("tags", "--drifted", "--json").stdout) == {"tags": [tag()]}
    assert server.asked[-1][2] == {"drifted": "true", "nodes": "true", "n": "1000"}
    server.says({"tags": []})
    found = run("tags")
    assert (found.exit_code, found.stdout, found.stderr) == (0, "", "no such tags\n")


def test_what_a_refresh_says(server: Server, run: Callable[..., Result]) -> None:
    """A line for each; one that could not be asked for goes to standard error and makes the status 1."""
    same = {"reference": "a", "before": OLD, "after": OLD, "changed": False, "error": None}
    moved = {"reference": "b", "before": OLD, "after": NEW, "changed": True, "error": None}
    failed = {"reference": "c", "before": OLD, "after": OLD, "changed": False, "error": "no route"}
    server.says({"tags": [same, moved]})
    found = run("refresh", "x")
    assert (found.exit_code, found.stdout) == (0, f"a is {OLD}, as before\nb is {NEW} now, and was {OLD}\n")
    server.says({"tags": [same]})
    server.says({"tags": [failed]})
    found = run("refresh", "a", "c")
    assert (found.exit_code, found.stdout) == (1, f"a is {OLD}, as before\n")
    assert found.stderr == "c was not refreshed: no route\n"
    assert [body for *_, body in server.asked] == [{"reference": one} for one in "xac"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s ago"), (59, "59s ago"), (60, "1m ago"), (3600, "1h ago"), (86400 * 3, "3d ago")]
)
def test_how_long_ago(seconds: int, text: str) -> None:
    """In the largest unit that fits; never in the future."""
    at = datetime.now(UTC) - timedelta(seconds=seconds + 0.2)
    assert _ago(at.isoformat().replace("+00:00", "Z")) == text
    assert _ago("2999-01-01T00:00:00Z") == "0s ago"
    assert _ago(None) == "-"


# What goes wrong.


def only_line(found: Result, code: int = 1) -> str:
    """The one line of an error; nothing on standard output."""
    assert (found.exit_code, found.stdout) == (code, "")
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ")
    assert TOKEN not in line
    return line


@pytest.mark.parametrize("command", [["tags"], ["refresh", "a"], ["purge", "a"], ["hold", "a"], ["release", "a"]])
@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (409, {"error": "the reason"}, "error: the reason"),
        (500, {"error": None}, "answered 500"),
        (404, {"errors": [{"code": "NAME_UNKNOWN"}]}, "answered 404"),
        (404, b"<html>not found</html>", "is that the admin listener?"),
        (302, b"", "is that the admin listener?"),
        (200, b"", "is that the admin listener?"),
        (200, b"\xff", "is that the admin listener?"),
        (200, b"[" * 100_000, "is that the admin listener?"),
        (200, [1], "answered 200"),
        (403, [], "answered 403"),
    ],
)
def test_a_server_that_refuses_or_is_another_one(
    server: Server, run: Callable[..., Result], command: list[str], status: int, body: Any, words: str
) -> None:
    """The server's own words, or which address answered what; status 1."""
    server.says(body, status)
    assert words in only_line(run(*command))


def test_a_server_that_is_not_there() -> None:
    """Nobody listens, no such host, somebody who hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", f"127.0.0.1:{port}/", "http://no-such-host.invalid:1"):
        line = only_line(CliRunner().invoke(main, ["tags", "--admin", url]))
        assert "does not answer" in line
    with socket.create_server(("127.0.0.1", 0)) as hangs_up:

        def hang_up() -> None:
            for _ in range(2):
                hangs_up.accept()[0].close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{hangs_up.getsockname()[1]}"
        assert "does not answer" in only_line(CliRunner().invoke(main, ["tags", "--admin", url]))


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x", "http://", "http://[", "http://x:99999", "http://x:y", "http://a b", "http://user:secret@x", "?"],
)
def test_what_is_no_address(url: str) -> None:
    """A usage error, without a traceback and without the password in it."""
    found = CliRunner().invoke(main, ["tags", "--admin", url])
    assert found.exit_code == 2
    assert "not a URL such as http://127.0.0.1:5001" in found.stderr
    assert "secret" not in found.output


def test_the_token_goes_to_the_server(server: Server, run: Callable[..., Result], tmp_path: Path) -> None:
    """As it stands in the file without its line end, by option or environment; nothing without one."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    for arguments, environment in (
        ([], {}), (["--token-file", str(file)], {}), ([], {"PULLTHROUGH_TOKEN_FILE": str(file)}),
    ):  # fmt: skip
        server.says({"tags": []})
        assert run("tags", *arguments, **environment).exit_code == 0
    assert server.tokens == {None, f"Bearer {TOKEN}"}


@pytest.mark.parametrize("content", [None, b"\xff\xfe" + TOKEN.encode(), f"{TOKEN}\nX: {TOKEN}".encode(), b"a\0b"])
def test_a_token_that_cannot_be_sent(run: Callable[..., Result], tmp_path: Path, content: bytes | None) -> None:
    """Missing, no text, or more than one line: one line that does not hold it, and nothing is sent."""
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    only_line(run("tags", "--token-file", str(file)))
