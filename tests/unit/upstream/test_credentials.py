"""The proxy's own credentials: password files, docker's config.json, credential helpers."""

import asyncio
import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.settings import CredentialSettings, UpstreamSettings
from proxy.upstream.credentials import Credential, CredentialSource, CredentialsUnavailable, credential_source
from tests.fakes.clock import ManualClock

AUTH = base64.b64encode(b"me:pass:word").decode()
# Half of a character, as JSON's escapes can write it.
HALF = "gehe\ud800im"
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


async def got(source: CredentialSource) -> Credential:
    """What it has, which is something."""
    credential = await source.get("team/app")
    assert credential is not None
    return credential


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
    assert await source.get("team/app") == Credential("me", "first")
    file.write_text("second")
    assert await source.get("team/app") == Credential("me", "second")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
async def test_a_password_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    """Missing, or no text: unavailable, with the file's name and nothing of its content."""
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    source = CredentialSource(CredentialSettings(username="me", password_file=file), ["reg.test"])
    with pytest.raises(CredentialsUnavailable, match="password cannot be read"):
        await source.get("team/app")


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
    assert await from_config(tmp_path, {"auths": {"reg.test": entry}}).get("team/app") == wanted


@pytest.mark.parametrize(
    "key", ["reg.test", "https://reg.test", "http://reg.test", "https://reg.test/v1/", "https://reg.test/v2/"]
)
async def test_the_keys_that_docker_has_written_over_the_years(tmp_path: Path, key: str) -> None:
    """With and without scheme and API path."""
    assert (await got(from_config(tmp_path, {"auths": {key: {"auth": AUTH}}}))).username == "me"


async def test_docker_hub_stands_under_its_old_address(tmp_path: Path) -> None:
    """`docker login` writes `https://index.docker.io/v1/`, which comes before docker.io."""
    auths = {"docker.io": {"auth": "eDp5"}, "https://index.docker.io/v1/": {"auth": AUTH}}
    assert (await got(from_config(tmp_path, {"auths": auths}, "docker.io"))).username == "me"
    plain = from_config(tmp_path, {"auths": {"docker.io": {"auth": AUTH}}}, "docker.io")
    assert (await got(plain)).username == "me"


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
        await from_config(tmp_path, config).get("team/app")
    assert AUTH not in str(caught.value)


async def test_a_helper_is_asked_for_the_registry(tmp_path: Path, helper: MakeHelper) -> None:
    """`docker-credential-NAME get`, the name on its standard input; `<token>` marks an identity token."""
    helper("good", 'echo \'{"ServerURL":"reg.test","Username":"me","Secret":"pw"}\'')
    helper("token", 'echo \'{"Username":"<token>","Secret":"t"}\'')
    assert await from_helper("good").get("team/app") == Credential("me", "pw")
    assert asked(tmp_path, "good") == ["get reg.test"]
    assert (await got(from_helper("token"))).identity_token


async def test_a_helpers_answer_is_kept_until_it_is_forgotten(tmp_path: Path, helper: MakeHelper) -> None:
    """A process costs; a refused credential is asked for again, but not at once: upstreams can refuse a great deal."""
    helper("good", 'echo \'{"Username":"me","Secret":"pw"}\'')
    clock = ManualClock()
    source = CredentialSource(CredentialSettings(helper="good"), ["reg.test"], clock)
    for seconds, times in ((0, 1), (299, 1), (301, 2), (0, 2)):
        clock.advance(seconds)
        await source.get("team/app")
        assert len(asked(tmp_path, "good")) == times
    for seconds, times in ((9, 2), (1, 3)):
        clock.advance(seconds)
        source.forget("team/app")
        await source.get("team/app")
        assert len(asked(tmp_path, "good")) == times


async def test_a_helper_that_does_not_know_is_asked_by_every_name(tmp_path: Path, helper: MakeHelper) -> None:
    """`credentials not found` comes on standard output with exit code 1; then nothing is had."""
    helper("empty", 'echo "credentials not found in native keychain"; exit 1')
    with pytest.raises(CredentialsUnavailable, match="nothing for this registry"):
        await from_helper("empty", "docker.io", "index.docker.io").get("team/app")
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
        await from_helper("bad").get("team/app")
    assert "docker-credential-bad" in str(caught.value)
    assert "geheim" not in str(caught.value)


async def test_a_helper_that_is_not_there_or_cannot_run(helper: MakeHelper, tmp_path: Path) -> None:
    """No such program, or no program at all."""
    helper("text", "")
    (tmp_path / "bin" / "docker-credential-text").write_text("no program")
    for name in ("missing", "text"):
        with pytest.raises(CredentialsUnavailable, match="cannot be run"):
            await from_helper(name).get("team/app")


