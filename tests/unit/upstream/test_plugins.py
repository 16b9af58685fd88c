"""Kubelet credential provider plugins: what they are asked, what of their answers counts, and for how long."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import CredentialSettings
from proxy.upstream.credentials import Credential, CredentialSource, CredentialsUnavailable
from tests.fakes.clock import ManualClock
from tests.fakes.plugin import FakePlugin

API = "credentialprovider.kubelet.k8s.io/v1"
ME = {"username": "me", "password": "geheim"}
# Half of a character, as JSON's escapes can write it.
HALF = "gehe\ud800im"
MakePlugin = Callable[..., FakePlugin]


@pytest.fixture
def plugin(tmp_path: Path) -> FakePlugin:
    """A plugin that knows one credential for all of reg.test."""
    fake = FakePlugin(tmp_path / "plugin")
    fake.answers({"reg.test": ME})
    return fake


def source(plugin: FakePlugin, clock: ManualClock | None = None, *names: str, **more: Any) -> CredentialSource:
    settings = CredentialSettings(plugin={"command": str(plugin.command)} | more)
    return CredentialSource(settings, names or ("reg.test",), clock or ManualClock())


async def test_what_a_plugin_is_asked(plugin: FakePlugin) -> None:
    """A CredentialProviderRequest with the image, without tag; its arguments and its environment."""
    made = source(plugin, None, args=["get", "--region=x"], env={"REGION": "here"})
    assert await made.get("team/app") == Credential("me", "geheim")
    assert plugin.asked == [{"kind": "CredentialProviderRequest", "apiVersion": API, "image": "reg.test/team/app"}]
    assert plugin.arguments == "get --region=x REGION=here"


@pytest.mark.parametrize(
    ("kind", "asked"),
    [("Image", ["reg.test/a", "reg.test/b"]), ("Registry", ["reg.test/a"]), ("Global", ["reg.test/a"])],
)
async def test_what_an_answer_is_for(plugin: FakePlugin, kind: str, asked: list[str]) -> None:
    """`cacheKeyType`: one image, or all there are here."""
    plugin.answers({"reg.test": ME}, kind)
    made = source(plugin)
    for repository in ("a", "b", "a", "b"):
        assert await made.get(repository) == Credential("me", "geheim")
    assert plugin.images == asked


@pytest.mark.parametrize(
    ("duration", "kept"),
    [
        ("12h0m0s", 43200), ("1h30m", 5400), ("1.5m", 90), ("90000ms", 90), (None, 60), ("1h1m1s", 3661),
        # As good as not kept: those who ask at the same time share it, and nobody can make it run all the time.
        ("0s", 10), ("0", 10), ("1ns", 10),
    ],
)  # fmt: skip
async def test_how_long_an_answer_is_kept(plugin: FakePlugin, duration: str | None, kept: float) -> None:
    """`cacheDuration`, as Go writes it; `default_cache_duration` where there is none."""
    plugin.answers({"reg.test": ME}, duration=duration)
    clock = ManualClock()
    made = source(plugin, clock, default_cache_duration="60s")
    await made.get("a")
    clock.advance(kept - 0.5)
    await made.get("a")
    assert len(plugin.asked) == 1
    clock.advance(0.5)
    await made.get("a")
    assert len(plugin.asked) == 2


async def test_the_most_precise_key_counts(plugin: FakePlugin) -> None:
    """Of several that mean an image; none that means another registry."""
    plugin.answers({"*.test": {"username": "star", "password": "x"}, "reg.test": ME,
                    "reg.test/team": {"username": "team", "password": "y"}, "evil.test": ME, "": ME})  # fmt: skip
    made = source(plugin)
    assert await made.get("team/app") == Credential("team", "y")
    assert await made.get("other/app") == Credential("me", "geheim")
    plugin.answers({"evil.test": ME, "": ME, "reg.test.evil": ME, "reg.test:443": ME})
    assert await source(plugin).get("team/app") is None


async def test_any_of_the_registrys_names_will_do(plugin: FakePlugin) -> None:
    """The plugin is asked by the first one that `match_images` means, and may answer for another."""
    plugin.answers({"123.dkr.ecr.eu-west-1.amazonaws.com": ME})
    names = ("ecr.internal", "123.dkr.ecr.eu-west-1.amazonaws.com")
    made = source(plugin, None, *names, match_images=["*.dkr.ecr.*.amazonaws.com"])
    assert await made.get("app") == Credential("me", "geheim")
    assert plugin.images == ["123.dkr.ecr.eu-west-1.amazonaws.com/app"]


async def test_images_that_are_not_its_own(plugin: FakePlugin) -> None:
    """It is not run for them: they are asked for as nobody."""
    made = source(plugin, None, match_images=["reg.test/team"])
    assert await made.get("other/app") is None
    assert plugin.asked == []
    assert await made.get("team/app") == Credential("me", "geheim")
    assert await made.get("other/app") is None
    assert len(plugin.asked) == 1


@pytest.mark.parametrize("kind", ["Registry", "Global"])
async def test_images_that_are_not_its_own_after_an_answer_for_all(plugin: FakePlugin, kind: str) -> None:
    """What it said of all there are here is for those that `match_images` means, however they are asked about."""
    plugin.answers({"reg.test": ME}, kind)
    made = source(plugin, None, match_images=["reg.test/team"])
    assert await made.get("team/app") == await made.current("team/app") == Credential("me", "geheim")
    assert await made.get("other/app") is None
    assert await made.current("other/app") is None
    assert await made.current("team/tool") == Credential("me", "geheim")
    assert plugin.images == ["reg.test/team/app"]


@pytest.mark.parametrize("auth", [None, {}, {"reg.test": None}, {"reg.test": {"username": "", "password": ""}}, []])
@pytest.mark.parametrize("kind", ["Image", "Registry"])
async def test_a_plugin_that_has_nothing(plugin: FakePlugin, auth: Any, kind: str) -> None:
    """`auth` is null: that is an answer, and kept."""
    plugin.answers(auth, kind)
    made = source(plugin)
    for _ in range(2):
        assert await made.get("a") is None
    assert len(plugin.asked) == 1


async def test_one_image_without_and_others_with(plugin: FakePlugin) -> None:
    """What is kept of one says nothing of another."""
    made = source(plugin)
    plugin.answers(None, "Image")
    assert await made.get("a") is None
    plugin.answers({"reg.test/b": ME}, "Image")
    assert await made.get("b") == Credential("me", "geheim")
    assert await made.get("a") is None


async def test_nothing_for_one_image_takes_nothing_from_the_others(plugin: FakePlugin) -> None:
    """However far an answer of nothing says that it reaches: what was had for all counts on for the others."""
    clock = ManualClock()
    made = source(plugin, clock)
    assert await made.get("a") == Credential("me", "geheim")
    clock.advance(301)
    plugin.answers({}, "Registry")
    assert await made.get("b") is None
    assert await made.current("a") == Credential("me", "geheim")
    plugin.answers({"reg.test": ME}, "Registry")
    assert await made.get("a") == await made.get("c") == Credential("me", "geheim")
    assert plugin.images == ["reg.test/a", "reg.test/b", "reg.test/a"]


@pytest.mark.parametrize(
    "login",
    [
        {"username": "me", "password": HALF}, {"username": HALF, "password": "geheim"},
        {"username": HALF, "password": HALF}, {"username": "me", "password": 5},
    ],
)  # fmt: skip
async def test_what_is_no_text_is_nothing_to_log_in_with(plugin: FakePlugin, login: dict[str, object]) -> None:
    """Half of a character, which JSON can hold and nobody can send, or a number: not even the other part is sent."""
    plugin.answers({"reg.test": ME, "reg.test/odd": login})
    made = source(plugin)
    assert await made.get("team/app") == Credential("me", "geheim")
    plugin.answers({"reg.test": login})
    assert await source(plugin).get("odd") is None


def response(**more: Any) -> str:
    answer = {"kind": "CredentialProviderResponse", "apiVersion": API, "cacheKeyType": "Registry", "auth": {"x": ME}}
    return json.dumps(answer | more)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("geheim", "answered something unexpected"),
        ("", "answered something unexpected"),
        ("[]", "answered something unexpected"),
        ("[" * 5000, "answered something unexpected"),
        (response(kind="CredentialProviderRequest"), "answered something unexpected"),
        (response(apiVersion="credentialprovider.kubelet.k8s.io/v1beta1"), f"does not speak {API}"),
        (response(apiVersion=None), f"does not speak {API}"),
        (response(cacheKeyType="Everything"), "without a cacheKeyType or cacheDuration"),
        (response(cacheKeyType=None), "without a cacheKeyType or cacheDuration"),
        (response(cacheKeyType=["Image"]), "without a cacheKeyType or cacheDuration"),
        (response(cacheDuration="a while"), "without a cacheKeyType or cacheDuration"),
        (response(cacheDuration=300), "without a cacheKeyType or cacheDuration"),
        (response(cacheDuration="-5m"), "without a cacheKeyType or cacheDuration"),
        # More than a float can hold: it would be kept for ever.
        (response(cacheDuration="9" * 400 + "h"), "without a cacheKeyType or cacheDuration"),
        (response(cacheKeyType=HALF), "without a cacheKeyType or cacheDuration"),
    ],
)
async def test_answers_that_do_not_count(plugin: FakePlugin, output: str, message: str) -> None:
    """What kubelet would not use. Nothing of them is repeated."""
    plugin.says(output)
    with pytest.raises(CredentialsUnavailable, match=message) as caught:
        await source(plugin).get("a")
    assert "the plugin plugin" in str(caught.value)
    assert "geheim" not in str(caught.value)


async def test_a_plugin_that_fails_says_nothing_of_its_secrets(plugin: FakePlugin) -> None:
    """Its exit code is told, its outputs are not."""
    plugin.says("geheim", exit_code=7)
    with pytest.raises(CredentialsUnavailable) as caught:
        await source(plugin).get("a")
    assert str(caught.value) == "the plugin plugin failed with exit code 7"


@pytest.mark.parametrize("kind", ["Image", "Registry"])
async def test_a_plugin_that_fails_takes_nothing_away(
    plugin: FakePlugin, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What it said before counts on, one line is logged, and it is asked again some seconds later."""
    clock = ManualClock()
    plugin.answers({"reg.test": ME}, kind, "1m")
    made = source(plugin, clock)
    await made.get("a")
    plugin.says("geheim", exit_code=1)
    clock.advance(61)
    for _ in range(3):
        assert await made.get("a") == await made.current("a") == Credential("me", "geheim")
        clock.advance(5)
    assert len(plugin.asked) == 3
    assert caplog.messages == [
        "reg.test: the plugin plugin failed with exit code 1; going on with the credential from before"
    ]
    clock.advance(11)
    plugin.answers({"reg.test": {"username": "me", "password": "neu"}}, kind)
    assert await made.get("a") == Credential("me", "neu")


