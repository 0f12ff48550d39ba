"""What the measurements at the edge mean. Pure: each function takes one measurement and gives one finding.

Rule 1: a verdict rests on figures that are in ``seen``.
Rule 2: what an answer was too short, too fast or too slow to show is ``unknown``.
"""

from __future__ import annotations

import itertools
from statistics import median
from typing import Final

from rawstream.doctor import limits
from rawstream.doctor.edge_probes import FAILS_AFTER, Cancel, Look, Silence, Stall
from rawstream.doctor.finding import CannotExamine, Finding, Verdict, plural, size, span
from rawstream.doctor.recording import Arrival
from rawstream.doctor.target import Kind

FAILURE: Final = "failures"
_TOGETHER: Final = 0.005
"""Seconds: what comes within so short a time came together."""
_FASTEST: Final = 1000
"""Tokens a second, which few models reach."""
_FEWEST: Final = 10
_SHORTEST: Final = 0.3
_BUFFERED_PROXY: Final = (
    "nginx: 'proxy_buffering off;' in the location (or let the origin's 'x-accel-buffering: no' through: no "
    "proxy_ignore_headers); Apache: 'flushpackets=on' on ProxyPass; CDN: no caching and no transformation for this "
    "path; and see whether the model server itself streams ('rawstream doctor --upstream URL')"
)
_ASK_THE_SERVER: Final = (
    "run this where the server can be asked: --server http://127.0.0.1:8000 (a rawstream's own address), or let "
    "GET /streams/{id} through the edge; elsewhere watch the server's log, or llama.cpp's /slots, while a client leaves"
)
_HELD: Final = 3.0
"""Seconds of silence before heartbeats that came together."""
_FAR_AHEAD: Final = 256 * 1024
_FULL_BUFFERS: Final = 4 * 1024 * 1024
"""More than the kernels on the way hold: whoever is still going then does not wait for anybody."""
_FULL_OF_TOKENS: Final = _FULL_BUFFERS // 25
"""The same in small tokens, for a server that holds them back and has written nothing yet."""


def bursts(arrivals: tuple[Arrival, ...]) -> list[Arrival]:
    """Arrivals with tokens in them, those that came together taken as one (at the moment of the first)."""
    found: list[Arrival] = []
    for one in arrivals:
        if not one.tokens:
            continue
        if found and one.at - found[-1].at <= _TOGETHER:
            before = found[-1]
            found[-1] = Arrival(before.at, before.bytes + one.bytes, before.tokens + one.tokens)
        else:
            found.append(one)
    return found


def buffering(look: Look) -> Finding:
    """Do tokens come as they are made, or is something collecting them?"""
    name = "buffering"
    groups = bursts(look.arrivals)
    if not look.legible:
        return Finding(name, "unknown", "the answer is compressed in a way that cannot be read here")
    if look.tokens < _FEWEST:
        seen = f"only {plural(look.tokens, 'token')} came"
        return Finding(name, "unknown", seen, "too few to see how they arrive", "ask for a longer answer: --prompt")
    total = groups[-1].at
    first = groups[0].at
    gaps = [b.at - a.at for a, b in itertools.pairwise(groups)]
    gap = median(gaps) if gaps else 0.0
    share = look.tokens / len(groups)
    pattern = f"{plural(look.tokens, 'token')} in {plural(len(groups), 'arrival')}"
    if total < _SHORTEST:
        why = "so fast an answer looks the same whether it was held or not"
        return Finding(
            name, "unknown", f"{pattern}, all within {span(total)}", why, "ask for a longer answer: --prompt"
        )
    why = "the reader waits for words that are long made, and a cancel or a failure is seen late"
    if total >= 1 and total - first < 0.1 * total:
        seen = f"{pattern}: nothing for {span(first)}, then everything within {span(total - first)}"
        if len(groups) <= 3:
            return Finding(name, "bad", seen, why, _BUFFERED_PROXY)
        if look.tokens > _FASTEST * (total - first):
            why = "it was held back, or the model thought for long and then was very fast"
            return Finding(name, "warn", seen, why, _BUFFERED_PROXY)
    # How long a token's burst was waited for, taken over the tokens: a single straggler does not count.
    weighed = sum(group.tokens * wait for group, wait in zip(groups[1:], gaps, strict=True)) / look.tokens
    if share >= 5 and (weighed >= 0.25 or gap >= 0.25):
        block = round(median(group.bytes for group in groups))
        seen = f"{pattern}: some {share:.0f} tokens ({size(block)}) at a time, {span(gap)} apart"
        return Finding(name, "bad", seen, why, _BUFFERED_PROXY)
    seen = f"{pattern}, {span(gap)} apart; the first after {span(first)}, the last after {span(total)}"
    if share >= 3 and gap >= 0.1:
        return Finding(
            name, "warn", seen, "they come in lumps: from a proxy, or from the model server", _BUFFERED_PROXY
        )
    return Finding(name, "ok", seen)