async def test_a_helper_that_hangs_is_ended(helper: MakeHelper, tmp_path: Path) -> None:
    """After its time, and its process with it."""
    helper("slow", f"echo $$ > {tmp_path / 'pid'}; exec sleep 60")
    source = CredentialSource(CredentialSettings(helper="slow", timeout="200ms"), ["reg.test"])
    async with asyncio.timeout(10):
        with pytest.raises(CredentialsUnavailable, match="in time"):
            await source.get("team/app")
    if (tmp_path / "pid").exists():  # unless it was ended before it had begun
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_registrys_own_helper_comes_first_and_the_store_last(tmp_path: Path, helper: MakeHelper) -> None:
    """credHelpers, then auths, then credsStore."""
    helper("mine", 'echo \'{"Username":"mine","Secret":"pw"}\'')
    helper("store", 'echo \'{"Username":"store","Secret":"pw"}\'')
    config = {"credHelpers": {"reg.test": "mine"}, "credsStore": "store", "auths": {"reg.test": {"auth": AUTH}}}
    assert (await got(from_config(tmp_path, config))).username == "mine"
    config |= {"credHelpers": {"other.test": "mine"}}
    assert (await got(from_config(tmp_path, config))).username == "me"
    # `docker login` with a store leaves an empty entry behind.
    config = {"credsStore": "store", "auths": {"reg.test": {}}}
    assert (await got(from_config(tmp_path, config))).username == "store"


