"""What a process has of its own, and what it shares with other replicas: made by the settings, closed by a stack.

Without `shared` it is the local stores, and a region of one. The adapters are imported where they are wanted: they need
the extra `distributed`.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from proxy.cache.region import Region
from proxy.policy.replica import region_key
from proxy.settings import Settings, SharedSettings
from proxy.storage.base import BlobStore, Holders, Leases, MetadataStore, ObjectStore, StorageError
from proxy.storage.disk import DiskBlobs
from proxy.storage.guarded import Guarded
from proxy.storage.metadata import DiskcacheMetadata
from proxy.storage.tiers import TieredBlobs
from proxy.telemetry.events import Tell
from proxy.upstream.replicas import Replicas

# Bytes that a secret has at least: 128 bits as hexadecimal digits.
_SHORTEST_SECRET = 32


class StartError(Exception):
    """The program cannot start, or run on, with these settings. The message is one line for operators."""


@dataclass(frozen=True, slots=True)
class Shared:
    """The stores as the cache takes them. `key` is what principals are hashed with, `replica_key` what replicas sign
    with, where there may be others."""

    metadata: MetadataStore
    blobs: BlobStore
    region: Region
    key: bytes
    leases: Leases | None = None
    replica_key: bytes | None = None


class Sharing:
    """Makes it, for a process that is the `first` of its replica or not."""

    def __init__(
        self, settings: Settings, tell: Tell, clock: Callable[[], float], stack: contextlib.AsyncExitStack, first: bool
    ) -> None:
        self._settings = settings.shared
        self._tell = tell
        self._clock = clock
        self._stack = stack
        self._first = first

    async def open(self, local: DiskcacheMetadata, disk: DiskBlobs, key: bytes) -> Shared:
        """On top of the local stores, which are open; `key` is the cache directory's. Raises StartError."""
        settings = self._settings
        if settings.metadata is None and settings.blobs is None:
            return Shared(local, disk, Region(self._tell), key)
        secret = await asyncio.to_thread(_secret, settings.secret_file)
        try:
            objects = self._object_store(settings.blobs, secret) if settings.blobs is not None else None
            blobs: BlobStore = disk
            if objects is not None:
                self._stack.push_async_callback(objects.close)
                blobs = await self._tiers(disk, objects)
            if settings.metadata is None:
                return Shared(local, blobs, Region(self._tell, objects=objects), key)
            return await self._with_others(settings.metadata, local, blobs, objects, secret)
        except ImportError as error:
            raise StartError(f"`shared` needs the extra `distributed`: {error.name} is not installed") from error

    async def _tiers(self, disk: DiskBlobs, objects: ObjectStore) -> TieredBlobs:
        tiers = TieredBlobs(disk, objects, self._tell, self._first)
        self._stack.push_async_callback(tiers.close)
        await tiers.start()
        return tiers

    async def _with_others(
        self, url: str, local: DiskcacheMetadata, blobs: BlobStore, objects: ObjectStore | None, secret: bytes
    ) -> Shared:
        from proxy.storage.leases import ValkeyLeases
        from proxy.storage.link import Link
        from proxy.storage.replicated import ReplicatedMetadata
        from proxy.storage.servers import Place

        address = self._settings.advertise
        if address is None:
            address = await asyncio.to_thread(_address, self._settings, url)
        key = region_key(secret, "replicas")
        try:
            link = Link(Place.of(url), self._tell)
        except ValueError as error:
            # It may hold a password.
            raise StartError("shared.metadata cannot be used: it is no URL that the client knows") from error
        metadata = ReplicatedMetadata(local, link, self._first)
        self._stack.push_async_callback(metadata.close)
        await metadata.start()
        leases = ValkeyLeases(link, address)
        self._stack.push_async_callback(leases.close)
        await leases.start()
        replicas = Replicas(key, self._tell, self._clock)
        self._stack.push_async_callback(replicas.close)
        await replicas.start()
        holders: Holders = leases
        region = Region(self._tell, leases, holders, replicas, objects)
        return Shared(metadata, blobs, region, region_key(secret, "principals"), leases, key)

    def _object_store(self, url: str, secret: bytes) -> Guarded:
        from proxy.storage.object import Bucket

        try:
            bucket = Bucket(url, region_key(secret, "objects") if secret else b"")
        except (StorageError, ValueError) as error:
            raise StartError(f"shared.blobs cannot be used: {error}") from error
        return Guarded(bucket, self._tell)


def _secret(file: Path | None) -> bytes:
    if file is None:
        return b""
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise StartError(f"shared.secret_file {file} cannot be read: {error.strerror}") from error
    if len(secret) < _SHORTEST_SECRET:
        raise StartError(f"shared.secret_file {file} holds less than {_SHORTEST_SECRET} characters")
    return secret


def _address(settings: SharedSettings, url: str) -> str:
    """Where other replicas reach this one: where it listens, or the address that it has towards the server. Blocks."""
    host = settings.listen.host
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104 - it is compared
        # Of several Sentinels the first one.
        parts = urlsplit(f"//{urlsplit(url).netloc.rpartition('@')[2].partition(',')[0]}")
        try:
            (family, _, _, _, there), *_ = socket.getaddrinfo(
                parts.hostname, parts.port or 6379, type=socket.SOCK_DGRAM
            )
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                # Nothing is sent; the system says which address it would send from.
                probe.connect(there)
                host = probe.getsockname()[0]
        except OSError as error:
            raise StartError(
                "this replica does not know its own address: give shared.advertise, or a server that can be looked up"
            ) from error
    return f"http://[{host}]:{settings.listen.port}" if ":" in host else f"http://{host}:{settings.listen.port}"
