"""Requests that have ended, of every kind, for Hypothesis."""

from hypothesis import strategies as st

from proxy.telemetry.events import RequestFinished

# Every character there is, and often those that mean something in a line.
texts = st.text(
    st.one_of(st.characters(exclude_categories=()), st.sampled_from(' "=\\\n\r\x1b\x7f\u2028{}%')), max_size=9
)
clients = st.one_of(st.ip_addresses().map(str), texts)
# The bounds of buckets, and halves of the last digit that is written, among all others.
seconds = st.one_of(
    st.floats(0, 100),
    st.sampled_from([0.0, 0.00005, 0.00015, 0.001, 0.0025, 0.005, 1, 25, 25.00001]),
)
requests = st.builds(
    RequestFinished,
    client=clients,
    cluster=st.sampled_from(["prod", "edge"]),
    registry=st.sampled_from(["docker.io", ""]),
    kind=st.sampled_from(["manifest", "blob"]),
    method=st.sampled_from(["GET", "HEAD"]),
    repository=texts,
    reference=texts,
    status=st.sampled_from([200, 404, 499]),
    cache=st.sampled_from(["hit", "stale", ""]),
    detail=texts,
    bytes_sent=st.integers(0, 2**40),
    first_byte_seconds=seconds,
    seconds=seconds,
)
