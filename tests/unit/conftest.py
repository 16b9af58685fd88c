"""Hypothesis as the hermetic suite runs it: the same examples every time, and nothing kept between runs."""

from hypothesis import settings

settings.register_profile("hermetic", deadline=None, derandomize=True, database=None)
settings.load_profile("hermetic")
