"""Listeners that intercept: how they are written, and what `check-config` says of their authority."""

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.server.intercept_ca import Pair, create_authority, read_authority
from proxy.settings import ConfigurationError, ListenSettings, Settings, load_settings, needs_restart

Load = Callable[[dict[str, object]], ListenSettings]

UPSTREAMS = {"a.test": {"url": "https://a.test", "default": True}}
INTERCEPT = {"ca_certificate": "ca.crt", "ca_key": "ca.key"}
TLS = {"certificate": "tls.crt", "key": "tls.key"}
NOW, DAY = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a file with one listener of these keys."""
    file = tmp_path / "proxy.yaml"

    def read(listener: dict[str, object]) -> ListenSettings:
        listen = [{"address": "0.0.0.0:443"} | listener]
        file.write_text(yaml.safe_dump({"upstreams": UPSTREAMS, "listen": listen}))
        (found,) = load_settings(file, {}).listen
        return found

    return read


def mistakes(load: Load, listener: dict[str, object]) -> dict[str, str]:
    """The mistakes in it by their path."""
    with pytest.raises(ConfigurationError) as caught:
        load(listener)
    return dict(mistake.split(": ", 1) for mistake in caught.value.mistakes)


def test_listeners_do_not_intercept_by_themselves(load: Load) -> None:
    """It is asked for."""
    found = load({})
    assert (found.intercept, found.connect, found.tunnel) == (None, False, ())


def test_kinds_of_listeners(load: Load) -> None:
    """By name; by CONNECT; by CONNECT inside of TLS; and where that tunnels to."""
    assert load({"intercept": INTERCEPT}).intercept is not None
    assert load({"intercept": INTERCEPT, "connect": True}).connect
    both = load({"intercept": INTERCEPT, "connect": True, "tls": TLS, "tunnel": ["b.test"]})
    assert both.tls is not None
    assert both.intercept is not None
    assert both.tunnel == ("b.test",)


@pytest.mark.parametrize(
    ("listener", "found"),
    [
        ({"connect": True}, "connect needs an intercept: {ca_certificate, ca_key}"),
        ({"connect": True, "tls": TLS}, "connect needs an intercept: {ca_certificate, ca_key}"),
        ({"tunnel": ["b.test"]}, "tunnel is for a listener with connect: true"),
        ({"tunnel": ["b.test"], "intercept": INTERCEPT}, "tunnel is for a listener with connect: true"),
        (
            {"tls": TLS, "intercept": INTERCEPT},
            "a listener that intercepts has certificates of its own: leave out tls, or say connect: true",
        ),
    ],
)
def test_keys_that_need_each_other(load: Load, listener: dict[str, object], found: str) -> None:
    """Each is a mistake of the listener, which says what is missing."""
    assert mistakes(load, listener) == {"listen[0]": found}


@pytest.mark.parametrize("missing", INTERCEPT)
def test_an_authority_is_two_files(load: Load, missing: str) -> None:
    """Neither is guessed, and nothing else is an authority's."""
    written = {key: value for key, value in INTERCEPT.items() if key != missing}
    assert mistakes(load, {"intercept": written}) == {f"listen[0].intercept.{missing}": "this setting is required"}
    assert list(mistakes(load, {"intercept": INTERCEPT | {"password": "x"}})) == ["listen[0].intercept.password"]
    assert list(mistakes(load, {"intercept": "ca.crt"})) == ["listen[0].intercept"]


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("auth.docker.io", "auth.docker.io"),
        ("Auth.Docker.IO", "auth.docker.io"),
        ("*.cdn.test", "*.cdn.test"),
        ("node?.test", "node?.test"),
        ("*", "*"),
        ("one.test:8443", "one.test:8443"),
        ("*:65535", "*:65535"),
        ("1.1.1.1", "1.1.1.1"),
        ("[2606:4700::1111]", "[2606:4700::1111]"),
        ("[2606:4700::ABCD]:8443", "[2606:4700::abcd]:8443"),
    ],
)
def test_where_tunnels_may_lead(load: Load, written: str, kept: str) -> None:
    """Shell patterns of hosts, with a port where that is not 443, in lower case."""
    assert load({"intercept": INTERCEPT, "connect": True, "tunnel": ["x.test", written]}).tunnel == ("x.test", kept)


BAD = [
    "", ":443", "one.test:", "one.test:0", "one.test:65536", "one.test:-1", "one.test:https", "one.test:*", "*:*",
    "https://one.test", "https://one.test:8443", "one.test/", "one.test/path", "me@one.test", "me:it@one.test:443",
    "one.test two.test", "one.test,two.test", "one.test\n", " one.test", "one.test ", "bücher.test", "[a-z].test",
    "2606:4700::1111", "[2606:4700::1111", "one.test:80:80", "one%2etest", "one.test\x00",
]  # fmt: skip


@pytest.mark.parametrize("written", BAD)
def test_where_no_tunnel_can_lead(load: Load, written: str) -> None:
    """It is told with its place in the list."""
    found = mistakes(load, {"intercept": INTERCEPT, "connect": True, "tunnel": ["x.test", written]})
    assert list(found) == ["listen[0].tunnel[1]"]
    assert found["listen[0].tunnel[1]"].startswith("not a host, with a port if it is not 443: write ")


@pytest.mark.parametrize(
    "written", ["one.test:8443/path", "one.test:8443?a", "one.test:8443#a", "one.test:84\n43", "one.test:08443"]
)
def test_what_stands_behind_a_port(load: Load, written: str) -> None:
    """Nothing may: such an entry would never fit anything."""
    assert mistakes(load, {"intercept": INTERCEPT, "connect": True, "tunnel": [written]})


