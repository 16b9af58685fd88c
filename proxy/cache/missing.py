"""404s remembered for a while, so that what is not there is not asked for again and again."""

from collections import OrderedDict

from proxy.cache.ask import Ask, Clock
from proxy.oci.reference import Repository
from proxy.upstream.errors import UpstreamMissing

_MOST = 8192

_Key = tuple[str, Repository, str]


class KnownMissing(UpstreamMissing):
    """The upstream said so `age` seconds ago, which counts for another `left`."""

    def __init__(self, message: str, age: float, left: float) -> None:
        super().__init__(message)
        self.age = age
        self.left = left


class Missing:
    """By principal, repository and reference, when the upstream had none: whoever asks judges by times of its own.

    `generation` is the repository's when the upstream was asked, or when the 404 is to count.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: OrderedDict[_Key, tuple[float, bytes | None]] = OrderedDict()

    def remember(self, ask: Ask, reference: str, generation: bytes | None) -> None:
        """The upstream has no `reference` for `ask`."""
        key = _key(ask, reference)
        self._said[key] = self._clock(), generation
        self._said.move_to_end(key)
        if len(self._said) > _MOST:
            self._said.popitem(last=False)

    def forget(self, ask: Ask, reference: str) -> None:
        """The upstream has it after all."""
        self._said.pop(_key(ask, reference), None)

    def raise_if_known(self, ask: Ask, reference: str, generation: bytes | None) -> None:
        """Raise KnownMissing where the 404 still counts for the one who asks now."""
        said = self._said.get(_key(ask, reference))
        if said is None or said[1] != generation:
            return
        age = self._clock() - said[0]
        left = ask.lifetimes.negative_ttl - age
        if age >= 0 and left > 0:
            raise KnownMissing(f"{ask.repository} has no {reference}, as asked before", age, left)


def _key(ask: Ask, reference: str) -> _Key:
    return ask.principal.key, ask.repository, reference
