"""The proxy's own credentials: password files, docker's config.json, credential helpers."""

import asyncio
import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.settings import CredentialSettings
from proxy.upstream import credentials
from proxy.upstream.credentials import Credential, CredentialSource, CredentialsUnavailable

AUTH = base64.b64encode(b"me:pass:word").decode()
MakeHelper = Callable[[str, str], None]


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeHelper:
    """Puts a shell script `docker-credential-NAME` in front of PATH; what it is asked goes to NAME.asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        file = folder / f"docker-credential-{name}"
        asked = tmp_path / f"{name}.asked"
        file.write_text(f'#!/bin/sh\nread -r name\necho "$1 $name" >> {asked}\n{script}\n')
        file.chmod(0o755)

    return make


def asked(tmp_path: Path, name: str) -> list[str]:
    file = tmp_path / f"{name}.asked"
    return file.read_text().splitlines() if file.exists() else []


def from_config(tmp_path: Path, config: object, *names: str) -> CredentialSource:
    file = tmp_path / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return CredentialSource(CredentialSettings(docker_config=file), names or ("reg.test",))


def from_helper(name: str, *names: str) -> CredentialSource:
    return CredentialSource(CredentialSettings(helper=name), names or ("reg.test",))


def test_basic_is_utf8_in_base64_and_the_secret_in_no_repr() -> None:
    """RFC 7617 with UTF-8; logs print representations."""
    credential = Credential("mé", "gehe:im")
    assert base64.b64decode(credential.basic.removeprefix("Basic ")).decode() == "mé:gehe:im"
    assert "geheim" not in repr(credential).replace(":", "")


async def test_a_password_file_is_read_each_time(tmp_path: Path) -> None:
    """A rotated secret is found without a restart; the line's end does not belong to it."""
    file = tmp_path / "password"
    source = CredentialSource(CredentialSettings(username="me", password_file=file), ["reg.test"])
    file.write_text("first\n")
    assert await source.get() == Credential("me", "first")
    file.write_text("second")
    assert await source.get() == Credential("me", "second")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
async def test_a_password_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    """Missing, or no text: unavailable, with the file's name and nothing of its content."""
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    source = CredentialSource(CredentialSettings(username="me", password_file=file), ["reg.test"])
    with pytest.raises(CredentialsUnavailable, match="password cannot be read"):
        await source.get()


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"auth": AUTH}, Credential("me", "pass:word")),
        ({"username": "me", "password": "pw"}, Credential("me", "pw")),
        ({"username": "me", "password": "pw", "auth": AUTH}, Credential("me", "pw")),
        ({"username": "me", "auth": AUTH}, Credential("me", "pass:word")),
        ({"identitytoken": "tok", "auth": AUTH}, Credential("<token>", "tok", identity_token=True)),
        ({"identitytoken": "", "auth": AUTH}, Credential("me", "pass:word")),
        ({"auth": base64.b64encode(b"me:pw\0\0").decode()}, Credential("me", "pw")),
        ({"auth": base64.b64encode("mé:ü".encode()).decode()}, Credential("mé", "ü")),
        ({"auth": AUTH, "email": "x@y"}, Credential("me", "pass:word")),
    ],
)
async def test_entries_of_auths(tmp_path: Path, entry: dict[str, str], wanted: Credential) -> None:
    """`auth` in base64, both parts in the open, or an identity token, which wins."""
    assert await from_config(tmp_path, {"auths": {"reg.test": entry}}).get() == wanted


@pytest.mark.parametrize(
    "key", ["reg.test", "https://reg.test", "http://reg.test", "https://reg.test/v1/", "https://reg.test/v2/"]
)
async def test_the_keys_that_docker_has_written_over_the_years(tmp_path: Path, key: str) -> None:
    """With and without scheme and API path."""
    assert (await from_config(tmp_path, {"auths": {key: {"auth": AUTH}}}).get()).username == "me"