def test_a_question_mark_and_a_port(load: Load) -> None:
    """Is a shell pattern with a port as any other."""
    assert load({"intercept": INTERCEPT, "connect": True, "tunnel": ["node?.test:8443"]}).tunnel


@pytest.mark.parametrize("written", ["one.crt", "../keys/one.crt", "/etc/one.crt"])
def test_files_are_beside_the_configuration(load: Load, tmp_path: Path, written: str) -> None:
    """A relative path begins where the configuration is, not where the program was started."""
    for listener in ({"connect": True, "tls": TLS}, {}):
        found = load({"intercept": {"ca_certificate": written, "ca_key": f"{written}.key"}} | listener).intercept
        assert found is not None
        assert found.ca_certificate.is_absolute()
        assert found.ca_certificate.resolve() == (tmp_path / written).resolve()
        assert found.ca_key.resolve() == (tmp_path / f"{written}.key").resolve()


def test_a_change_needs_a_restart() -> None:
    """Of each of the keys: listeners are bound once."""
    whole: dict[str, object] = {"address": "0.0.0.0:443", "intercept": INTERCEPT, "connect": True, "tunnel": ["b.test"]}
    changes: list[dict[str, object]] = [
        {"tunnel": ["c.test"]}, {"intercept": INTERCEPT | {"ca_key": "x"}}, {"connect": False, "tunnel": []},
    ]  # fmt: skip
    old = settings(whole)
    assert needs_restart(old, settings(whole)) == []
    for change in changes:
        assert len(needs_restart(old, settings(whole | change))) == 1


def settings(listener: dict[str, object]) -> Settings:
    return Settings.model_validate({"upstreams": UPSTREAMS, "listen": [listener]})


class Checked:
    """A configuration with a plain listener and one that intercepts, and its authority's files."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "proxy.yaml"
        self.certificate, self.key = folder / "ca.crt", folder / "ca.key"
        listen = [{"address": "0.0.0.0:5000"}, {"address": "0.0.0.0:443", "intercept": INTERCEPT}]
        self.file.write_text(yaml.safe_dump({"upstreams": UPSTREAMS, "listen": listen}))

    def write(self, certificate: bytes, key: bytes, mode: int = 0o600) -> None:
        self.certificate.write_bytes(certificate)
        self.key.write_bytes(key)
        self.key.chmod(mode)

    def run(self) -> Result:
        return CliRunner().invoke(main, ["check-config", str(self.file)])


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    return Checked(tmp_path)


def own_lines(result: Result) -> list[str]:
    """What is said of authorities; this machine's limits are another matter."""
    return [line for line in result.stderr.splitlines() if "open-file limit" not in line]


def test_a_good_authority(checked: Checked) -> None:
    """Nothing is said of it."""
    made = create_authority(["a.test"], NOW, 100 * DAY)
    checked.write(made.certificate, made.key)
    result = checked.run()
    assert (result.exit_code, own_lines(result)) == (0, [])


def broken() -> dict[str, tuple[Pair, str]]:
    """Authorities that cannot be used, and what is wrong with them."""
    good, other = create_authority([], NOW, DAY), create_authority([], NOW, DAY)
    ended = create_authority([], NOW - 10 * DAY, 5 * DAY)
    return {
        "no certificate": (Pair(b"nonsense", good.key), "{folder}/ca.crt is no certificate (PEM)"),
        "no key": (Pair(good.certificate, b""), "{folder}/ca.key is no private key (PEM)"),
        "mismatch": (Pair(good.certificate, other.key), "{folder}/ca.crt and {folder}/ca.key do not belong together"),
        "ended": (ended, f"{{folder}}/ca.crt ended on {NOW - 5 * DAY:%Y-%m-%d}"),
    }


@pytest.mark.parametrize("kind", ["no certificate", "no key", "mismatch", "ended"])
def test_a_broken_authority_is_a_mistake(checked: Checked, kind: str) -> None:
    """With its place in the file: exit 2, and nothing on standard output."""
    pair, why = broken()[kind]
    checked.write(pair.certificate, pair.key)
    result = checked.run()
    why = why.format(folder=checked.file.parent)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{checked.file}: listen[1].intercept: {why}\n"


def test_a_servers_certificate_is_no_authority(checked: Checked) -> None:
    """It may not sign, so no node would trust what it did."""
    made = create_authority([], NOW, DAY)
    checked.write(made.certificate, made.key)
    issued = read_authority(checked.certificate, checked.key, NOW).issue("a.test", NOW, DAY)
    checked.write(issued.certificate, issued.key)
    result = checked.run()
    assert result.exit_code == 2
    assert "listen[1].intercept: " in result.stderr
    assert "it may not sign certificates" in result.stderr


@pytest.mark.parametrize("missing", [("ca.crt",), ("ca.key",), ("ca.crt", "ca.key")])
def test_files_that_are_not_here(checked: Checked, missing: tuple[str, ...]) -> None:
    """They may be where the proxy is to run: one warning, and the configuration is good."""
    made = create_authority([], NOW, DAY)
    checked.write(made.certificate, made.key)
    for name in missing:
        (checked.file.parent / name).unlink()
    result = checked.run()
    assert result.exit_code == 0
    gone = checked.file.parent / missing[0]
    assert own_lines(result) == [f"warning: listen[1].intercept: {gone}: No such file or directory"]


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_key_that_everybody_can_read(checked: Checked, mode: int, warned: bool) -> None:
    """Whoever has it can pass for the registries: a warning says what to do."""
    made = create_authority([], NOW, DAY)
    checked.write(made.certificate, made.key, mode)
    result = checked.run()
    assert result.exit_code == 0
    line = f"warning: everybody on this machine can read the private key {checked.key}: chmod o-r, or defaultMode: 0400"
    assert own_lines(result) == ([line] if warned else [])
