"""`pullthrough ca`: which files it makes and leaves alone, and what it says is to be done on nodes."""

import datetime
import os
import shlex
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from proxy.cli import main
from proxy.server.intercept_ca import read_authority

UPSTREAMS = {
    "docker.io": {"url": "https://registry-1.docker.io", "aliases": ["registry-1.docker.io"], "default": True},
    "reg.test:5000": {"url": "http://reg.test:5000", "aliases": ["local", "reg.test:5001"]},
}
ANY_NAME = "warning: it may sign for every name; --config FILE has it sign for its registries only\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is called."""
    made = tmp_path / "here"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def umask() -> Iterator[None]:
    """Nothing is taken away from what files may be."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "proxy.yaml"
    file.write_text(yaml.safe_dump({"upstreams": UPSTREAMS}))
    return file


def ca(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["ca", *(str(argument) for argument in arguments)])


def refused(*arguments: object) -> str:
    """What is said of a call that fails, in one line."""
    result = ca(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    return result.stderr.removeprefix("Error: ").removesuffix("\n")


def certificate(file: str = "ca.crt") -> x509.Certificate:
    return x509.load_pem_x509_certificate(Path(file).read_bytes())


def permitted(file: str = "ca.crt") -> set[str]:
    """The names that an authority may sign for."""
    found = certificate(file).extensions.get_extension_for_class(x509.NameConstraints).value
    return {str(name.value) for name in found.permitted_subtrees or ()}


def mode(file: str) -> int:
    return stat.S_IMODE(Path(file).stat().st_mode)


def test_an_authority_in_two_files(folder: Path, umask: None) -> None:
    """The key is its owner's alone, whatever the umask says; the certificate is for everybody; both belong together."""
    result = ca("create", "--name", "reg.test")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "ca.crt is for nodes to trust, ca.key for the proxy alone\n"
    assert {file.name for file in folder.iterdir()} == {"ca.crt", "ca.key"}
    assert (mode("ca.key"), mode("ca.crt")) == (0o600, 0o644)
    read_authority(Path("ca.crt"), Path("ca.key"), datetime.datetime.now(datetime.UTC))
    assert "PRIVATE" not in Path("ca.crt").read_text()


def test_files_elsewhere(tmp_path: Path) -> None:
    """Where they are said to be."""
    assert ca("create", "--certificate", tmp_path / "a.pem", "--key", tmp_path / "b.pem").exit_code == 0
    read_authority(tmp_path / "a.pem", tmp_path / "b.pem", datetime.datetime.now(datetime.UTC))


@pytest.mark.parametrize("there", ["ca.crt", "ca.key"])
def test_nothing_is_written_over(folder: Path, there: str) -> None:
    """What is there stays as it is, also a file with nothing in it, and nothing new is left beside it."""
    for content in ("precious", ""):
        Path(there).write_text(content)
        assert refused("create") == f"{there} is there already, and nodes may trust it: it stays"
        assert Path(there).read_text() == content
        assert [file.name for file in folder.iterdir()] == [there]


def test_an_authority_is_made_once() -> None:
    """Another call leaves the first one's files as they are."""
    assert ca("create").exit_code == 0
    before = Path("ca.crt").read_bytes(), Path("ca.key").read_bytes()
    assert "it stays" in refused("create")
    assert (Path("ca.crt").read_bytes(), Path("ca.key").read_bytes()) == before


@pytest.mark.parametrize("there", ["ca.crt", "ca.key"])
@pytest.mark.parametrize("leads", ["somewhere", "nowhere"])
def test_links_are_not_followed(folder: Path, tmp_path: Path, there: str, leads: str) -> None:
    """Neither to a file nor to where one could be made."""
    target = tmp_path / "target"
    if leads == "somewhere":
        target.write_text("precious")
    Path(there).symlink_to(target)
    assert "it stays" in refused("create")
    assert [file.name for file in folder.iterdir()] == [there]
    assert Path(there).is_symlink()
    assert (target.read_text() if leads == "somewhere" else target.exists()) in {"precious", False}