def compression(plain: Look, browsers: Look) -> Finding:
    """Is the stream compressed, where it was offered and where it was not?"""
    name = "compression"
    remedy = (
        "take text/event-stream out of the compressed types (nginx: gzip_types; Apache: AddOutputFilterByType), or "
        "'gzip off;' in this location; CDN: a rule without compression for this path"
    )
    coding = plain.header("content-encoding")
    if coding not in ("", "identity"):
        why = "whoever cannot undo it sees nothing at all"
        return Finding(name, "bad", f"content-encoding: {coding}, though none was accepted", why, remedy)
    coding = browsers.header("content-encoding")
    if coding in ("", "identity"):
        return Finding(name, "ok", "not compressed, though browsers' accept-encoding was sent")
    seen = f"content-encoding: {coding}, as browsers get it"
    groups = bursts(browsers.arrivals)
    held = browsers.legible and len(groups) * 2 < len(bursts(plain.arrivals))
    if not browsers.legible:
        held = len(browsers.arrivals) * 2 < len(plain.arrivals)
    if held:
        seen += f"; it came in {plural(len(browsers.arrivals), 'arrival')}, uncompressed in {len(plain.arrivals)}"
        return Finding(name, "bad", seen, "the compressor collects tokens before it lets them out", remedy)
    seen += f"; still token by token ({plural(browsers.bytes, 'byte')} for {plural(browsers.tokens, 'token')})"
    why = "each flush costs time and memory here, and the next proxy or another version may hold tokens back"
    if "no-transform" in plain.header("cache-control"):
        why += "; the answer's cache-control said no-transform"
    return Finding(name, "warn", seen, why, remedy)


_TYPES: Final[dict[Kind, str]] = {"text": "text/plain"}
_SIGNS: Final = {
    "cf-ray": "Cloudflare",
    "x-amz-cf-id": "CloudFront",
    "x-served-by": "Fastly or Varnish",
    "x-varnish": "Varnish",
    "x-vercel-id": "Vercel",
    "fly-request-id": "Fly.io",
    "x-envoy-upstream-service-time": "Envoy",
    "x-azure-ref": "Azure Front Door",
    "x-akamai-request-id": "Akamai",
}


def headers(look: Look, kind: Kind) -> Finding:
    """Did the answer's head come as a stream's should be?"""
    name = "headers"
    wanted = _TYPES.get(kind, "text/event-stream")
    found = look.header("content-type").partition(";")[0].strip().lower()
    if found != wanted:
        seen = f"content-type: {found or 'none'}, not {wanted}"
        why = "EventSource and SDKs refuse it, and proxies take it for something to collect or compress"
        return Finding(name, "bad", seen, why, f"send {wanted}; see who changes it on the way")
    missing: list[str] = []
    remedies: list[str] = []
    if "no-transform" not in look.header("cache-control"):
        missing.append(f"cache-control: {look.header('cache-control') or 'none'} (no 'no-transform' in it)")
        remedies.append("send 'cache-control: no-cache, no-transform', so that nobody compresses or collects it")
    if look.header("x-request-id") != look.request_id:
        told = look.header("x-request-id")
        missing.append(f"x-request-id is {'another than' if told else 'not sent back, where'} we sent")
        remedies.append("pass x-request-id on in both directions, or failures cannot be found in the logs")
    if not missing:
        return Finding(name, "ok", f"content-type: {found}; cache-control, x-request-id as they should be")
    return Finding(
        name, "warn", "; ".join(missing), "what the origin says about its stream is lost", "; ".join(remedies)
    )


def way(look: Look) -> Finding:
    """Who stands on the way, as far as it shows?"""
    seen = [f"{name}: {look.header(name)}" for name in ("server", "via", "x-cache") if look.header(name)]
    seen += [maker for name, maker in _SIGNS.items() if look.header(name)]
    if look.header("x-stream-id"):
        seen.append("a rawstream answers (x-stream-id)")
    if look.header("x-accel-buffering"):
        seen.append("x-accel-buffering came through: no nginx on the way took it")
    return Finding("way", "ok", "; ".join(seen) or "nothing names itself")


