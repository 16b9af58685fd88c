"""pullthrough: a caching pull-through proxy for OCI registries."""

__version__ = "0.1.0"
