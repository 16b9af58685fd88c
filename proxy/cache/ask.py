"""What every use case is asked with, and the shells around the store that all of them share."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from proxy.cache.records import (
    KEEP_CONTENT,
    UNKNOWN_SIZE,
    MemberRecord,
    Proved,
    dump_proof,
    load_proof,
    member_key,
    proof_key,
    pushed_key,
)
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.policy.access import Principal, Proof, proof_counts
from proxy.policy.freshness import Lifetimes
from proxy.storage.base import MetadataStore, Stamp, StorageError, User

_log = logging.getLogger("pullthrough.cache")

_MOST_REFUSED = 8192
_MOST_KEPT_ON = 65536
_LOG_INTERVAL = 60.0
_DAY = 86400.0

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Ask:
    """Who asks in which repository, and the times that hold for them.

    `cluster` is `settings.BACKGROUND` where the proxy asks of its own accord, and nobody waits.
    """

    repository: Repository
    principal: Principal
    lifetimes: Lifetimes
    cluster: str = ""

    @property
    def rights(self) -> tuple[Repository, str]:
        """Whose right to what: two asks with the same are given, or refused, the same."""
        return self.repository, self.principal.key


def user_of(ask: Ask) -> User:
    """For whom the store keeps what `ask` wants."""
    return User(ask.repository.registry, ask.repository.name, ask.cluster)


class Records:
    """The metadata store, without its troubles: what cannot be read is absent, what cannot be written is logged.

    A broken store costs requests to upstreams, never an answer.
    """

    def __init__(self, store: MetadataStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._last_logged = 0.0
        # What was kept on lately, and when.
        self._kept_on: dict[str, float] = {}

    def stamp(self, *keys: str) -> Stamp:
        """See `MetadataStore.stamp`."""
        return self._store.stamp(*keys)

    async def get(self, *keys: str) -> list[bytes | None]:
        """The values of `keys`; None for what is absent or cannot be read."""
        try:
            return await self._store.get(*keys)
        except StorageError as error:
            self._trouble(error)
            return [None] * len(keys)

    async def read(self, *keys: str) -> list[bytes | None]:
        """The values of `keys`, None for what is absent. Raises StorageError: to operators that is another answer."""
        return await self._store.get(*keys)

    async def put(
        self,
        entries: Mapping[str, bytes],
        keep: float = KEEP_CONTENT,
        only_while: tuple[str, bytes | None] | None = None,
    ) -> bool:
        """Store all of `entries` for `keep` seconds, if the store can; see `MetadataStore.put` for `only_while`."""
        try:
            return await self._store.put(entries, keep, only_while)
        except StorageError as error:
            self._trouble(error)
            return False

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        """Keys by prefix, see `MetadataStore.scan`. Raises StorageError: that there are none is an answer too."""
        return await self._store.scan(prefix, after, limit)

    async def keep_on(self, *keys: str) -> None:
        """Keep what is stored under `keys`, as long as the first one stays what it is: it is in use, and nothing else
        confirms it where the upstream is offline. Once a day is enough."""
        now, first = self._clock(), keys[0]
        if 0 <= now - self._kept_on.get(first, -_DAY) < _DAY:
            return
        if len(self._kept_on) >= _MOST_KEPT_ON:
            self._kept_on.clear()
        self._kept_on[first] = now
        found = dict(zip(keys, await self.get(*keys), strict=True))
        await self.put({key: raw for key, raw in found.items() if raw is not None}, only_while=(first, found[first]))

    async def generation(self, repository: Repository) -> bytes | None:
        """What changes whenever something was pushed to `repository` through here; None before the first time."""
        return (await self.get(pushed_key(repository)))[0]

    async def delete(self, *keys: str) -> bool:
        """Remove `keys`, if the store can; gives whether."""
        try:
            await self._store.delete(*keys)
        except StorageError as error:
            self._trouble(error)
            return False
        return True

    def _trouble(self, error: StorageError) -> None:
        now = self._clock()
        if abs(now - self._last_logged) >= _LOG_INTERVAL:
            self._last_logged = now
            _log.error("%s; going on without it", error)


class Rights:
    """Proofs and membership as they are written; `policy.access` judges them."""

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        # Refusals besides what the store says: a store that cannot be written must not keep a proof alive.
        self._refused: dict[str, None] = {}

    async def grant(
        self, ask: Ask, digest: Digest, media_type: str, size: int, generation: bytes | None
    ) -> MemberRecord:
        """The upstream answered `ask` with this manifest or blob: a proof for the one, membership for the other.

        `generation`: see `admit`.
        """
        member = await self.admit(ask, digest, media_type, size, generation)
        await self.prove(ask)
        return member

    async def admit(
        self, ask: Ask, digest: Digest, media_type: str, size: int, generation: bytes | None
    ) -> MemberRecord:
        """The upstream served this manifest or blob in the repository, to whomever.

        `generation`: the repository's when the upstream was asked. Where something was pushed or deleted since, the
        answer may be older than that and makes nothing a member.
        """
        key = member_key(ask.repository, digest)
        if not media_type or size == UNKNOWN_SIZE:
            # The head of a blob says nothing of the type that a manifest was answered with, a part nothing of the size.
            known = MemberRecord.load((await self._records.get(key))[0])
            if known is not None:
                media_type, size = media_type or known.media_type, known.size if size == UNKNOWN_SIZE else size
        member = MemberRecord(media_type, size, self._clock())
        await self._records.put({key: member.dump()}, only_while=(pushed_key(ask.repository), generation))
        return member

    async def has(self, ask: Ask, digest: Digest) -> bool:
        """Does `ask` have a right to `digest` that counts without asking?"""
        raw_proof, raw_member = await self._records.get(
            proof_key(ask.principal, ask.repository), member_key(ask.repository, digest)
        )
        proof, member = self.proof(ask, raw_proof), MemberRecord.load(raw_member)
        is_there = member is not None and member.gone is None
        return is_there and proof_counts(proof, ask.principal, self._clock(), ask.lifetimes)

    async def withdraw(self, ask: Ask, digest: Digest) -> None:
        """What `ask` was answered with were other bytes: that was no answer."""
        await self._records.delete(member_key(ask.repository, digest))
        await self.refuse(ask)

    async def prove(self, ask: Ask, what: Proved = "content") -> None:
        """The upstream answered `ask` with content, or with a list."""
        key = proof_key(ask.principal, ask.repository, what)
        self._refused.pop(key, None)
        # Every new token of a client makes a row; the others' are few, and count as long as their content where the
        # upstream goes offline.
        kept = ask.lifetimes.proofs_kept if ask.principal.kind == "client" else KEEP_CONTENT
        await self._records.put({key: dump_proof(Proof(self._clock()))}, kept)

    async def keep_on(self, ask: Ask, *keys: str, what: Proved = "content") -> None:
        """`ask` was served what is stored under `keys`, of an upstream that is offline: see `Records.keep_on`."""
        # A client's own proof ends as it does while an upstream fails.
        proofs = () if ask.principal.kind == "client" else (proof_key(ask.principal, ask.repository, what),)
        await self._records.keep_on(*keys, *proofs)

    async def refuse(self, ask: Ask) -> None:
        """The upstream refused `ask`: its proofs end."""
        keys = [proof_key(ask.principal, ask.repository, what) for what in get_args(Proved)]
        self._refused |= dict.fromkeys(keys)
        while len(self._refused) > _MOST_REFUSED:
            del self._refused[next(iter(self._refused))]
        await self._records.delete(*keys)

    def proof(self, ask: Ask, raw: bytes | None, what: Proved = "content") -> Proof | None:
        """The proof that was stored as `raw`, unless it was refused since."""
        return load_proof(raw) if proof_key(ask.principal, ask.repository, what) not in self._refused else None
