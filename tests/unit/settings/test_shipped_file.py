"""config/proxy.yaml, the documentation of every key, is held against the models; and the try-out's token."""

from pathlib import Path

import pytest
import yaml

from proxy.settings import Settings, load_settings

ROOT = Path(__file__).parents[3]
FILE = ROOT / "config" / "proxy.yaml"
WELL_KNOWN = {
    "docker.io", "ghcr.io", "quay.io", "registry.k8s.io", "gcr.io", "nvcr.io", "public.ecr.aws", "mcr.microsoft.com",
}  # fmt: skip


@pytest.fixture
def shipped() -> Settings:
    return load_settings(FILE)


def test_it_serves_the_eight_well_known_registries(shipped: Settings) -> None:
    """docker.io is what a request means that names none, and its tokens come from auth.docker.io."""
    assert set(shipped.upstreams) == WELL_KNOWN
    assert [name for name, upstream in shipped.upstreams.items() if upstream.default] == ["docker.io"]
    assert shipped.upstreams["docker.io"].token_realms == ("auth.docker.io",)


def test_its_values_are_the_models_defaults(shipped: Settings) -> None:
    """What the file says a key's default is, it is: leaving everything out changes nothing."""
    bare = Settings(upstreams=shipped.upstreams)
    assert shipped.model_dump() == bare.model_dump()


def test_the_try_out_has_a_token_and_is_published_on_loopback_only() -> None:
    """Its admin listener is not on loopback: the token is mounted where it is looked for, the port goes no further."""
    admin = load_settings(ROOT / "config" / "compose.yaml").admin
    assert admin.token_file == ROOT / "config" / "compose.token"
    assert len(admin.token_file.read_text().strip()) > 20
    proxy = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["proxy"]
    assert "./config/compose.token:/etc/pullthrough/compose.token:ro" in proxy["volumes"]
    assert "./config/compose.yaml:/etc/pullthrough/compose.yaml:ro" in proxy["volumes"]
    assert [port for port in proxy["ports"] if ":5001" in str(port)] == ["127.0.0.1:5001:5001"]