def framing(look: Look) -> Finding:
    """How is the end of the answer told?"""
    name = "framing"
    seen = f"HTTP/{look.version}, {_FRAMINGS.get(look.framing, look.framing)}"
    if look.framing == "length":
        why = "a length is known only when the whole answer is: somebody collected it"
        return Finding(name, "bad", seen, why, _BUFFERED_PROXY)
    if look.framing == "close":
        why = "the end is the end of the connection: a cut answer looks like a whole one, and no connection is kept"
        return Finding(name, "warn", seen, why, "speak HTTP/1.1 to the origin (nginx: 'proxy_http_version 1.1;')")
    if look.closes:
        seen += ", connection: close"
        why = "Node 20's fetch then takes a cut chunked body for a clean end; each answer costs a new connection"
        remedy = "nginx: 'proxy_http_version 1.1; proxy_set_header Connection \"\";', and keepalive towards clients"
        return Finding(name, "warn", seen, why, remedy)
    return Finding(name, "ok", seen + (", connection kept" if look.reusable else ""))


_FRAMINGS: Final = {"chunked": "chunked", "length": "content-length", "close": "until the connection closes"}


def ending(look: Look, kind: Kind) -> Finding:
    """Does a whole answer say that it is whole?"""
    name = "end"
    if look.end == "time":
        return Finding(
            name, "unknown", f"it was still going after {span(look.arrivals[-1].at if look.arrivals else 0)}"
        )
    if look.error is not None:
        return Finding(
            name, "bad", f"the answer failed: {look.error}", "the server said so in the stream", "see its log"
        )
    if look.end == "cut":
        seen = f"cut after {plural(look.tokens, 'token')}: {look.why}"
        return Finding(
            name, "bad", seen, "the answer is not whole", "see the logs of the proxies on the way, and the server's"
        )
    if kind == "text" or not look.sse:
        why = "plain text has no terminal event: only the framing tells a whole answer from a cut one"
        return Finding(name, "ok" if look.framing == "chunked" else "warn", "a clean end of the framing", why)
    if look.terminal:
        return Finding(name, "ok", ("data: [DONE]" if look.done else "a terminal event") + ", and a clean end")
    why = "clients cannot tell this from an answer that was cut, and most take it for whole"
    return Finding(
        name, "warn", "a clean end, without a terminal event", why, "end each whole answer with data: [DONE]"
    )


def failure(look: Look | CannotExamine, kind: Kind) -> Finding:
    """Does a failure in mid-stream reach the client as one?"""
    name = FAILURE
    if isinstance(look, CannotExamine):
        return Finding(name, "ok", f"status {look.status}, before anything was sent: whatever fails has a real status")
    told = f"told in the stream: {look.error}" if look.error else "not told in the stream"
    cut = "then visibly cut" if look.end == "cut" else "then a clean end"
    seen = f"{told}; {cut}"
    if look.end == "cut":
        if look.error or kind == "text":
            return Finding(name, "ok", seen)
        why = f"the reader sees a cut without a reason; {plural(look.tokens, 'token')} of {FAILS_AFTER} came before it"
        return Finding(name, "warn", seen, why, _BUFFERED_PROXY)
    remedy = "let the way speak HTTP/1.1 to the origin (nginx: 'proxy_http_version 1.1;'), so that a cut stays a cut"
    if look.error:
        why = "a client that does not read the error event takes the answer for whole"
        return Finding(name, "warn", seen, why, remedy)
    return Finding(name, "bad", seen, "the client takes half an answer for a whole one", remedy)


def cancelling(seen: Cancel) -> Finding:
    """Does a client's leaving reach the server?"""
    name = "cancel"
    if seen.ended_early:
        return Finding(name, "unknown", "the answer was over before it could be left", "", "a longer one: --prompt")
    if not seen.through:
        return Finding(
            name, "unknown", "the server cannot be asked", "only it knows whether it stopped", _ASK_THE_SERVER
        )
    made = "" if seen.made_after is None else f", {plural(seen.made_after, 'token')} made meanwhile"
    if seen.seconds is None:
        what = f"still generating {span(seen.watched)} after the client left{made} ({seen.through})"
        why = "every closed tab goes on costing tokens, to the end of its answer"
        remedy = (
            "the server must notice its client's end (rawstream's /chat does); on the way: nginx "
            "'proxy_ignore_client_abort off;' (its default), HAProxy 'option abortonclose', no queue or function "
            "between that answers for the server"
        )
        return Finding(name, "bad", what, why, remedy)
    verdict: Verdict = "ok" if seen.seconds <= 1 else "warn"
    return Finding(
        name, verdict, f"the generation ended {span(seen.seconds)} after the client left{made} ({seen.through})"
    )


