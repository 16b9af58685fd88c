"""Nothing dials what a client or a registry chose, but redirects and realms to where the upstream may lead."""

import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from proxy.policy import dial
from proxy.policy.dial import Zone
from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry, FakeStorage

IMAGE = make_image(5000, seed=70)
LAYER = IMAGE.blobs[1]
TAG = "/v2/team/app/manifests/v1"
BLOB = f"/v2/team/app/blobs/{digest_of(LAYER)}"
REFUSED = "pullthrough_upstream_refused_targets_total"
# Addresses of this machine that are taken for public ones, so that a public registry can be played.
PUBLIC, PUBLIC_TOO = "127.0.0.2", "127.0.0.3"

MakeSettings = Callable[..., Settings]


@pytest.fixture
async def public(monkeypatch: pytest.MonkeyPatch, registry: FakeRegistry) -> AsyncIterator[FakeRegistry]:
    """The registry, at an address that counts as public."""
    taken = tuple((Zone.PUBLIC, ipaddress.ip_network(f"{address}/32")) for address in (PUBLIC, PUBLIC_TOO))
    monkeypatch.setattr(dial, "_NETWORKS", taken + dial._NETWORKS)
    fake = FakeRegistry()
    await fake.start(PUBLIC)
    registry.url = fake.url
    fake.push("team/app", "v1", IMAGE)
    yield fake
    await fake.stop()


