"""Decisions: pure functions over frozen values, the time passed in. Nothing here waits, reads or writes."""
