"""The proxy's own credentials, as they are now: looked for again when their file changes, their time is over or an
upstream refuses them.

Invariants:
- One look at a time, whoever waits for it; a plugin that answers for single images is asked about some at a time.
- A program is not run for the same thing again within seconds, however often it fails or is refused.
- What was found counts until something else is: a file that is broken or missing, a program that fails, is told in one
  line, and takes nothing away.
- Found credentials are in memory only, and in no representation, error or log.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from yarl import URL

from proxy.settings import CredentialSettings, UpstreamSettings
from proxy.upstream.places import IDENTITY_TOKEN_USER, Credential, CredentialsUnavailable, Found, place_of

__all__ = ["IDENTITY_TOKEN_USER", "Credential", "CredentialSource", "CredentialsUnavailable", "credential_source"]

_log = logging.getLogger("pullthrough.upstream")

# Seconds between two looks that nothing new calls for.
_PAUSE = 10.0
# Images with answers of their own. Clients choose the names.
_MOST_KEPT = 1024
_MOST_LOOKS = 4
# What an answer that is not for one image only is kept under.
_ALL = ""


@dataclass(slots=True)
class _Look:
    """A look at `at`, when the place had `mark`; it counts until `until`. `found` is None where it failed."""

    mark: object
    at: float
    until: float
    found: Found | None
    failure: str = ""


def credential_source(
    registry: str, settings: UpstreamSettings, clock: Callable[[], float]
) -> "CredentialSource | None":
    """The proxy's own credential for `registry`, where one is configured; it may stand under any of its names."""
    if settings.credentials is None:
        return None
    url = URL(settings.url)
    host = url.host if url.is_default_port() else url.authority
    names = dict.fromkeys([registry, host or registry, *settings.aliases])
    return CredentialSource(settings.credentials, names, clock, host)


class CredentialSource:
    """A registry's own credential. `names` are the registry's, the best first; `clock` in seconds."""

    def __init__(
        self,
        settings: CredentialSettings,
        names: Iterable[str],
        clock: Callable[[], float] = time.time,
        host: str | None = None,
    ) -> None:
        """`host`: where the registry is asked, whose own entry comes before those of other names."""
        self._settings = settings
        self._names = list(names)
        self._place = place_of(settings, self._names, host)
        self._clock = clock
        self._looks: dict[str, _Look] = {}
        self._one_image = False
        self._told = ""
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._at_once = asyncio.Semaphore(_MOST_LOOKS)

    @property
    def identity(self) -> str:
        """What tells this credential from another one, and outlives the rotation of its secret."""
        settings = self._settings
        plugin = " ".join([settings.plugin.command, *settings.plugin.args]) if settings.plugin is not None else ""
        return f"{settings.username or ''}|{settings.docker_config or ''}|{settings.helper or ''}|{plugin}"

    async def get(self, repository: str) -> Credential | None:
        """The credential for `repository` as it is now; None where it is to be asked for as nobody.

        Raises CredentialsUnavailable where there is none, and never was.
        """
        if not self._place.concerns(self._images(repository)):
            return None
        if (look := await self._good(repository)) is None:
            async with self._locks.setdefault(repository if self._one_image else _ALL, asyncio.Lock()):
                if (look := await self._good(repository)) is None:
                    async with self._at_once:
                        look = await self._look(repository)
        return self._given(look, repository)

    async def current(self, repository: str) -> Credential | None:
        """The credential that was found last, its time over or not: no program is run to find out. See `get`."""
        if not self._place.concerns(self._images(repository)):
            return None
        look = self._last(repository)
        if look is None or look.mark != await self._place.mark():
            return await self.get(repository)
        return self._given(look, repository)

    def forget(self, repository: str) -> None:
        """The credential was refused: look again next time, a program once it was not asked just now."""
        if (look := self._last(repository)) is not None:
            free = look.found is not None and look.found.keep == math.inf
            look.until = min(look.until, look.at if free else look.at + _PAUSE)

    async def renewed(self, repository: str, refused: Credential) -> Credential | None:
        """Look once more, since `refused` is not taken: another credential, or None."""
        try:
            if await self.get(repository) == refused:
                self.forget(repository)
            found = await self.get(repository)
        except CredentialsUnavailable:
            return None
        return found if found != refused else None

    def _given(self, look: _Look, repository: str) -> Credential | None:
        if look.found is None:
            raise CredentialsUnavailable(look.failure)
        return look.found.for_image(self._images(repository))

    def _images(self, repository: str) -> list[str]:
        return [f"{name}/{repository}" for name in self._names]

    def _last(self, repository: str) -> _Look | None:
        return self._looks.get(repository) or self._looks.get(_ALL)

    async def _good(self, repository: str) -> _Look | None:
        """The last look, if it still counts."""
        look = self._last(repository)
        if look is None or not look.at <= self._clock() < look.until:
            return None
        return look if look.mark == await self._place.mark() else None

    async def _look(self, repository: str) -> _Look:
        last, mark = self._last(repository), await self._place.mark()
        before = last.found if last is not None else None
        try:
            found = await self._place.look(self._images(repository))
        except CredentialsUnavailable as error:
            if before is not None and self._told != str(error):
                self._told = str(error)
                _log.warning("%s: %s; going on with the credential from before", self._names[0], error)
            now = self._clock()
            look = _Look(mark, now, now + _PAUSE, before, str(error))
            self._keep(repository, repository if self._one_image else _ALL, look)
            return look
        self._told = ""
        if before is not None and before.credentials and found.credentials not in ({}, before.credentials):
            _log.info("%s has another credential", self._names[0])
        now = self._clock()
        # Whoever asks for a program's answer at the same time gets the same one, however short its life is.
        look = _Look(mark, now, now + max(found.keep, _PAUSE), found)
        if found.credentials:
            self._one_image = found.one_image
        self._keep(repository, repository if found.one_image else _ALL, look)
        return look

    def _keep(self, repository: str, key: str, look: _Look) -> None:
        self._looks.pop(repository, None)
        if look.found is None or look.found.credentials:
            # What is known now of all images, or of each by itself, is not to be hidden by what was known before.
            self._looks.pop(_ALL, None)
        self._looks[key] = look
        if len(self._looks) > _MOST_KEPT:
            del self._looks[next(iter(self._looks))]