@pytest.fixture
async def trap() -> AsyncIterator[FakeStorage]:
    """What must never be reached: on loopback, and it has the blob."""
    fake = FakeStorage(blobs={digest_of(LAYER): LAYER})
    await fake.start()
    yield fake
    assert not fake.seen
    assert fake.connections == 0
    await fake.stop()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """A resolver: the answers for a name, one look-up after another, the last one again and again."""
    table: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def look_up(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host not in table:
            return real(host, port, *rest, **more)
        answers = table[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [entry for address in found for entry in real(address, port, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


def port_of(server: FakeStorage | FakeRegistry) -> str:
    return server.url.rpartition(":")[2]


def redirecting(registry: FakeRegistry, location: str, part: str = "/blobs/") -> None:
    def fault(request: web.BaseRequest) -> web.Response | None:
        return web.Response(status=307, headers={"Location": location}) if part in request.path else None

    registry.fault = fault


async def refused(proxy: Proxy, reason: str, path: str = BLOB) -> None:
    """The client gets 502, and each refusal is counted under its reason."""
    answer = await proxy.get(path)
    assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    assert await proxy.metric(f'{REFUSED}{{reason="{reason}",registry="registry.test"}}') > 0
    assert await proxy.metric(REFUSED) == await proxy.metric(f'{REFUSED}{{reason="{reason}"')


LITERALS = [
    ("127.0.0.1", "loopback"), ("[::1]", "loopback"), ("[::ffff:127.0.0.1]", "loopback"),
    ("[64:ff9b::7f00:1]", "loopback"), ("[2002:7f00:1::]", "loopback"), ("0.0.0.0", "unspecified"),
    ("[::]", "unspecified"), ("169.254.169.254", "link-local"), ("[fe80::1]", "link-local"),
    ("10.0.0.1", "private"), ("192.168.1.1", "private"), ("100.64.0.1", "private"), ("[fd00::1]", "private"),
    ("[fd00:ec2::254]", "metadata"), ("224.0.0.1", "multicast"), ("255.255.255.255", "reserved"),
    ("2130706433", "number"), ("0x7f000001", "number"), ("0177.0.0.1", "number"), ("127.1", "number"),
    ("127.0.0.1.", "number"),
]  # fmt: skip


@pytest.mark.parametrize(("host", "reason"), LITERALS)
async def test_a_redirect_to_an_address(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, host: str, reason: str
) -> None:
    """However it is spelt, a public registry's redirect to it is 502 and counted, and nothing is dialled."""
    redirecting(public, f"http://{host}:{port_of(trap)}/{digest_of(LAYER)}")
    async with running(settings()) as proxy:
        await refused(proxy, reason)


SPELLINGS = [
    "127。0。0。1", "127.0.0.１", "%31%32%37.0.0.1", "0x7f.1", "017700000001", "[::127.0.0.1]", "[::ffff:0:127.0.0.1]",
    "[64:ff9b:1::7f00:1]", "[fe80::1%25lo]", "[::1%25lo]", "localhost", "localhost.", "LOCALHOST", "127.0.0.1.nip.test",
    "[0:0:0:0:0:ffff:7f00:0001]", "0", "00.0.0.0", "127.0.0.1%00.test", "[2001:0:7f00:1::]", "[::ffff:7f00:1%251]",
    "127.0.0.1..", "\\127.0.0.1", "test\\@127.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS)
async def test_odd_spellings(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, names: dict[str, list[list[str]]], host: str
) -> None:
    """What some parser or resolver may take for loopback is 502 and counted, whatever it is counted as."""
    names |= {name: [["127.0.0.1"]] for name in ("127.0.0.1.nip.test", "localhost.")}
    redirecting(public, f"http://{host}:{port_of(trap)}/{digest_of(LAYER)}")
    async with running(settings()) as proxy:
        assert (await proxy.get(BLOB)).status == 502
        assert await proxy.metric(REFUSED) > 0


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1", "loopback"), ("::1", "loopback"), ("0.0.0.0", "unspecified"), ("169.254.169.254", "link-local")],
)
@pytest.mark.parametrize("more", [[], ["10.0.0.1"]])
async def test_a_redirect_to_a_name_that_resolves_to_it(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, names: dict[str, list[list[str]]],
    address: str, reason: str, more: list[str],
) -> None:  # fmt: skip
    """A name is what it resolves to, whichever of its addresses comes first."""
    names["storage.test"] = [[*more, address]]
    redirecting(public, f"http://storage.test:{port_of(trap)}/{digest_of(LAYER)}")
    async with running(settings()) as proxy:
        answer = await proxy.get(BLOB)
        assert answer.status == 502
        assert await proxy.metric(f'{REFUSED}{{reason="{reason}"') > 0
        assert (await proxy.metric(f'{REFUSED}{{reason="private"') > 0) == bool(more)


async def test_a_refused_address_beside_a_dead_one(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, names: dict[str, list[list[str]]]
) -> None:
    """It is counted, once for each time that it was looked at, whichever of the two the client's error comes from."""
    names["storage.test"] = [["127.0.0.1", PUBLIC_TOO]]  # nothing listens on the second
    redirecting(public, f"http://storage.test:{port_of(trap)}/{digest_of(LAYER)}")
    async with running(settings()) as proxy:
        await refused(proxy, "loopback")
        assert await proxy.metric(REFUSED) == public.count("GET", "/blobs/")


async def test_a_name_is_tried_at_its_good_addresses(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, names: dict[str, list[list[str]]]
) -> None:
    """Of several addresses the bad ones are passed over."""
    good = FakeStorage(blobs=trap.blobs)
    await good.start(PUBLIC_TOO, int(port_of(trap)))
    names["storage.test"] = [["127.0.0.1", PUBLIC_TOO]]
    redirecting(public, f"http://storage.test:{port_of(trap)}/{digest_of(LAYER)}")
    async with running(settings()) as proxy:
        assert (await proxy.get(BLOB)).body == LAYER
    await good.stop()


async def test_a_name_that_is_another_one_the_next_time(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, names: dict[str, list[list[str]]]
) -> None:
    """What was public when it was looked at first is loopback when it is connected to: that is what counts."""
    good = FakeStorage(blobs=trap.blobs)
    await good.start(PUBLIC_TOO, int(port_of(trap)))
    names["storage.test"] = [[PUBLIC_TOO], ["127.0.0.1"]]
    redirecting(public, f"http://storage.test:{port_of(trap)}/{digest_of(LAYER)}")
    async with running(settings()) as proxy:
        assert (await proxy.head(BLOB)).headers["Content-Length"] == str(len(LAYER))
        assert [seen.method for seen in good.seen] == ["HEAD"]
        await refused(proxy, "loopback")
    await good.stop()


async def test_a_registrys_own_name_that_turns_private(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, names: dict[str, list[list[str]]]
) -> None:
    """Whoever owns the name of a registry that was public does not get further by moving it to loopback."""
    moved = FakeRegistry(tags=public.tags, members=public.members, content=public.content)
    await moved.start("127.0.0.1", int(port_of(public)))
    names["registry.example"] = [[PUBLIC], ["127.0.0.1"]]
    redirecting(moved, f"{trap.url}/{digest_of(LAYER)}")
    async with running(settings({"url": f"http://registry.example:{port_of(public)}"})) as proxy:
        assert (await proxy.get(TAG)).status == 200
        await refused(proxy, "loopback")
    assert moved.count("GET", "/blobs/") > 0
    await moved.stop()


async def test_a_registrys_own_name_that_turns_to_a_metadata_service(
    settings: MakeSettings, public: FakeRegistry, names: dict[str, list[list[str]]]
) -> None:
    """No registry is there, so nothing is dialled; it is counted, and what is cached is served as in any outage."""
    names["registry.example"] = [[PUBLIC], ["169.254.169.254"]]
    upstream = {"url": f"http://registry.example:{port_of(public)}", "connect_timeout": "20s"}
    async with running(settings(upstream)) as proxy:
        assert (await proxy.get(TAG)).status == 200
        await public.stop()  # ends the connection that is kept
        await refused(proxy, "link-local")
        assert (await proxy.get(TAG)).body == IMAGE.manifest


@pytest.mark.parametrize("port", [22, 25, 6379])
async def test_a_port_trick(settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, port: int) -> None:
    """Other protocols' ports are refused, on the registry's own host too."""
    async with running(settings()) as proxy:
        redirecting(public, f"http://{PUBLIC}:{port}/")
        await refused(proxy, "port")


@pytest.mark.parametrize("user", ["registry.test@", "a:b@", "@", "a%40b@"])
async def test_a_user_name_that_looks_like_a_host(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, user: str
) -> None:
    """`http://registry.test@trap/` leads to the trap."""
    redirecting(public, f"http://{user}127.0.0.1:{port_of(trap)}/")
    async with running(settings()) as proxy:
        await refused(proxy, "url")


async def test_a_second_redirect(settings: MakeSettings, public: FakeRegistry, trap: FakeStorage) -> None:
    """Each hop is judged, not only the first."""
    hop = FakeRegistry()
    await hop.start(PUBLIC_TOO)
    redirecting(hop, f"{trap.url}/{digest_of(LAYER)}", "/")
    redirecting(public, f"{hop.url}/there")
    async with running(settings()) as proxy:
        await refused(proxy, "loopback")
    assert hop.seen
    await hop.stop()


async def test_a_manifests_redirect(settings: MakeSettings, public: FakeRegistry, trap: FakeStorage) -> None:
    """Manifests and lists go the same way."""
    redirecting(public, f"{trap.url}/x", "/v2/")
    async with running(settings()) as proxy:
        await refused(proxy, "loopback", TAG)
        await refused(proxy, "loopback", "/v2/team/app/tags/list")


async def test_a_client_is_not_sent_to_such_an_address(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage
) -> None:
    """metadata-only hands addresses out: those that are seen to be bad without a look-up are not."""
    redirecting(public, f"{trap.url}/x")
    async with running(settings(clusters=[{"name": "default", "mode": "metadata-only"}])) as proxy:
        await refused(proxy, "loopback")


async def test_what_another_host_leads_back_to_gets_no_authorization(
    settings: MakeSettings, registry: FakeRegistry, storage: FakeStorage
) -> None:
    """A storage host that redirects to the registry again is not given the registry's token on the way."""
    registry.private = {"team/app": {""}, "team/other": {""}}
    registry.push("team/other", "v1", IMAGE)
    registry.push("team/app", "v1", IMAGE)
    back = FakeRegistry()
    await back.start()
    redirecting(back, f"{registry.url}/v2/team/other/blobs/{digest_of(LAYER)}", "/")
    redirecting(registry, f"{back.url}/x", "/v2/team/app/blobs/")
    async with running(settings()) as proxy:
        await proxy.get(TAG)
        assert (await proxy.get(BLOB)).status != 200
    returned = [seen for seen in registry.seen if "team/other" in seen.path]
    assert returned
    assert all("Authorization" not in seen.headers for seen in returned)
    await back.stop()


# Token realms.


async def test_a_realm_on_another_port_of_the_registry(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage
) -> None:
    """The registry's host alone is not enough, and nothing is asked there."""
    public.private = {"team/app": {""}}
    public.realm = f"http://{PUBLIC}:{port_of(trap)}/token"
    async with running(settings()) as proxy:
        await refused(proxy, "realm", TAG)


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "[::1]", "0.0.0.0", "2130706433"])
async def test_a_realm_at_an_address(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, host: str
) -> None:
    """A realm that the registry chose is not asked."""
    public.private = {"team/app": {""}}
    public.realm = f"http://{host}:{port_of(trap)}/token"
    async with running(settings()) as proxy:
        await refused(proxy, "realm", TAG)


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1", "loopback"), ("::1", "loopback"), ("169.254.169.254", "link-local"), ("0.0.0.0", "unspecified")],
)
async def test_a_named_realm_that_resolves_to_it(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, names: dict[str, list[list[str]]],
    address: str, reason: str,
) -> None:  # fmt: skip
    """A realm in token_realms is trusted by its name, and dialled where the upstream may lead."""
    names["auth.test"] = [[address]]
    public.private = {"team/app": {""}}
    public.realm = f"http://auth.test:{port_of(trap)}/token"
    async with running(settings({"token_realms": [f"auth.test:{port_of(trap)}"]})) as proxy:
        await refused(proxy, reason, TAG)


@pytest.mark.parametrize("realm", ["{own}\\@{trap}", "{own}\t@{trap}", "http://{trap}#@{own}", "{own}@{trap}"])
async def test_a_realm_that_parsers_read_differently(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, realm: str
) -> None:
    """What looks like the registry to one parser and like the trap to another is neither's."""
    public.private = {"team/app": {""}}
    public.realm = realm.format(own=public.url, trap=trap.url.removeprefix("http://"))
    async with running(settings()) as proxy:
        assert (await proxy.get(TAG)).status in {401, 502}


# What a client chooses.


@pytest.mark.parametrize(
    "ns", ["127.0.0.1:{}", "localhost:{}", "169.254.169.254", "[::1]:{}", "0.0.0.0:{}", "2130706433", "trap.test:{}"]
)
async def test_ns_is_looked_up_and_never_dialled(
    proxy: Proxy, trap: FakeStorage, names: dict[str, list[list[str]]], ns: str
) -> None:
    """What is not configured is 404, whether it stands in `ns`, in the Host or in the path; nobody is asked for it."""
    names["trap.test"] = []  # a look-up would fail
    host = ns.format(port_of(trap))
    assert (await proxy.get(f"{TAG}?ns={host}")).code == "NAME_UNKNOWN"
    await proxy.get(TAG, Host=host)
    await proxy.get(f"/v2/{host.partition(':')[0].strip('[')}/team/app/manifests/v1")


# What the operator meant.


async def test_an_internal_registry_may_lead_to_its_neighbours(
    settings: MakeSettings, registry: FakeRegistry, storage: FakeStorage
) -> None:
    """One on loopback redirects to storage on loopback, but not to a metadata service."""
    registry.storage = storage
    registry.push("team/app", "v1", IMAGE)
    async with running(settings()) as proxy:
        assert (await proxy.get(BLOB)).body == LAYER
        redirecting(registry, "http://169.254.169.254/latest/meta-data/")
        registry.put("team/app", "application/octet-stream", b"other")
        await refused(proxy, "link-local", f"/v2/team/app/blobs/{digest_of(b'other')}")


async def test_networks_that_are_named_are_led_to(
    settings: MakeSettings, public: FakeRegistry, storage: FakeStorage
) -> None:
    """With `private_networks` a public registry may lead to a store that this network has at a private address."""
    public.storage = storage
    public.push("team/app", "v1", IMAGE)
    async with running(settings({"private_networks": ["127.0.0.1/32"]})) as proxy:
        assert (await proxy.get(BLOB)).body == LAYER


async def test_behind_a_proxy_what_is_seen_is_judged(settings: MakeSettings, public: FakeRegistry) -> None:
    """Literals are refused there too; names are the proxy's to judge."""
    redirecting(public, "http://169.254.169.254/x")
    async with running(settings({"url": "http://registry.invalid", "proxy": public.url})) as proxy:
        await refused(proxy, "link-local")
    assert {seen.headers["Host"] for seen in public.seen} == {"registry.invalid"}


async def test_a_refusal_is_one_clear_line(
    settings: MakeSettings, public: FakeRegistry, trap: FakeStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """Operators read which registry, which host and why; never the signature behind it."""
    redirecting(public, f"{trap.url}/x?X-Signature=geheim")
    async with running(settings()) as proxy:
        await proxy.get(BLOB)
    assert (
        f"registry.test redirects to '127.0.0.1' port {port_of(trap)}, where it may not lead (loopback)" in caplog.text
    )
    assert "geheim" not in caplog.text
    assert "Traceback" not in caplog.text
