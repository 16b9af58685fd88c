"""The commands as their users meet them: what they print, what they write, how they end."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from proxy import __version__
from proxy.cli import main
from tests.fakes.authority import Authority

SHIPPED = Path(__file__).parents[3] / "config" / "proxy.yaml"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "proxy.yaml"
    upstreams = {
        "docker.io": {"url": "https://registry-1.docker.io", "default": True},
        "reg.test:5000": {"url": "http://reg.test:5000", "aliases": ["local"]},
        "other.test:5000": {"url": "http://other.test:5000"},
    }
    file.write_text(yaml.safe_dump({"upstreams": upstreams}))
    return file


def test_version_and_help() -> None:
    """`pullthrough --version`, and help that names every command."""
    assert run("--version").output == f"pullthrough, version {__version__}\n"
    help_text = run("--help").output
    for command in ("serve", "check-config", "hosts-toml"):
        assert command in help_text


def test_check_config_of_a_good_file() -> None:
    """Exit 0 and one line."""
    result = run("check-config", SHIPPED)
    assert result.exit_code == 0
    assert result.stdout == f"{SHIPPED}: good (8 upstreams, 1 clusters)\n"


def test_check_config_reports_five_mistakes_at_once(tmp_path: Path) -> None:
    """All of them with their paths, exit 2, nothing on standard output."""
    file = tmp_path / "bad.yaml"
    file.write_text(
        "workers: 0\ncache: {max_size: big}\nupstreams: {a.test: {url: nowhere}}\n"
        "clusters: [{name: a, upstreams: [b.test]}]\nlog: {level: loud}\n"
    )
    result = run("check-config", file)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"{file}: 5 mistakes" in result.stderr
    for path in ("workers", "cache.max_size", 'upstreams."a.test".url', "clusters[0].upstreams[0]", "log.level"):
        assert f"\n  {path}: " in result.stderr


@pytest.mark.parametrize("command", ["check-config", "serve", "hosts-toml"])
def test_every_command_ends_with_2_for_a_file_it_cannot_use(command: str, tmp_path: Path) -> None:
    """Without a traceback."""
    file = tmp_path / "missing.yaml"
    arguments: list[object] = [command, file] if command == "check-config" else [command, "--config", file]
    if command == "hosts-toml":
        arguments += ["--url", "http://p:5000", "--out", tmp_path]
    result = run(*arguments)
    assert result.exit_code == 2
    assert "No such file or directory" in result.stderr


@pytest.mark.parametrize("value", ["5000", "host", "host:99999", ""])
def test_serve_takes_an_address_to_listen_on(config: Path, value: str) -> None:
    """What is none is a usage error."""
    result = run("serve", "--config", config, "--listen", value)
    assert result.exit_code == 2
    assert "write 0.0.0.0:5000" in result.output


def test_warnings_of_what_is_surely_not_meant(tmp_path: Path) -> None:
    """Still good, exit 0: unused credentials, no default, every cluster with a match, an open admin listener, a
    login over connections where nobody is asked for it.
    """
    file = tmp_path / "odd.yaml"
    document = {
        "admin": {"address": "0.0.0.0:5001"},
        "upstreams": {"a.test": {"url": "https://a.test", "credentials": {"helper": "x"}}},
        "clusters": [
            {"name": "a", "match": {"networks": ["10.0.0.0/8"]}, "login": True, "repositories": ["*/app", "team/*"]}
        ],
    }
    file.write_text(yaml.safe_dump(document))
    result = run("check-config", file)
    assert result.exit_code == 0
    for part in (
        "used by no cluster",
        "no upstream is the default",
        "every cluster has a match",
        "not on loopback",
        "no listener has TLS",
        "allows team/*, which no repository has",
    ):
        assert part in result.stderr
    assert "*/app" not in result.stderr
    document["clusters"] = [{"name": "a", "credentials": True}]
    file.write_text(yaml.safe_dump(document))
    assert "used by no cluster" not in run("check-config", file).stderr


def test_hosts_toml_for_containerd(config: Path, tmp_path: Path) -> None:
    """One file a registry: the proxy first with a low dial_timeout, the registry itself as the server behind it."""
    out = tmp_path / "out"
    result = run("hosts-toml", "--config", config, "--url", "http://proxy:5000/", "--out", out)
    assert result.exit_code == 0
    written = tomllib.loads((out / "docker.io" / "hosts.toml").read_text())
    assert written["server"] == "https://registry-1.docker.io"
    assert written["host"] == {"http://proxy:5000": {"capabilities": ["pull", "resolve"], "dial_timeout": "1s"}}
    assert set(result.output.split()) == {str(file) for file in out.rglob("*.*") if file.is_file()}


def test_hosts_toml_without_fallback(config: Path, tmp_path: Path) -> None:
    """The proxy is the server too: an outage does not send every node to the upstream."""
    assert (
        run("hosts-toml", "--config", config, "--url", "https://p", "--out", tmp_path, "--no-fallback").exit_code == 0
    )
    for registry in ("docker.io", "reg.test:5000"):
        text = (tmp_path / registry / "hosts.toml").read_text()
        assert tomllib.loads(text)["server"] == "https://p"
        assert "registry-1" not in text


def test_snippets_for_docker_and_podman(config: Path, tmp_path: Path) -> None:
    """docker.io's mirror for Docker; for podman a path prefix, by an alias where the registry has a port."""
    run("hosts-toml", "--config", config, "--url", "http://proxy:5000", "--out", tmp_path)
    daemon = json.loads((tmp_path / "docker" / "daemon.json").read_text())
    assert daemon == {"registry-mirrors": ["http://proxy:5000"], "insecure-registries": ["proxy:5000"]}
    podman = tomllib.loads((tmp_path / "podman" / "registries.conf").read_text())
    mirrors = {entry["prefix"]: entry["mirror"] for entry in podman["registry"]}
    assert mirrors == {
        "docker.io": [{"location": "proxy:5000/docker.io", "insecure": True}],
        "reg.test:5000": [{"location": "proxy:5000/local", "insecure": True}],
    }


