"""What is asked of an object store has a time within which it ends, and obstore's errors end here.

Their text has URLs, signatures, and whatever the server wrote: no more of it is told than a status, a code, and words
that are known.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator

from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

from proxy.storage.base import ObjectStoreError

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_NO_BUCKET = ("NoSuchBucket", "The specified bucket does not exist", "ContainerNotFound")
# What an operator looks for where there is no connection.
_WHY = {
    "dns error": "its name is not known",
    "ConnectionRefused": "the connection is refused",
    "InvalidCertificate": "its certificate is not trusted",
    "BadScheme": "its endpoint is not https",
}


class Absent(ObjectStoreError):
    """There is no such object, or it does not have so many bytes."""


class Exists(ObjectStoreError):
    """There is such an object, or another one is about to be made."""


@contextlib.asynccontextmanager
async def asked(seconds: float) -> AsyncIterator[None]:
    """What is asked inside ends within so long, and fails with an ObjectStoreError."""
    try:
        with translated():
            async with asyncio.timeout(seconds):
                yield
    except TimeoutError:
        raise ObjectStoreError("timeout", "the object store does not answer in time") from None


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """What is asked inside fails with an ObjectStoreError."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        # Not from it: who logs that would show what it says.
        raise _translation(error) from None


def _translation(error: BaseException) -> ObjectStoreError:
    text = str(error)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    said = f"{status or 'an error'} {found[1] if (found := _CODE.search(text)) else ''}".strip()
    if any(words in text for words in _NO_BUCKET):
        return ObjectStoreError("denied", "the object store has no such bucket")
    if isinstance(error, AlreadyExistsError):
        return Exists("denied", f"the object store makes no new object: {said}")
    if isinstance(error, FileNotFoundError) or status == 416:
        return Absent("denied", f"the object store does not have it: {said}")
    if status >= 500 or status in {408, 429} or "error response" in text:
        return ObjectStoreError("5xx", f"the object store fails: {said}")
    if status or isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return ObjectStoreError("denied", f"the object store refuses: {said}")
    if "kind: Timeout" in text:
        return ObjectStoreError("timeout", "the object store does not answer in time")
    why = next((why for words, why in _WHY.items() if words in text), "the connection failed")
    return ObjectStoreError("connect", f"the object store cannot be reached: {why}")
