"""Absent, filling and present blobs: how many bytes, how soon, at which price.

Megabytes are 10^6 bytes. Everything runs on one machine, so compare within one run only.
"""
