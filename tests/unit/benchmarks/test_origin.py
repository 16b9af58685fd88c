"""What the origin of the load benchmarks counts and has."""

from benchmarks.images import REPOSITORY, Store
from benchmarks.origin import Pulls


def test_pulls_are_counted_in_windows() -> None:
    """A HEAD costs nothing and tells what is left; what is too much is refused until the window ends."""
    pulls = Pulls(2, 60)
    assert pulls.take(False, 0)[0]
    assert [pulls.take(True, 1)[0] for _ in range(3)] == [True, True, False]
    assert pulls.take(True, 30)[1] == ["ratelimit-limit: 2;w=60", "ratelimit-remaining: 0;w=60", "Retry-After: 30"]
    assert pulls.take(False, 30)[0]
    assert pulls.take(True, 60) == (True, ["ratelimit-limit: 2;w=60", "ratelimit-remaining: 1;w=60"])
    assert Pulls(0, 0).take(True, 0) == (True, [])


def test_images_are_found_by_tag_and_by_digest() -> None:
    """Each in its own repository, with the blobs that it lists."""
    store = Store([(1, 1000)], 0, tags=2, images=3, image_size=100)
    more = [(f"bench/i{number}", "v1") for number in range(3)]
    listed = [(REPOSITORY, "v1"), (REPOSITORY, "t0"), (REPOSITORY, "t1"), *more]
    assert [(one.repository, one.tag) for one in store.listed] == listed
    for one in store.listed:
        image = store.image(one.repository, one.tag)
        assert image is not None and image == store.image(one.repository, one.digest)
        assert all(store.blobs[name].size == size for name, size in one.blobs)
    assert store.image("bench/i0", "t0") is None
