"""What several replicas share: the settings of `shared`."""

from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from proxy.settings.bases import HttpUrl, Model
from proxy.settings.units import ListenAddress, parse_address

_METADATA = frozenset({"redis", "rediss", "valkey", "valkeys"})
_SENTINEL = "sentinel"
_KINDS = frozenset({"", _SENTINEL, "cluster"})
_BLOBS = frozenset({"s3", "gs", "az"})


def _metadata_url(value: str) -> str:
    parts = urlsplit(value)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in _METADATA or kind not in _KINDS or not parts.netloc.rpartition("@")[2]:
        raise ValueError("not a redis:// or rediss:// URL")
    if kind == _SENTINEL and not parts.path.strip("/"):
        raise ValueError("no name of a master: redis+sentinel://one:26379,two:26379/NAME")
    return value


def _blobs_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in _BLOBS or not parts.hostname:
        raise ValueError("not an s3://bucket/prefix, gs:// or az:// URL")
    return value


_MetadataUrl = Annotated[str, AfterValidator(_metadata_url)]
_BlobsUrl = Annotated[str, AfterValidator(_blobs_url)]


class SharedSettings(Model):
    """See config/proxy.yaml. The URLs may hold passwords, so they are never shown."""

    metadata: Annotated[_MetadataUrl | None, Field(repr=False)] = None
    blobs: Annotated[_BlobsUrl | None, Field(repr=False)] = None
    secret_file: Path | None = None
    listen: ListenAddress = parse_address("0.0.0.0:5002")
    advertise: HttpUrl | None = None
    blob_redirect: bool = False

    @model_validator(mode="after")
    def _known_to_each_other(self) -> Self:
        if self.metadata is not None and self.secret_file is None:
            raise ValueError("replicas that share metadata need a secret_file, the same for all of them")
        if self.blob_redirect and self.blobs is None:
            raise ValueError("blob_redirect needs blobs: there is nothing to redirect to")
        return self
