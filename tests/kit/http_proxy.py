"""A reverse proxy as it stands before a page: it removes a prefix from the path, and says who the user is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

_OF_A_CONNECTION = {"connection", "upgrade", "keep-alive", "transfer-encoding", "content-length", "content-encoding"}


@contextlib.asynccontextmanager
async def reverse_proxy(target: str, prefix: str, source: str, said: dict[str, str]) -> AsyncIterator[str]:
    """Pass on requests and WebSockets below `prefix` to `target`, which has no slash at its end.

    `source`: the address from which it connects. `said`: the headers that it sets. Gives its address, with the prefix
    and a slash.
    """
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(source, 0))) as session:

        async def pass_on(request: web.Request) -> web.StreamResponse:
            url = target + request.path_qs.removeprefix(prefix)
            sent = _end_to_end(request.headers.items()) | said
            if request.headers.get("Upgrade", "").lower() == "websocket":
                named = {name: value for name, value in sent.items() if not name.lower().startswith("sec-websocket")}
                return await _join(request, session.ws_connect(url, headers=named, max_msg_size=0))
            async with session.get(url, headers=sent, allow_redirects=False) as answer:
                return web.Response(
                    status=answer.status, headers=_end_to_end(answer.headers.items()), body=await answer.read()
                )

        app = web.Application()
        app.router.add_get(f"{prefix}/{{path:.*}}", pass_on)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}{prefix}/"
        finally:
            await runner.cleanup()


def _end_to_end(headers) -> dict[str, str]:
    return {name: value for name, value in headers if name.lower() not in _OF_A_CONNECTION}


async def _join(request: web.Request, connecting) -> web.WebSocketResponse:
    """Pass messages both ways until one side closes."""
    async with connecting as inner:
        outer = web.WebSocketResponse(max_msg_size=0)
        await outer.prepare(request)
        ways = [asyncio.create_task(_pass(inner, outer)), asyncio.create_task(_pass(outer, inner))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        return outer


async def _pass(source, sink) -> None:
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await sink.send_bytes(message.data)
