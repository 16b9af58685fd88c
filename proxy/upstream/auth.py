"""Tokens: fetched once, shared, renewed before they end (distribution's token authentication specification).

Invariants:
- A token belongs to one principal, one repository and what it is to allow there (`Scopes`); it goes to the upstream
  that asked for it, nowhere else.
- What a client sent itself goes to the upstream as it is, or, where the proxy asked it for user and password, to the
  upstream's realm. It is held no longer than its requests run, the token it brought no longer than that lives.
- One request to the token server at a time for each (principal, scope); those who wait take its result.
- Credentials go to realms that `realm_allowed` lets pass, by requests that follow no redirect.
- A token that the proxy's own credential bought counts as long as that credential does; a refusal of the credential
  counts once it was looked for again and is the same.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakValueDictionary

from proxy.oci.reference import Repository
from proxy.policy.access import Principal
from proxy.upstream.challenge import Challenge, challenge_for_client, parse_challenges, realm_allowed
from proxy.upstream.credentials import IDENTITY_TOKEN_USER, Credential, CredentialSource, CredentialsUnavailable
from proxy.upstream.errors import TargetRefused, UpstreamFailure, UpstreamRefused

# What a token is asked for; empty: what the upstream's challenge says, which is enough to pull.
Scopes = tuple[str, ...]

_log = logging.getLogger("pullthrough.upstream")

# Seconds a token lives that says nothing about it (token specification).
_DEFAULT_LIFE = 60.0
# A token is renewed when less than this is left, or a tenth of its life where that is shorter.
_RENEW_BEFORE = 30.0
# No token is believed longer than this, whatever it says of itself.
_LONGEST_LIFE = 86400.0
_MOST_TOKENS = 4096

# Of a principal, a repository's name, and what it is asked for.
_Key = tuple[str, str, Scopes]


@dataclass(frozen=True, slots=True)
class Token:
    """`value` goes out as Bearer until `renew_at` (seconds of the clock passed in).

    `challenge` asked for it, and `credential` paid, None for nobody's.
    """

    value: str = field(repr=False)
    renew_at: float
    challenge: Challenge
    credential: Credential | None


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a token server is asked for `principal`: by GET with Basic, or, with an identity token, by a POST form."""

    realm: str
    parameters: tuple[tuple[str, str], ...]
    credential: Credential | None
    principal: Principal


class TokenServer(Protocol):
    """The one request that this room needs from the network; raises UpstreamRefused or UpstreamFailure."""

    async def __call__(self, request: TokenRequest) -> dict[str, object]: ...