def backpressure(seen: Stall) -> Finding:
    """Does the server stop for a reader that has stopped?"""
    name = "backpressure"
    if not seen.through:
        why = "what the network has taken on the way does not show at the client, and the server cannot be asked"
        return Finding(name, "unknown", "the server cannot be asked", why, _ASK_THE_SERVER)
    if seen.ended or not seen.samples or seen.samples[-1][1].tokens is None:
        why = "it was over, or cut, before anything could fill up"
        return Finding(name, "unknown", "the answer ended while nobody read it", why, "a longer answer: --prompt")
    at, last = seen.samples[-1]
    tokens, taken = (last.tokens or 0) - seen.read_tokens, (last.bytes or 0) - seen.read_bytes
    ahead = f"{plural(tokens, 'token')} ({size(taken)}) ahead of the reader"
    still = [state.tokens for moment, state in seen.samples if moment >= at - 0.9]
    if len(set(still)) > 1:
        what = f"still generating after {span(at)}, {ahead}"
        if taken < _FULL_BUFFERS and tokens < _FULL_OF_TOKENS:
            why = "the buffers on the way are not full yet: the answer is too slow, or too short, to tell"
            return Finding(name, "unknown", what, why, "a faster model, or the mock")
        why = "a slow reader's whole answer piles up in memory or on disk, and is paid for though nobody reads it"
        remedy = (
            "a server that asks for the next token only when there is room (rawstream's /chat); on the way: nginx "
            "'proxy_buffering off;' (buffering takes up to 1 GB per stream into a file)"
        )
        return Finding(name, "bad", what, why, remedy)
    stopped = next(moment for moment, state in seen.samples if state.tokens == last.tokens)
    what = f"the server stopped {span(stopped)} after the reader, {ahead} ({seen.through})"
    if taken > _FAR_AHEAD:
        why = f"it does stop, after {tokens / 50:,.0f} s worth of reading (50 tokens/s): buffers on the way are large"
        return Finding(
            name,
            "warn",
            what,
            why,
            "fewer, smaller buffers on the way; or credit: ?credit=N is exact through all of them",
        )
    return Finding(name, "ok", what)


def idle(seen: Silence) -> Finding:
    """Is a silent stream cut, and after how long?"""
    name = "idle"
    beats = len(seen.heartbeats)
    if seen.cut_at is not None:
        after = f"cut after {span(seen.cut_at)} without a byte"
        if seen.status != 200:
            after = f"status {seen.status} after {span(seen.cut_at)} without a byte"
        known = limits.whose(seen.cut_at)
        beat = max(1.0, float(int(seen.cut_at / 2)))
        why = "models think longer than that before their first token" + (
            f"; as shipped, that is {known}" if known else ""
        )
        remedy = (
            f"raise the limit (nginx: proxy_read_timeout, HAProxy: timeout server, load balancers: idle or backend "
            f"timeout), or send heartbeats more often than it cuts: rawstream serve --heartbeat {beat:g}"
        )
        return Finding(
            name, "bad", after + (f", {plural(beats, 'heartbeat')} seen before" if beats else ""), why, remedy
        )
    if seen.longest < 1 and not beats:
        why = "the answer was never silent; the limits to know are " + limits.EVERYBODYS
        remedy = "the mock, or a model that thinks first: --idle-model NAME (rawstream chaos: slow-first:seconds=70)"
        return Finding(name, "unknown", f"no silence longer than {span(seen.longest)}", why, remedy)
    if beats > 1 and seen.heartbeats[-1] - seen.heartbeats[0] < 1 and seen.longest > _HELD:
        what = f"alive after {span(seen.total)}, but {plural(beats, 'heartbeat')} came together"
        what += f", after {span(seen.longest)}"
        why = f"they are held back too: whoever stands behind that sees silence, and cuts ({limits.EVERYBODYS})"
        return Finding(name, "warn", what, why, _BUFFERED_PROXY)
    if beats:
        moments = seen.heartbeats
        every = median([b - a for a, b in itertools.pairwise((0.0, *moments))])
        what = f"alive after {span(seen.total)}, on {plural(beats, 'heartbeat')}, one each {span(every)}"
        if every > 25:
            why = f"limits to stay under: {limits.EVERYBODYS}"
            return Finding(name, "warn", what, why, "heartbeats more often: rawstream serve --heartbeat 15")
        return Finding(name, "ok", what)
    what = f"alive after {span(seen.longest)} without a byte; no heartbeat"
    why = f"nothing cuts here before that; others do: {limits.EVERYBODYS}"
    return Finding(
        name, "ok" if seen.longest > 60 else "warn", what, why, "rawstream serve --heartbeat 15 keeps it alive anywhere"
    )
