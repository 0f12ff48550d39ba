"""What a model server's behaviour means behind rawstream, and which settings it asks for. Pure.

Rule 1: how a server is made is no fault: ``bad`` is what makes an answer wrong, or costs money without end.
Rule 2: what can only be guessed from outside is ``unknown``.
"""

from __future__ import annotations

from typing import Any, Final

from rawstream.doctor.finding import Finding, Verdict, members, plural, size, span
from rawstream.doctor.upstream_probes import KEPT_FOR, SHORT, Freed, Shape, Unread, Whole

_STOP_IT: Final = (
    "only closing its connection stops it: keep --stall-timeout (30 s by default) short, and cap max_tokens"
)
_RUNS_ON: Final = "it does not wait for its reader: what rawstream does not read is made and paid for all the same"
_THROUGH: Final = {"llama.cpp": "/slots", "rawstream": "/debug/streams", "chaos": "/chaos/state"}
_IN_BUFFERS: Final = 64 * 1024
"""Bytes that kernels hold between any two: an answer shorter than that may just lie there."""
_IN_KERNELS: Final = 2000
"""Tokens (some 250 bytes each on OpenAI's wire) that a kernel's send queue takes before its program has to wait."""
_AT_ONCE: Final = 0.2


def listing(told: Whole) -> Finding:
    """``GET /models``."""
    data = members(told.body).get("data")
    if told.status == 200 and isinstance(data, list):
        names = [str(members(one).get("id")) for one in data]
        shown = ", ".join(name[:60] for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return Finding("models", "ok", f"{plural(len(names), 'model')}: {shown}")
    seen = f"GET /models answered {told.status}" if told.status else "GET /models was not answered"
    why = "behind rawstream /v1/models answers the same, and clients that choose from it find nothing"
    return Finding("models", "warn", seen, why, "name the model: --upstream-model")


def ends(seen: Shape) -> Finding:
    """Terminal event, finish_reason, framing."""
    name = "end"
    parts = ["data: [DONE]" if seen.done else "no [DONE]"]
    parts.append(f"finish_reason {', '.join(seen.finish_reasons)}" if seen.finish_reasons else "no finish_reason")
    parts.append(
        {"clean": "a clean end of the framing", "cut": f"cut: {seen.why}", "time": "no end in time"}.get(seen.end, "")
    )
    what = "; ".join(parts)
    if seen.error is not None:
        return Finding(name, "bad", f"the answer failed: {seen.error}", "rawstream tells the client so", "see its log")
    if seen.end == "enough":
        what = f"it goes on past max_tokens ({SHORT}): {plural(seen.tokens, 'token')} until we left"
        why = "nothing bounds an answer but rawstream's --stream-timeout, 30 minutes by default"
        return Finding(name, "warn", what, why, "cap the answers in that server's own settings")
    if seen.end != "clean":
        return Finding(name, "bad", what, "rawstream tells its clients that the answer was cut", "see its log")
    if not seen.done and not seen.finish_reasons:
        why = "an answer that was cut looks the same: rawstream calls each of them failed"
        return Finding(name, "bad", what, why, "a server, or a version, that ends its streams with data: [DONE]")
    if seen.framing == "close":
        why = "a cut between two events is told by the missing [DONE] alone; each request costs a connection"
        return Finding(
            name, "warn", what + ", by closing the connection", why, "a proxy that speaks HTTP/1.1 in front of it"
        )
    if not seen.done:
        why = "rawstream takes finish_reason and a clean end for a whole answer, and sends [DONE] to its clients"
        return Finding(name, "warn", what, why, "nothing")
    if seen.after_done:
        return Finding(
            name, "warn", f"{what}; {plural(seen.after_done, 'event')} after it", "rawstream drops these", "nothing"
        )
    return Finding(name, "ok", what)


def form(seen: Shape) -> Finding:
    """Does it stream, and in OpenAI's form?"""
    name = "stream"
    if not seen.content_type.startswith("text/event-stream"):
        what = f"content-type: {seen.content_type or 'none'}"
        return Finding(name, "bad", what, "rawstream answers 502 to it", "is the URL the one up to and with /v1?")
    first = "none" if seen.first_token is None else span(seen.first_token)
    what = f"{plural(seen.tokens, 'token')} in {plural(seen.arrivals, 'read')}"
    what += f", the first after {first} of {span(seen.seconds)}"
    if not seen.tokens:
        return Finding(name, "bad", what, "there was nothing to say", "another model or prompt")
    if not seen.role:
        what += "; no role in the first delta"
    if seen.tokens >= 10 and seen.arrivals <= 2 and seen.seconds > 1:
        why = "it sends the whole answer at its end, or something before it holds it"
        return Finding(name, "bad", what, why, "see its settings for streaming, and the proxies before it")
    if seen.first_token is not None and seen.first_token > 60:
        why = "rawstream sends heartbeats meanwhile, and gives up after 120 s"
        return Finding(name, "warn", what, why, "--upstream-first-token-timeout, if longer prompts are to come")
    return Finding(name, "ok", what)


def usage(without: Shape, asked: Shape | None) -> Finding:
    """Usage, with and without ``include_usage``."""
    name = "usage"
    if asked is None:
        why = "rawstream always asks for it: every request would be refused"
        return Finding(name, "bad", "it refuses stream_options.include_usage", why, "a version that knows it")
    unasked = f"unasked: {plural(without.usage, 'event')}"
    if not asked.usage and asked.end != "clean":
        return Finding(name, "unknown", "the answer had no end to tell it at")
    if not asked.usage:
        why = "rawstream counts deltas instead, which need not be tokens"
        return Finding(
            name, "warn", f"none, though include_usage was asked for; {unasked}", why, "a version that sends it"
        )
    how = "in an event of its own" if asked.usage_alone else "beside the last choices"
    if asked.usage > 1:
        how += f", {asked.usage} times"
    return Finding(name, "ok", f"with include_usage: {how}; {unasked}")


def not_streamed(told: Whole) -> Finding:
    """``"stream": false``."""
    name = "not streamed"
    body = members(told.body)
    if told.status == 200 and body.get("choices"):
        counted = "with usage" if body.get("usage") else "without usage"
        return Finding(name, "ok", f"one JSON answer, {counted}")
    seen = f"status {told.status}, " + ("no JSON" if told.body is None else "no choices in it")
    return Finding(name, "warn", seen, "clients that do not stream get this", "ask for streams")


def errors(told: Whole) -> Finding:
    """The answer to a model that does not exist."""
    name = "errors"
    error: Any = members(told.body).get("error")
    if told.status == 200:
        return Finding(name, "ok", "an unknown model is answered by the one that is loaded: names do not matter here")
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        code = error.get("code") or error.get("type")
        return Finding(name, "ok", f"unknown model: {told.status}, {code}: {error['message'][:80]}")
    seen = f"unknown model: {told.status}, " + ("no JSON" if told.body is None else "not OpenAI's error object")
    return Finding(name, "warn", seen, "SDKs show the status alone", "rawstream passes the body on as it is")


def heartbeats(*seen: Shape) -> Finding:
    """Pings, as far as they showed."""
    name = "heartbeats"
    count = sum(one.heartbeats for one in seen)
    longest = max((one.first_token or 0.0 for one in seen), default=0.0)
    if count:
        why = "they keep the connection alive, and are no progress: rawstream's idle deadline does not count them"
        return Finding(name, "ok", plural(count, "ping"), why)
    return Finding(name, "ok", f"none in the {span(longest)} before a first token; rawstream sends its own to clients")


def keep_alive(seen: Shape, kept_for: float | None) -> Finding:
    """How long an idle connection is kept (None: to the end of the look), and what ``upstream_pool_idle`` should be."""
    name = "keep-alive"
    if seen.end != "clean":
        return Finding(name, "unknown", "the answer had no end to keep a connection after")
    if not seen.reusable or (kept_for is not None and kept_for < _AT_ONCE):
        what = "the connection is closed after a streamed answer"
        if seen.promised:
            what += f", though its head says keep-alive: {seen.promised[:60]}"
        why = "each request costs a connection, with TLS some round trips more; rawstream sees the end, and dials anew"
        return Finding(
            name, "warn", what, why, "nothing to set in rawstream; keep-alive on that server, where it has it"
        )
    if kept_for is None:
        return Finding(
            name, "ok", f"an idle connection is kept {KEPT_FOR:g} s and longer: above --upstream-pool-idle 4 s"
        )
    what = f"an idle connection is closed after {span(kept_for)}"
    if kept_for > 4.5:
        return Finding(name, "ok", what + ": above --upstream-pool-idle 4 s")
    below = max(0.1, round(kept_for * 0.8, 1))
    why = "a request on a connection that is just being closed has to be sent again"
    return Finding(name, "warn", what, why, f"rawstream serve --upstream-pool-idle {below:g}")


def stops(seen: Unread) -> Finding:
    """Does it stop making tokens when nobody reads?"""
    name = "nobody reads"
    through = _THROUGH.get(seen.eye, "")
    counted = [(at, state.tokens) for at, state in seen.samples if state is not None and state.tokens is not None]
    running = [at for at, state in seen.samples if state is not None]
    later = f"{plural(seen.later, 'token')} ({size(seen.later_bytes)}) within {span(seen.later_seconds)} of reading on"
    if seen.samples and seen.samples[-1][1] is None:
        looked = f", {plural(counted[-1][1], 'token')} at the last look" if counted else ""
        what = f"it made its whole answer within {span(running[-1] if running else 0)}{looked} ({through}), unread"
        if seen.later_bytes < _IN_BUFFERS:
            why = f"the whole of it ({size(seen.later_bytes)}) fits into the network's buffers: that proves nothing"
            return Finding(name, "unknown", what, why, "a longer answer: --prompt")
        return Finding(name, "warn", what, _RUNS_ON, _STOP_IT)
    if not counted:
        if seen.whole and seen.later_bytes >= _IN_BUFFERS:
            return Finding(name, "warn", f"it had made its whole answer: {later}", _RUNS_ON, _STOP_IT)
        why = "only the server knows how many it made (llama.cpp: /slots, rawstream: /debug/streams)"
        return Finding(name, "unknown", later, why, "take it for one that runs on: " + _STOP_IT)
    at, last = counted[-1]
    ahead = plural(last - seen.read, "token")
    if len({count for moment, count in counted if moment >= at - 0.9}) == 1:
        stopped = next(moment for moment, count in counted if count == last)
        what = f"it stopped {span(stopped)} after the reader, {ahead} ahead of it ({through})"
        return Finding(name, "ok", what, "behind rawstream a stalled client stalls it, and costs nothing more")
    pace = f"at {last / at:,.0f} tokens/s" if at else ""
    what = f"still going after {span(at)} without a reader, {ahead} ahead of it, {pace} ({through})"
    if last - seen.read < _IN_KERNELS:
        why = "so many fit into the kernels between; whether it would ever stop does not show in so short a time"
        return Finding(name, "unknown", what, why, "take it for one that runs on: " + _STOP_IT)
    return Finding(name, "warn", what, _RUNS_ON, _STOP_IT)


def frees(seen: Freed, usual: Shape) -> Finding:
    """How soon does a closed connection end the generation?"""
    name = "cancel"
    if seen.ended_early:
        return Finding(name, "unknown", "the answer was over before it could be left", "", "a longer one: --prompt")
    made = "" if seen.made_after is None else f", {plural(seen.made_after, 'token')} made meanwhile"
    if not seen.eye:
        again, before = seen.next_first_token, usual.first_token
        what = "nothing can be asked of it"
        if again is not None and before is not None:
            what += f"; a new request's first token came {span(again)} after the close, {span(before)} before"
        why = "with several slots a new request waits for nobody, so that proves nothing"
        return Finding(name, "unknown", what, why, "look at its own figures (vLLM: /metrics, num_requests_running)")
    if seen.seconds is None:
        what = f"still running {span(seen.watched)} after the connection was closed{made}"
        why = "every client that leaves keeps a slot busy to the end of its answer"
        return Finding(name, "bad", what, why, "a version that notices; cap max_tokens; fewer clients than slots")
    verdict: Verdict = "ok" if seen.seconds < 1 else "warn"
    return Finding(name, verdict, f"free {span(seen.seconds)} after the connection was closed{made}")