class Authorizer:
    """The Authorization headers for one upstream."""

    def __init__(
        self,
        registry: str,
        url: str,
        token_realms: Iterable[str],
        source: CredentialSource | None,
        token_server: TokenServer,
        clock: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._url = url
        self._realms = frozenset(token_realms)
        self._source = source
        self._token_server = token_server
        self._clock = clock
        self._tokens: dict[_Key, Token] = {}
        # The own credential whose refusal was told last.
        self._refused: Credential | None = None
        # Whose Basic the upstream itself takes; the oldest go first.
        self._basic: dict[str, None] = {}
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[_Key, asyncio.Lock] = WeakValueDictionary()

    async def known(self, principal: Principal, repository: Repository, scopes: Scopes = ()) -> str | None:
        """What to send without having been asked: the client's own header, a token that still lives, or Basic."""
        if _sends_its_own(principal):
            return principal.authorization
        if principal.key in self._basic:
            credential = await self._credential(principal, repository)
            return credential.basic if credential is not None else None
        token = self._tokens.get((principal.key, repository.name, scopes))
        if token is None:
            return None
        refusal = UpstreamRefused(401, "")
        try:
            return await self._bearer_answer(token.challenge, principal, repository, scopes, None, refusal)
        except UpstreamRefused:
            # Refused at the token server; asked without a token, the upstream says what it wants now.
            return None

    async def answer(
        self,
        challenges: list[str],
        principal: Principal,
        repository: Repository,
        sent: str | None,
        scopes: Scopes = (),
    ) -> str:
        """The header that answers the upstream's 401 after `sent` was sent.

        Raises UpstreamRefused, with the challenge a client may be given, where there is nothing better to send;
        UpstreamFailure where the token server fails.
        """
        refusal = UpstreamRefused(401, f"{self._registry} wants other credentials", self.for_client(challenges))
        if _sends_its_own(principal):
            raise refusal
        for challenge in parse_challenges(challenges):
            if challenge.scheme == "basic" and principal.kind != "anonymous":
                return await self._basic_answer(principal, repository, sent, refusal)
            if challenge.scheme == "bearer":
                return await self._bearer_answer(challenge, principal, repository, scopes, sent, refusal)
        raise refusal

    def for_client(self, challenges: list[str]) -> str | None:
        """The challenge among `challenges` that a client may be given."""
        return challenge_for_client(challenges, self._url, self._realms)

    def refused(self, principal: Principal, repository: Repository, scopes: Scopes = ()) -> None:
        """What was sent is not good: forget it, so that the next request starts afresh."""
        self._tokens.pop((principal.key, repository.name, scopes), None)
        self._basic.pop(principal.key, None)
        if self._source is not None and principal.kind == "own":
            self._source.forget(repository.name)

    async def after_denial(self, principal: Principal, repository: Repository, sent: str | None) -> str | None:
        """What to send after a 403 to `sent`, if anything else: ECR answers a password that is over so."""
        if self._source is None or principal.kind != "own" or principal.key not in self._basic:
            return None
        credential = await self._credential(principal, repository)
        if credential is not None and credential.basic == sent:
            # Not told where it stays the same: it may well be good, and this repository another's.
            credential = await self._source.renewed(repository.name, credential)
        return credential.basic if credential is not None else None

    async def _basic_answer(
        self, principal: Principal, repository: Repository, sent: str | None, refusal: UpstreamRefused
    ) -> str:
        credential = await self._credential(principal, repository)
        if credential is not None and credential.basic == sent:
            credential = await self._renewed(principal, repository, credential)
        if credential is None:
            raise refusal
        header = credential.basic
        self._basic[principal.key] = None
        if len(self._basic) > _MOST_TOKENS:
            del self._basic[next(iter(self._basic))]
        return header

    async def _bearer_answer(
        self,
        challenge: Challenge,
        principal: Principal,
        repository: Repository,
        scopes: Scopes,
        sent: str | None,
        refusal: UpstreamRefused,
    ) -> str:
        key = (principal.key, repository.name, scopes)
        if (token := await self._living(key, principal, repository)) and f"Bearer {token.value}" != sent:
            return f"Bearer {token.value}"
        async with self._locks.setdefault(key, asyncio.Lock()):
            token = await self._living(key, principal, repository)
            if token is None or f"Bearer {token.value}" == sent:
                token = await self._fetch(challenge, principal, repository, scopes, refusal)
                self._keep(key, token)
        return f"Bearer {token.value}"

    async def _fetch(
        self,
        challenge: Challenge,
        principal: Principal,
        repository: Repository,
        scopes: Scopes,
        refusal: UpstreamRefused,
    ) -> Token:
        realm = challenge.get("realm")
        if not realm_allowed(realm, self._url, self._realms):
            raise TargetRefused(
                f"{self._registry} names a token realm that is neither its own host nor in its token_realms", "realm"
            )
        asked = scopes or (challenge.get("scope") or f"repository:{repository.name}:pull",)
        service = [("service", challenge.get("service"))] if challenge.get("service") else []
        parameters = (*service, *(("scope", scope) for scope in asked))
        credential = await self._credential(principal, repository)
        try:
            answer = await self._token_server(TokenRequest(realm, parameters, credential, principal))
        except UpstreamRefused as error:
            credential = await self._renewed(principal, repository, credential)
            if credential is None:
                raise refusal from error
            try:
                answer = await self._token_server(TokenRequest(realm, parameters, credential, principal))
            except UpstreamRefused as again:
                raise refusal from again
        return self._token(answer, challenge, credential)

    def _token(self, answer: dict[str, object], challenge: Challenge, credential: Credential | None) -> Token:
        value = answer.get("token") or answer.get("access_token")
        if not isinstance(value, str) or not value or not value.isascii() or not value.isprintable():
            raise UpstreamFailure("5xx", f"the token server of {self._registry} sent no token", at_token_server=True)
        life = answer.get("expires_in")
        seconds = min(life, _LONGEST_LIFE) if isinstance(life, int | float) and life > 0 else _DEFAULT_LIFE
        # Counted from now, not from `issued_at`: the two machines' clocks need not agree.
        return Token(value, self._clock() + seconds - min(_RENEW_BEFORE, seconds / 10), challenge, credential)

    async def _credential(self, principal: Principal, repository: Repository) -> Credential | None:
        """What tokens are bought with; None where they are asked for as nobody."""
        if principal.basic is not None:
            user, secret = principal.basic
            return Credential(user, secret, identity_token=user == IDENTITY_TOKEN_USER)
        if self._source is None or principal.kind != "own":
            return None
        try:
            return await self._source.get(repository.name)
        except CredentialsUnavailable as error:
            raise UpstreamFailure("5xx", str(error), at_token_server=True) from error

    async def _renewed(
        self, principal: Principal, repository: Repository, refused: Credential | None
    ) -> Credential | None:
        """The proxy's own credential, looked for once more; None where that is still `refused`, which is told once."""
        if refused is None or self._source is None or principal.kind != "own":
            return None
        renewed = await self._source.renewed(repository.name, refused)
        if renewed is None and self._refused != refused:
            self._refused = refused
            _log.warning("%s does not take the proxy's own credential for %s", self._registry, repository.name)
        return renewed

    async def _living(self, key: _Key, principal: Principal, repository: Repository) -> Token | None:
        token = self._tokens.get(key)
        if token is None or self._clock() >= token.renew_at:
            return None
        if self._source is None or principal.kind != "own":
            return token
        try:
            return token if await self._source.current(repository.name) == token.credential else None
        except CredentialsUnavailable:
            # It was good when the token was bought, and nothing better is known.
            return token

    def _keep(self, key: _Key, token: Token) -> None:
        self._tokens[key] = token
        if len(self._tokens) > _MOST_TOKENS:
            now = self._clock()
            living = {kept: other for kept, other in self._tokens.items() if now < other.renew_at}
            self._tokens = dict(list(living.items())[-_MOST_TOKENS // 2 :])


def _sends_its_own(principal: Principal) -> bool:
    """Does what the client sent go to the upstream as it is, whatever that asks for?"""
    return principal.kind == "client" and principal.basic is None
