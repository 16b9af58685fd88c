"""HTTP in and out: aiohttp requests become asks of the cache, its answers and errors become responses."""
