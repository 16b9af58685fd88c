"""Where bytes rest: blobs on disk, metadata in diskcache, and the ports that others may stand behind."""