@pytest.mark.parametrize("url", ["proxy:5000", "ftp://proxy", "http://", "http://proxy/v2", "http://proxy?x=1"])
def test_hosts_toml_wants_the_proxys_url(config: Path, tmp_path: Path, url: str) -> None:
    """Scheme, host and port: a usage error otherwise, and nothing written."""
    out = tmp_path / "out"
    assert run("hosts-toml", "--config", config, "--url", url, "--out", out).exit_code == 2
    assert not out.exists()


def test_hosts_toml_that_cannot_write_says_where(config: Path, tmp_path: Path) -> None:
    """One line."""
    (tmp_path / "file").write_text("")
    result = run("hosts-toml", "--config", config, "--url", "http://p", "--out", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert "Not a directory" in result.output


@pytest.mark.parametrize("url", ["http://[::1", "http://proxy:99999", "http://me:pw@proxy", "http://proxy#x"])
def test_hosts_toml_wants_a_url_that_can_be_dialled(config: Path, tmp_path: Path, url: str) -> None:
    """A password would be written into every node's file."""
    assert run("hosts-toml", "--config", config, "--url", url, "--out", tmp_path / "out").exit_code == 2


@pytest.mark.parametrize("no_fallback", [False, True])
def test_hosts_toml_for_a_proxy_with_tls(config: Path, tmp_path: Path, no_fallback: bool) -> None:
    """The authority and the client's pair stand where the proxy does: as the server too, where it is that."""
    pair = ("/etc/node.crt", "/etc/node.key")
    more = ["--no-fallback"] if no_fallback else []
    arguments = ("--url", "https://p:5443", "--ca", "/etc/ca.crt", "--client", *pair, "--out", tmp_path, *more)
    result = run("hosts-toml", "--config", config, *arguments)
    assert result.exit_code == 0
    written = tomllib.loads((tmp_path / "docker.io" / "hosts.toml").read_text())
    tls = {"ca": "/etc/ca.crt", "client": [list(pair)]}
    assert written["host"]["https://p:5443"].items() >= tls.items()
    assert {key: written[key] for key in tls if key in written} == (tls if no_fallback else {})
    for folder in ("/etc/docker/certs.d/p:5443", "/etc/containers/certs.d/p:5443"):
        assert folder in result.stderr
    assert "insecure-registries" not in (tmp_path / "docker" / "daemon.json").read_text()


def test_a_ca_goes_with_https(config: Path, tmp_path: Path) -> None:
    """A usage error otherwise: containerd would try https with it all the same."""
    arguments = ("--url", "http://p:5000", "--ca", "/etc/ca.crt", "--out", tmp_path / "out")
    assert run("hosts-toml", "--config", config, *arguments).exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.fixture
def with_tls(tmp_path: Path) -> Path:
    """A configuration with a TLS listener whose good files stand beside it."""
    pair = Authority(tmp_path).server()
    shutil.copyfile(pair.certificate, tmp_path / "tls.crt")
    shutil.copyfile(pair.key, tmp_path / "tls.key")
    (tmp_path / "tls.key").chmod(0o640)
    file = tmp_path / "tls.yaml"
    document = {
        "listen": [{"address": "0.0.0.0:5443", "tls": {"certificate": "tls.crt", "key": "tls.key"}}],
        "upstreams": {"a.test": {"url": "https://a.test", "default": True}},
    }
    file.write_text(yaml.safe_dump(document))
    return file


def test_check_config_of_certificates(with_tls: Path) -> None:
    """Good ones are good; a pair that does not belong together is a mistake, with its place in the file."""
    result = run("check-config", with_tls)
    assert (result.exit_code, result.stderr) == (0, "")
    with_tls.with_name("tls.key").write_text("noise")
    result = run("check-config", with_tls)
    assert result.exit_code == 2
    assert f"{with_tls}: listen[0].tls: {with_tls.with_name('tls.key')} is no private key" in result.stderr
    assert result.stdout == ""


def test_check_config_where_the_certificates_are_not(with_tls: Path) -> None:
    """A warning: they may be there where the proxy runs."""
    with_tls.with_name("tls.key").unlink()
    result = run("check-config", with_tls)
    assert result.exit_code == 0
    assert f"warning: listen[0].tls: {with_tls.with_name('tls.key')}: No such file or directory" in result.stderr


def test_a_private_key_that_everybody_can_read(with_tls: Path) -> None:
    """A warning, which names the file."""
    with_tls.with_name("tls.key").chmod(0o644)
    result = run("check-config", with_tls)
    assert result.exit_code == 0
    assert f"can read the private key {with_tls.with_name('tls.key')}" in result.stderr