@pytest.mark.parametrize("kind", ["Image", "Registry"])
async def test_one_run_for_all_who_wait(plugin: FakePlugin, kind: str) -> None:
    """However short what it says counts."""
    plugin.answers({"reg.test": ME}, kind, "0s")
    made = source(plugin)
    found = await asyncio.gather(*(made.get("a") for _ in range(20)))
    assert set(found) == {Credential("me", "geheim")}
    assert len(plugin.asked) == 1


async def test_a_refused_credential_is_asked_for_again_but_not_all_the_time(plugin: FakePlugin) -> None:
    """Once some seconds have passed since it was."""
    clock = ManualClock()
    made = source(plugin, clock)
    refused = await made.get("a")
    assert refused is not None
    plugin.answers({"reg.test": {"username": "me", "password": "neu"}})
    assert await made.renewed("a", refused) is None
    clock.advance(11)
    assert await made.renewed("a", refused) == Credential("me", "neu")
    assert len(plugin.asked) == 2


async def test_names_that_clients_choose_do_not_fill_the_memory(
    plugin: FakePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers for single images are kept for the latest ones."""
    monkeypatch.setattr("proxy.upstream.credentials._MOST_KEPT", 3)
    plugin.answers({"reg.test": ME}, "Image")
    made = source(plugin)
    for number in range(6):
        await made.get(f"app{number}")
    assert len(made._looks) == 3


async def test_what_it_knew_is_in_no_representation(plugin: FakePlugin) -> None:
    """Logs and debuggers print those."""
    made = source(plugin)
    await made.get("a")
    assert "geheim" not in repr(vars(made))


def test_the_identity_is_the_plugins_and_its_arguments(plugin: FakePlugin) -> None:
    """Another one is another principal."""
    assert source(plugin).identity != source(plugin, None, args=["other"]).identity
    assert source(plugin).identity == source(plugin, None, env={"A": "b"}).identity
