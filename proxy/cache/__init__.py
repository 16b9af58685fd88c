"""The use cases: a manifest, a blob, a list; cached where they may be, and who may be given them."""
