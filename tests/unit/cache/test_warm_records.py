"""Warm jobs in the metadata store."""

from dataclasses import replace

from proxy.cache.warm_records import Item, Job, dump, items_key, job_key, load_items, load_job, summed

JOB = Job("a1", "prod", ("linux/amd64",), 1 << 20, 4, "127.0.0.1", 1_800_000_000.0, ("a:1", "b:2"))
ITEMS = (
    Item("a:1", "done", "sha256:aa", 2, 3, 3, 100, 100, 40, "a note"),
    Item("b:2", "failed", bytes=5, bytes_total=50, error="why"),
)


def test_what_is_written_is_read() -> None:
    """Jobs and items, whole."""
    entries = dump(JOB, ITEMS)
    assert load_job(entries[job_key("a1")]) == JOB
    assert load_items(entries[items_key("a1")]) == ITEMS
    assert set(dump(JOB)) == {job_key("a1")}


def test_what_cannot_be_read_is_absent() -> None:
    """Another version's, a damaged row, nothing."""
    for raw in (None, b"", b"{", b"[]", b'{"id": 1}', b'[{"reference": 5}]'):
        assert load_job(raw) is None
        assert load_items(raw) is None or load_items(raw) == ()


def test_a_job_says_what_its_items_say() -> None:
    """Counts and sums."""
    expected = replace(JOB, done=1, failed=1, bytes=105, bytes_total=150)
    assert summed(JOB, ITEMS) == expected