@pytest.mark.parametrize("option", ["--certificate", "--key"])
def test_folders_that_are_not_there(folder: Path, option: str) -> None:
    """Are not made, and nothing else is."""
    assert refused("create", option, "none/file") == "none/file: No such file or directory"
    assert list(folder.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an authority is none."""
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", "ca.crt")

    monkeypatch.setattr(os, "fsync", full)
    assert refused("create") == "ca.crt: No space left on device"
    assert list(folder.iterdir()) == []


def test_limits_to_the_configuration(config: Path) -> None:
    """It may sign for the registries and their aliases, without ports, and for what is named besides; nothing else."""
    assert ca("create", "--config", config).exit_code == 0
    assert permitted() == {"docker.io", "registry-1.docker.io", "reg.test", "local"}
    more = ca(
        "create", "--config", config, "--name", "More.Test", "--name", "10.1.0.0/16", "--certificate", "b", "--key", "k"
    )
    assert (more.exit_code, more.stderr) == (0, "")
    assert permitted("b") == {"docker.io", "registry-1.docker.io", "reg.test", "local", "more.test", "10.1.0.0/16"}


def test_limits_to_names() -> None:
    """In lower case, each once."""
    assert ca("create", "--name", "a.test", "--name", "A.test", "--name", "b.test").exit_code == 0
    assert permitted() == {"a.test", "b.test"}


def test_an_authority_for_every_name_is_told_of() -> None:
    """On standard error, with what to do about it."""
    result = ca("create")
    assert (result.exit_code, result.stderr) == (0, ANY_NAME)
    with pytest.raises(x509.ExtensionNotFound):
        permitted()


@pytest.mark.parametrize("name", ["", "reg.test:5000", "reg.test.", "https://reg.test", "10.0.0.1/8", "a b"])
def test_names_that_limit_nothing_or_everything(name: str) -> None:
    """An empty one would permit every name, and a port or a final dot none: they are refused, or put right."""
    result = ca("create", "--name", name)
    assert result.exit_code != 0 or permitted() == {"reg.test"}


@pytest.mark.parametrize("name", ["*.reg.test", "bücher.test"])
def test_names_that_cannot_be_signed_for(folder: Path, name: str) -> None:
    """One line says so, and nothing is made."""
    result = ca("create", "--name", name)
    assert result.exit_code == 2
    assert f"{name!r} is no host: write registry.example" in " ".join(result.stderr.split())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("days", [1, 3650, 36500])
def test_how_long_it_lives(days: int) -> None:
    """As many days as are asked for, from now; ten years without."""
    began = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    assert ca("create", *(["--days", days] if days != 3650 else [])).exit_code == 0
    left = certificate().not_valid_after_utc - began - datetime.timedelta(days=days)
    assert datetime.timedelta(0) <= left < datetime.timedelta(minutes=1)


@pytest.mark.parametrize("days", ["0", "-1", "36501", "many"])
def test_lives_that_are_none(folder: Path, days: str) -> None:
    """Are usage errors."""
    assert ca("create", "--days", days).exit_code == 2
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("command", ["create", "trust"])
def test_configurations_that_cannot_be_used(folder: Path, command: str) -> None:
    """Exit 2 with what is wrong, and nothing is made."""
    Path("ca.crt").write_text("any") if command == "trust" else None
    result = ca(command, "--config", "none.yaml")
    assert result.exit_code == 2
    assert "No such file or directory" in result.stderr
    assert not Path("ca.key").exists()


def trust(*arguments: object) -> list[str]:
    """The lines for nodes, which a shell can read."""
    Path("ca.crt").write_text("any")
    result = ca("trust", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    readable(result.stdout)
    return result.stdout.splitlines()


def readable(text: str) -> None:
    """A shell must be able to read all commands, and an address of a hosts file and prose are none."""
    lines = text.splitlines()
    assert lines[0].startswith("Copy ")
    checked = subprocess.run(["sh", "-n"], input="\n".join(lines[1:]), capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def section(lines: list[str], title: str) -> list[str]:
    """The lines between a comment that begins like this and the next empty one."""
    (begin,) = (number for number, line in enumerate(lines) if line.startswith(f"# {title}"))
    end = lines.index("", begin) if "" in lines[begin:] else len(lines)
    return lines[begin + 1 : end]


def written(line: str, tmp_path: Path) -> str:
    """What a command that prints into a file of /etc writes there."""
    assert "> /etc/" in line
    out = tmp_path / "written"
    command = line.partition("> /etc/")[0]
    subprocess.run(["sh", "-c", f'{command} > "$0"', str(out)], check=True)
    return out.read_text()


def test_trust_for_everything(config: Path) -> None:
    """Into the system's store, as each family of distributions has it, and what has read the old one starts again."""
    lines = trust("--config", config)
    debian, rhel = section(lines, "Everything on a Debian"), section(lines, "Everything on a RHEL")
    assert debian[:2] == [
        "install -m 0644 ca.crt /usr/local/share/ca-certificates/pullthrough.crt", "update-ca-certificates",
    ]  # fmt: skip
    assert rhel[:2] == ["install -m 0644 ca.crt /etc/pki/ca-trust/source/anchors/pullthrough.crt", "update-ca-trust"]
    for found in (debian, rhel):
        assert found[2].startswith("systemctl try-restart containerd docker")
    assert lines[-1] == "# How nodes come to the proxy: say --address for a hosts file, --proxy for HTTPS_PROXY"


def test_trust_for_containerd(config: Path, tmp_path: Path) -> None:
    """A hosts.toml for each registry, with the host of Docker Hub, whose name is another one."""
    lines = section(trust("--config", config), "containerd alone")
    found = {}
    for installed, printed in zip(lines[::2], lines[1::2], strict=True):
        *command, ca_file = installed.split()
        assert command == ["install", "-D", "-m", "0644", "ca.crt"]
        made = tomllib.loads(written(printed, tmp_path))
        assert made["ca"] == ca_file
        assert printed.endswith(f"> {Path(ca_file).with_name('hosts.toml')}")
        found[Path(ca_file).parent.as_posix()] = made["server"]
    assert found == {
        "/etc/containerd/certs.d/docker.io": "https://registry-1.docker.io",
        "/etc/containerd/certs.d/reg.test:5000": "https://reg.test:5000",
    }


@pytest.mark.parametrize("given", [False, True])
def test_docker_hub_without_an_alias(tmp_path: Path, given: bool) -> None:
    """Its host is registry-1.docker.io all the same, for containerd and in hosts files."""
    file = tmp_path / "plain.yaml"
    file.write_text("upstreams: {docker.io: {url: 'https://registry-1.docker.io'}}")
    lines = trust("--address", "10.0.0.5", *(["--config", file] if given else []))
    printed = section(lines, "containerd alone")[1]
    assert tomllib.loads(written(printed, tmp_path))["server"] == "https://registry-1.docker.io"
    assert "registry-1.docker.io" in section(lines, "/etc/hosts")[0].split()


def test_trust_for_docker_and_podman(config: Path) -> None:
    """By the names that images have there; Docker trusts the system's store alone for Docker Hub, which is said."""
    lines = trust("--config", config)
    docker = section(lines, "Docker alone")
    assert [line.split()[-1] for line in docker if line.startswith("install ")] == [
        f"/etc/docker/certs.d/{name}/ca.crt" for name in ("reg.test:5000", "local", "reg.test:5001")
    ]
    assert docker[0].startswith("# Docker Hub's authority is looked for among the system's only")
    podman = section(lines, "podman, buildah, skopeo and CRI-O alone")
    assert podman == [
        f"install -D -m 0644 ca.crt /etc/containers/certs.d/{name}/ca.crt" for name in ("docker.io", "reg.test:5000")
    ]


def test_a_line_for_hosts_files(config: Path) -> None:
    """All names that clients ask for at port 443, each once."""
    lines = trust("--config", config, "--address", "10.0.0.5")
    assert section(lines, "/etc/hosts") == ["10.0.0.5 docker.io registry-1.docker.io local"]
    assert not any("HTTPS_PROXY" in line for line in lines)


def test_lines_for_https_proxy(config: Path, tmp_path: Path) -> None:
    """For containerd and for programs; the proxy itself, loopback and what is inside are reached without it."""
    lines = trust("--config", config, "--proxy", "http://proxy.test:3128")
    made = section(lines, "containerd, or Docker")
    assert made[0] == "mkdir -p /etc/systemd/system/containerd.service.d"
    head, https, none = written(f"{made[1].removesuffix(chr(92))}{made[2]}", tmp_path).splitlines()
    assert made[2].strip() == "> /etc/systemd/system/containerd.service.d/pullthrough.conf"
    assert (head, https) == ("[Service]", 'Environment="HTTPS_PROXY=http://proxy.test:3128"')
    (shell,) = section(lines, "podman, buildah, skopeo, CI jobs")
    exported = dict(word.split("=", 1) for word in shlex.split(shell)[1:])
    assert exported["HTTPS_PROXY"] == "http://proxy.test:3128"
    assert none == f'Environment="NO_PROXY={exported["NO_PROXY"]}"'
    inside = {"localhost", "127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "proxy.test"}
    assert inside <= set(exported["NO_PROXY"].split(","))
    assert not any("hosts file" in line or "/etc/hosts" in line for line in lines)


def test_a_proxy_with_a_password(config: Path, tmp_path: Path) -> None:
    """Its percent signs reach the unit as such; systemd wants them twice."""
    lines = trust("--config", config, "--proxy", "http://me:p%40s@proxy.test:3128")
    made = section(lines, "containerd, or Docker")
    text = written(f"{made[1].removesuffix(chr(92))}{made[2]}", tmp_path)
    assert '"HTTPS_PROXY=http://me:p%%40s@proxy.test:3128"\n' in text


@pytest.mark.parametrize("name", ["my ca.crt", "it's.crt", "$(id).crt"])
def test_files_with_odd_names(name: str) -> None:
    """Can be copied into a shell as they stand there."""
    Path(name).write_text("any")
    result = ca("trust", "--certificate", name)
    readable(result.stdout)
    install = [line for line in result.stdout.splitlines() if line.startswith("install ")]
    assert install
    for line in install:
        assert name in shlex.split(line)
        assert "$(" not in line or f"'{name}'" in line


def test_trust_without_a_certificate() -> None:
    """Says how one is made; a folder is a usage error."""
    assert refused("trust") == "ca.crt is not there: `pullthrough ca create` makes one"
    Path("ca.crt").mkdir()
    assert ca("trust").exit_code == 2


def test_the_key_is_for_no_node(config: Path) -> None:
    """What nodes are told to install is the certificate, and nothing of the key is read."""
    assert ca("create", "--config", config).exit_code == 0
    result = ca("trust", "--config", config, "--address", "10.0.0.5", "--proxy", "http://p:1")
    assert result.exit_code == 0
    readable(result.stdout)
    assert "ca.key" not in result.stdout
    key = serialization.load_pem_private_key(Path("ca.key").read_bytes(), None)
    assert key.public_key() == certificate().public_key()
