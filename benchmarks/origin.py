"""An origin in a process of its own: one repository with one manifest and one blob. It prints its URL, then serves.

Run as `python -m benchmarks.origin SIZE`; the blob has SIZE bytes. What it sent in all is at `/sent`.
"""

import asyncio
import hashlib
import json
import random
import sys

from aiohttp import web

_PIECE = 1 << 20


async def serve(size: int) -> None:
    """Serve until killed."""
    source = random.Random(1)
    blob = b"".join(source.randbytes(min(_PIECE, size - offset)) for offset in range(0, size, _PIECE))
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    media_type = "application/vnd.oci.image.manifest.v1+json"
    layer = {"mediaType": "application/octet-stream", "digest": digest, "size": size}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": media_type, "config": layer, "layers": []}).encode()
    named = "sha256:" + hashlib.sha256(manifest).hexdigest()
    sent = 0

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        if request.path == "/sent":
            return web.Response(text=str(sent))
        is_blob = "/blobs/" in request.path
        body, kind = (blob, "application/octet-stream") if is_blob else (manifest, media_type)
        headers = {"Content-Type": kind, "Docker-Content-Digest": digest if is_blob else named}
        response = web.StreamResponse(headers=headers | {"Content-Length": str(len(body))})
        await response.prepare(request)
        if request.method == "GET":
            for offset in range(0, len(body), _PIECE):
                await response.write(memoryview(body)[offset : offset + _PIECE])
                sent += len(body[offset : offset + _PIECE])
        await response.write_eof()
        return response

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}", "digest": digest}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