async def test_docker_hub_stands_under_its_old_address(tmp_path: Path) -> None:
    """`docker login` writes `https://index.docker.io/v1/`, which comes before docker.io."""
    auths = {"docker.io": {"auth": "eDp5"}, "https://index.docker.io/v1/": {"auth": AUTH}}
    assert (await from_config(tmp_path, {"auths": auths}, "docker.io").get()).username == "me"
    assert (await from_config(tmp_path, {"auths": {"docker.io": {"auth": AUTH}}}, "docker.io").get()).username == "me"


@pytest.mark.parametrize(
    "config",
    [
        "", "nonsense", "[]", "5", "null", {}, {"auths": []}, {"auths": {"other.test": {"auth": AUTH}}},
        {"auths": {"reg.test": {}}}, {"auths": {"reg.test": "x"}}, {"auths": {"reg.test": {"auth": ""}}},
        {"auths": {"reg.test": {"auth": "!!!"}}}, {"auths": {"reg.test": {"auth": "bm9jb2xvbg=="}}},
        {"auths": {"reg.test": {"auth": "/////w=="}}}, {"credHelpers": [], "credsStore": 5},
    ],
)  # fmt: skip
async def test_a_config_that_has_nothing_usable(tmp_path: Path, config: object) -> None:
    """No JSON, other shapes, other registries, no base64, no colon: unavailable, and nothing of it is repeated."""
    with pytest.raises(CredentialsUnavailable) as caught:
        await from_config(tmp_path, config).get()
    assert AUTH not in str(caught.value)


async def test_a_helper_is_asked_for_the_registry(tmp_path: Path, helper: MakeHelper) -> None:
    """`docker-credential-NAME get`, the name on its standard input; `<token>` marks an identity token."""
    helper("good", 'echo \'{"ServerURL":"reg.test","Username":"me","Secret":"pw"}\'')
    helper("token", 'echo \'{"Username":"<token>","Secret":"t"}\'')
    assert await from_helper("good").get() == Credential("me", "pw")
    assert asked(tmp_path, "good") == ["get reg.test"]
    assert (await from_helper("token").get()).identity_token


async def test_a_helpers_answer_is_kept_until_it_is_forgotten(tmp_path: Path, helper: MakeHelper) -> None:
    """A process costs; a refused credential is asked for again."""
    helper("good", 'echo \'{"Username":"me","Secret":"pw"}\'')
    source = from_helper("good")
    await source.get()
    await source.get()
    assert len(asked(tmp_path, "good")) == 1
    source.forget()
    await source.get()
    assert len(asked(tmp_path, "good")) == 2


async def test_a_helper_that_does_not_know_is_asked_by_every_name(tmp_path: Path, helper: MakeHelper) -> None:
    """`credentials not found` comes on standard output with exit code 1; then nothing is had."""
    helper("empty", 'echo "credentials not found in native keychain"; exit 1')
    with pytest.raises(CredentialsUnavailable, match="nothing for this registry"):
        await from_helper("empty", "docker.io", "index.docker.io").get()
    assert asked(tmp_path, "empty") == ["get https://index.docker.io/v1/", "get docker.io", "get index.docker.io"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo geheim; exit 1", "failed with exit code 1"),
        ("echo geheim; exit 77", "failed with exit code 77"),
        ("kill -9 $$", "failed with exit code -9"),
        ("echo geheim", "answered something unexpected"),
        ("exit 0", "answered something unexpected"),
        ("echo '[\"geheim\"]'", "answered something unexpected"),
        ("echo '\"geheim\"'", "answered something unexpected"),
        ('echo \'{"Username":"geheim"}\'', "answered something unexpected"),
        ("printf '\\377\\376'", "answered something unexpected"),
    ],
)
async def test_a_helper_that_fails(helper: MakeHelper, script: str, message: str) -> None:
    """Unavailable with the helper's name, and nothing of what it said: that may be a secret."""
    helper("bad", script)
    with pytest.raises(CredentialsUnavailable, match=message) as caught:
        await from_helper("bad").get()
    assert "docker-credential-bad" in str(caught.value)
    assert "geheim" not in str(caught.value)


async def test_a_helper_that_is_not_there_or_cannot_run(helper: MakeHelper, tmp_path: Path) -> None:
    """No such program, or no program at all."""
    helper("text", "")
    (tmp_path / "bin" / "docker-credential-text").write_text("no program")
    for name in ("missing", "text"):
        with pytest.raises(CredentialsUnavailable, match="cannot be run"):
            await from_helper(name).get()


