"""config/proxy.yaml, the documentation of every key, is held against the models."""

from pathlib import Path

import pytest

from proxy.settings import Settings, load_settings

FILE = Path(__file__).parents[3] / "config" / "proxy.yaml"
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