async def test_a_helper_for_an_alias_comes_after_what_the_host_itself_has(tmp_path: Path, helper: MakeHelper) -> None:
    """A mirror of Docker Hub that has a login of its own is not given Docker Hub's."""
    helper("hub", 'echo \'{"Username":"hub","Secret":"pw"}\'')
    config = {"credHelpers": {"docker.io": "hub"}, "auths": {"mirror.test": {"auth": AUTH}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = CredentialSettings(docker_config=tmp_path / "config.json")
    assert (await got(CredentialSource(settings, ["mirror.test", "docker.io"]))).username == "me"
    assert (await got(CredentialSource(settings, ["docker.io", "mirror.test"]))).username == "hub"


def test_the_identity_outlives_the_secret(tmp_path: Path) -> None:
    """It tells one credential from another, and does not change when a secret is rotated."""
    one, other = from_helper("one"), from_helper("other")
    assert one.identity == from_helper("one").identity != other.identity
    assert from_config(tmp_path, {}).identity == from_config(tmp_path, {"auths": {}}).identity


@pytest.mark.parametrize("config", [{"auths": {"reg.test": {"auth": "é"}}}, {"credsStore": "a\0b"}, "[" * 5000])
async def test_odd_configs_are_unavailable_too(tmp_path: Path, config: object) -> None:
    """Whatever is in the file, only CredentialsUnavailable comes out."""
    with pytest.raises(CredentialsUnavailable):
        await from_config(tmp_path, config).get("team/app")


@pytest.mark.parametrize(
    "config",
    [
        {"auths": {"reg.test": {"identitytoken": HALF}}},
        {"auths": {"reg.test": {"username": "me", "password": HALF}}},
        {"auths": {"reg.test": {"username": HALF, "password": "pw"}}},
        {"auths": {"reg.test": {"auth": HALF}}},
        {"credHelpers": {"reg.test": HALF}},
        {"credsStore": HALF},
    ],
)
async def test_half_a_character_is_no_secret(tmp_path: Path, config: object) -> None:
    """JSON can hold it and nobody can send it: it is as good as absent, and not repeated."""
    with pytest.raises(CredentialsUnavailable, match=r"has nothing for reg\.test") as caught:
        await from_config(tmp_path, config).get("team/app")
    assert HALF not in str(caught.value)


async def test_half_a_character_hides_nothing_behind_it(tmp_path: Path) -> None:
    """What else the entry has, counts."""
    entry = {"identitytoken": HALF, "username": "me", "password": HALF, "auth": AUTH}
    assert await from_config(tmp_path, {"auths": {"reg.test": entry}}).get("team/app") == Credential("me", "pass:word")


@pytest.mark.parametrize(
    "config",
    [
        {"credHelpers": {"reg.test": ""}, "auths": {"reg.test": {"auth": AUTH}}},
        {"auths": {"reg.test": {"auth": None}, "https://reg.test": {"auth": AUTH}}},
    ],
)
async def test_what_is_empty_or_null_is_as_good_as_absent(tmp_path: Path, config: object) -> None:
    """Docker's own tools leave empty strings and nulls behind; the next place counts."""
    assert (await got(from_config(tmp_path, config))).username == "me"


async def test_an_empty_store_is_none(tmp_path: Path) -> None:
    """The message is then that the file has nothing, not that a program is missing."""
    with pytest.raises(CredentialsUnavailable, match=r"has nothing for reg\.test"):
        await from_config(tmp_path, {"credsStore": ""}).get("team/app")


@pytest.mark.parametrize(
    "auths", [{"reg.test": {"auth": AUTH[:8] + "\n" + AUTH[8:] + "\n"}}, {"https://reg.test/": {"auth": AUTH}}]
)
async def test_what_docker_itself_accepts(tmp_path: Path, auths: dict[str, object]) -> None:
    """`base64` wraps its lines, and `docker login https://reg.test/` keeps the slash."""
    assert (await got(from_config(tmp_path, {"auths": auths}))).username == "me"


@pytest.mark.parametrize(
    "answer",
    [
        '{"Username":null,"Secret":null}', '{"Username":"","Secret":""}', '{"Username":1,"Secret":[]}',
        json.dumps({"Username": "me", "Secret": HALF}), json.dumps({"Username": HALF, "Secret": "pw"}),
    ],
)  # fmt: skip
async def test_a_helper_without_an_answer_has_none(helper: MakeHelper, answer: str) -> None:
    """Nothing is sent rather than nonsense."""
    helper("odd", f"echo '{answer}'")
    with pytest.raises(CredentialsUnavailable):
        await from_helper("odd").get("team/app")


# What changes.


def mounted(folder: Path, version: int, **files: str) -> None:
    """As kubelet brings a secret: the files in a folder of their own, to which the link `..data` is swapped."""
    (folder / f"..{version}").mkdir(parents=True)
    for name, content in files.items():
        (folder / f"..{version}" / name).write_text(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..next").symlink_to(f"..{version}")
    os.replace(folder / "..next", folder / "..data")


async def test_a_mounted_secret_that_is_swapped(tmp_path: Path) -> None:
    """The same path leads to another file of the same length and age: it is read again, once."""
    mounted(tmp_path / "secret", 1, password="one")
    file = tmp_path / "secret" / "password"
    source = CredentialSource(CredentialSettings(username="me", password_file=file), ["reg.test"])
    assert await source.get("team/app") == await source.current("team/app") == Credential("me", "one")
    mounted(tmp_path / "secret", 2, password="two")
    times = (tmp_path / "secret" / "..1" / "password").stat()
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert await source.current("team/app") == await source.get("team/app") == Credential("me", "two")


async def test_a_file_that_did_not_change_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at it costs less."""
    (tmp_path / "password").write_text("one")
    source = CredentialSource(
        CredentialSettings(username="me", password_file=tmp_path / "password"), ["reg.test"]
    )  # fmt: skip
    await source.get("team/app")
    monkeypatch.setattr("proxy.upstream.files._read", None)
    assert await source.get("other/app") == Credential("me", "one")


def to_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


BROKEN: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda file: file.write_text("  \n"),
    "half": lambda file: file.write_text('{"auths": {"reg.te'),
    "binary": lambda file: file.write_bytes(b"\xff"),
    "a folder": to_folder,
}


@pytest.mark.parametrize("way", ["password", "config"])
@pytest.mark.parametrize("broken", [name for name in BROKEN if name != "half"])
async def test_what_is_broken_takes_nothing_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str, broken: str
) -> None:
    """The credential from before goes on, one line says so; what is good again counts at once."""
    file, clock = tmp_path / "file", ManualClock()
    good = json.dumps({"auths": {"reg.test": {"auth": AUTH}}}) if way == "config" else "pass:word"
    settings = CredentialSettings(docker_config=file) if way == "config" else None
    file.write_text(good)
    source = CredentialSource(settings or CredentialSettings(username="me", password_file=file), ["reg.test"], clock)
    assert await source.get("team/app") == Credential("me", "pass:word")
    BROKEN[broken](file)
    for _ in range(5):
        assert await source.get("team/app") == await source.current("team/app") == Credential("me", "pass:word")
        clock.advance(7)
    (line,) = caplog.messages
    assert line.startswith(f"reg.test: {file} ")
    assert line.endswith("; going on with the credential from before")
    assert AUTH not in line
    if file.is_dir():
        file.rmdir()
    file.write_text(good.replace("pass:word", "another").replace(AUTH, base64.b64encode(b"me:another").decode()))
    assert await source.get("team/app") == Credential("me", "another")


async def test_a_config_that_is_half_written(tmp_path: Path) -> None:
    """Its writer has not finished: the one from before counts."""
    source = from_config(tmp_path, {"auths": {"reg.test": {"auth": AUTH}}})
    before = await source.get("team/app")
    BROKEN["half"](tmp_path / "config.json")
    assert await source.get("team/app") == before


async def test_what_was_never_there_is_found_as_soon_as_it_is(tmp_path: Path) -> None:
    """A secret that is mounted late."""
    file = tmp_path / "password"
    source = CredentialSource(CredentialSettings(username="me", password_file=file), ["reg.test"], ManualClock())
    for _ in range(2):
        with pytest.raises(CredentialsUnavailable):
            await source.get("team/app")
    file.write_text("pw")
    assert await source.get("team/app") == Credential("me", "pw")


async def test_a_refused_file_is_read_whatever_it_looks_like(tmp_path: Path) -> None:
    """Another content of the same length in the same tick of the clock cannot be seen from outside."""
    file = tmp_path / "password"
    file.write_text("one")
    source = CredentialSource(CredentialSettings(username="me", password_file=file), ["reg.test"])
    assert await source.renewed("team/app", Credential("me", "one")) is None
    look = source._looks[""]
    file.write_text("two")
    look.mark = await source._place.mark()
    assert await source.get("team/app") == Credential("me", "one")
    assert await source.renewed("team/app", Credential("me", "one")) == Credential("me", "two")
    assert await source.renewed("team/app", Credential("me", "one")) == Credential("me", "two")


async def test_a_helper_that_fails_takes_nothing_away(
    tmp_path: Path, helper: MakeHelper, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is it run for every request."""
    helper("shaky", 'echo \'{"Username":"me","Secret":"geheim"}\'')
    clock = ManualClock()
    source = CredentialSource(CredentialSettings(helper="shaky"), ["reg.test"], clock)
    await source.get("team/app")
    helper("shaky", "echo geheim; exit 1")
    clock.advance(301)
    for _ in range(3):
        assert await source.get("team/app") == Credential("me", "geheim")
    assert len(asked(tmp_path, "shaky")) == 2
    assert caplog.messages == [
        "reg.test: docker-credential-shaky failed with exit code 1; going on with the credential from before"
    ]
    clock.advance(11)
    await source.get("team/app")
    assert len(asked(tmp_path, "shaky")) == 3
    assert len(caplog.messages) == 1


async def test_a_helper_that_never_answered_is_not_run_for_everybody(tmp_path: Path, helper: MakeHelper) -> None:
    """Those who wait share its failure."""
    helper("bad", "exit 1")
    source = from_helper("bad")
    results = await asyncio.gather(*(source.get("team/app") for _ in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {CredentialsUnavailable}
    assert len(asked(tmp_path, "bad")) == 1


async def test_those_who_wait_share_a_helpers_answer(tmp_path: Path, helper: MakeHelper) -> None:
    """One process for all of them."""
    helper("good", 'echo \'{"Username":"me","Secret":"pw"}\'')
    source = from_helper("good")
    assert set(await asyncio.gather(*(source.get(f"team/{n}") for n in range(20)))) == {Credential("me", "pw")}
    assert len(asked(tmp_path, "good")) == 1


async def test_a_configs_helper_is_asked_again_when_the_config_changes(tmp_path: Path, helper: MakeHelper) -> None:
    """Its answer belongs to what the file says."""
    helper("one", 'echo \'{"Username":"one","Secret":"pw"}\'')
    helper("two", 'echo \'{"Username":"two","Secret":"pw"}\'')
    source = from_config(tmp_path, {"credsStore": "one"})
    assert await source.get("team/app") == await source.get("team/app") == Credential("one", "pw")
    assert len(asked(tmp_path, "one")) == 1
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "two", "auths": {}}))
    assert await source.get("team/app") == Credential("two", "pw")


async def test_a_file_larger_than_any_secret(tmp_path: Path) -> None:
    """A mistake in the configuration does not fill the memory."""
    file = tmp_path / "password"
    file.write_bytes(b"a" * (1024 * 1024 + 1))
    source = CredentialSource(CredentialSettings(username="me", password_file=file), ["reg.test"])
    with pytest.raises(CredentialsUnavailable, match="larger than"):
        await source.get("team/app")


@pytest.mark.parametrize(("name", "aliases"), [("mirror.test", ["docker.io"]), ("docker.io", [])])
async def test_a_mirror_of_docker_hub_has_its_own_credential(tmp_path: Path, name: str, aliases: list[str]) -> None:
    """Where the file has one for the host that is asked, Docker Hub's does not go there."""
    file = tmp_path / "config.json"
    auths = {"https://index.docker.io/v1/": {"auth": AUTH}, "mirror.test": {"username": "mine", "password": "p"}}
    file.write_text(json.dumps({"auths": auths}))
    settings = UpstreamSettings.model_validate(
        {"url": "https://mirror.test", "aliases": aliases, "credentials": {"docker_config": str(file)}}
    )
    source = credential_source(name, settings, ManualClock())
    assert source is not None
    found = await source.get("library/nginx")
    assert found is not None
    assert found.username == "mine"