async def test_a_helper_that_hangs_is_ended(
    helper: MakeHelper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time, and its process with it."""
    monkeypatch.setattr(credentials, "_HELPER_TIMEOUT", 0.2)
    helper("slow", f"echo $$ > {tmp_path / 'pid'}; exec sleep 60")
    async with asyncio.timeout(10):
        with pytest.raises(CredentialsUnavailable, match="in time"):
            await from_helper("slow").get()
    if (tmp_path / "pid").exists():  # unless it was ended before it had begun
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_registrys_own_helper_comes_first_and_the_store_last(tmp_path: Path, helper: MakeHelper) -> None:
    """credHelpers, then auths, then credsStore."""
    helper("mine", 'echo \'{"Username":"mine","Secret":"pw"}\'')
    helper("store", 'echo \'{"Username":"store","Secret":"pw"}\'')
    config = {"credHelpers": {"reg.test": "mine"}, "credsStore": "store", "auths": {"reg.test": {"auth": AUTH}}}
    assert (await from_config(tmp_path, config).get()).username == "mine"
    assert (await from_config(tmp_path, config | {"credHelpers": {"other.test": "mine"}}).get()).username == "me"
    # `docker login` with a store leaves an empty entry behind.
    assert (await from_config(tmp_path, {"credsStore": "store", "auths": {"reg.test": {}}}).get()).username == "store"


def test_the_identity_outlives_the_secret(tmp_path: Path) -> None:
    """It tells one credential from another, and does not change when a secret is rotated."""
    one, other = from_helper("one"), from_helper("other")
    assert one.identity == from_helper("one").identity != other.identity
    assert from_config(tmp_path, {}).identity == from_config(tmp_path, {"auths": {}}).identity


@pytest.mark.parametrize("config", [{"auths": {"reg.test": {"auth": "é"}}}, {"credsStore": "a\0b"}, "[" * 5000])
async def test_odd_configs_are_unavailable_too(tmp_path: Path, config: object) -> None:
    """Whatever is in the file, only CredentialsUnavailable comes out."""
    with pytest.raises(CredentialsUnavailable):
        await from_config(tmp_path, config).get()


@pytest.mark.parametrize(
    "config",
    [
        {"credHelpers": {"reg.test": ""}, "auths": {"reg.test": {"auth": AUTH}}},
        {"auths": {"reg.test": {"auth": None}, "https://reg.test": {"auth": AUTH}}},
    ],
)
async def test_what_is_empty_or_null_is_as_good_as_absent(tmp_path: Path, config: object) -> None:
    """Docker's own tools leave empty strings and nulls behind; the next place counts."""
    assert (await from_config(tmp_path, config).get()).username == "me"


async def test_an_empty_store_is_none(tmp_path: Path) -> None:
    """The message is then that the file has nothing, not that a program is missing."""
    with pytest.raises(CredentialsUnavailable, match=r"has nothing for reg\.test"):
        await from_config(tmp_path, {"credsStore": ""}).get()


@pytest.mark.parametrize(
    "auths", [{"reg.test": {"auth": AUTH[:8] + "\n" + AUTH[8:] + "\n"}}, {"https://reg.test/": {"auth": AUTH}}]
)
async def test_what_docker_itself_accepts(tmp_path: Path, auths: dict[str, object]) -> None:
    """`base64` wraps its lines, and `docker login https://reg.test/` keeps the slash."""
    assert (await from_config(tmp_path, {"auths": auths}).get()).username == "me"


@pytest.mark.parametrize(
    "answer", ['{"Username":null,"Secret":null}', '{"Username":"","Secret":""}', '{"Username":1,"Secret":[]}']
)
async def test_a_helper_without_an_answer_has_none(helper: MakeHelper, answer: str) -> None:
    """Nothing is sent rather than nonsense."""
    helper("odd", f"echo '{answer}'")
    with pytest.raises(CredentialsUnavailable):
        await from_helper("odd").get()
