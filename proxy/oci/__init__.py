"""The vocabulary of the OCI distribution and image specifications. Standard library only; no I/O, no clock."""
