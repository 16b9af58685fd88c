"""Lists of tags and referrers as responses."""

from urllib.parse import quote

from aiohttp import web

from proxy.cache.ask import Ask
from proxy.cache.tags import ListQuestion
from proxy.oci.route import ReferrersRoute, TagsRoute
from proxy.server.exchange import Exchange
from proxy.server.house import House
from proxy.server.respond import state_headers


async def answer_list(
    exchange: Exchange, house: House, ask: Ask, route: TagsRoute | ReferrersRoute
) -> web.StreamResponse:
    """The list, with the link to its next page leading back here."""
    record, verdict = await house.lists.get(ask, list_question(route))
    headers = state_headers(exchange, verdict) | {"Content-Type": record.media_type}
    if record.next_query is not None:
        headers["Link"] = next_link(exchange, record.next_query)
    if record.filters_applied is not None:
        headers["OCI-Filters-Applied"] = record.filters_applied
    return web.Response(body=record.body.encode(), headers=headers)


def list_question(route: TagsRoute | ReferrersRoute) -> ListQuestion:
    """What upstream is to be asked for."""
    if isinstance(route, TagsRoute):
        return ListQuestion("tags", "tags/list", route.query)
    return ListQuestion("referrers", f"referrers/{route.digest}", route.query)


def next_link(exchange: Exchange, query: str) -> str:
    """The Link to the next page: the path as this client wrote it, upstream's query, and the client's `ns`."""
    url = exchange.request.rel_url
    ns = url.query.get("ns")
    suffix = f"&ns={quote(ns, safe='')}" if ns is not None else ""
    return f'<{url.raw_path}?{query}{suffix}>; rel="next"'
