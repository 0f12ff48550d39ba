"""What is kept in Redis of a generation that several processes share, and the scripts that keep it in order.

``rawstream:stream:<id>``      a hash: owner, fence, state, user, dialect, path, and whether its end was seen
``rawstream:log:<id>``         a stream: the generation's frames, in batches, and its end
``rawstream:chat:<digest>``    which generation answers a user's chat
``rawstream:key:<digest>``     which generation an ``Idempotency-Key`` began
``rawstream:process:<name>``   a process that lives: it expires when it is not renewed
``rawstream:processes``        a sorted set: those that take new connections, by when their leases end
``rawstream:control:<name>``   a stream: what others have to say to that process

Rule 1: an entry's id says what it holds: ``<n>-0`` is a batch whose last event is number n, ``<n>-1`` the end after it.
        Redis takes no id twice and none that is smaller: what is sent again after a lost answer changes nothing.
Rule 2: an entry says at which byte (``s``) it begins. Who reads sees what overlaps, and what is missing.
Rule 3: only who knows the fence may write, and sealing a log changes it: nobody adds to what was declared lost.
Rule 4: every key expires.

The keys of one script belong together, but not on one node of a cluster: this wants one Redis (with its replicas).
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "rawstream"
MOST_CONTROL: Final = 100_000
"""Messages that wait for one process, about. It drops those it has read."""

BEGIN: Final = """
local function claim(at, said, once)
  if once ~= '' and redis.call('EXISTS', at) == 1 then return end
  redis.call('SET', at, said, 'PX', ARGV[1])
end
if ARGV[3] ~= '' then
  local said = redis.call('GET', KEYS[3])
  if said and ARGV[4] == '' then
    local state = redis.call('HGET', 'rawstream:stream:' .. string.match(said, '^%S+'), 'state')
    if state and state ~= 'lost' then return said end
  end
  claim(KEYS[3], ARGV[3], ARGV[4])
end
if ARGV[2] ~= '' then claim(KEYS[2], ARGV[2], ARGV[4]) end
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('HSET', KEYS[1], unpack(ARGV, 5)) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return ''
"""
"""KEYS: stream, chat, key. ARGV: ttl, id for the chat ('' none), id and digest for the key ('' none), again (''
not: then a key that is taken ends it), fields and values. Answers what the key stands for, or ''."""

PUBLISH: Final = """
local answer, well, from = {}, true, 1
for i, batch in ipairs(cmsgpack.unpack(ARGV[1])) do
  local stream, fence, events, start, size, oldest, ttl, ended = unpack(batch)
  local data = string.sub(ARGV[2], from, from + size - 1)
  from = from + size
  local about, log = 'rawstream:stream:' .. stream, 'rawstream:log:' .. stream
  local said = redis.call('HGET', about, 'fence')
  answer[i] = 1
  if said ~= fence then
    well = false
    answer[i] = said and -1 or 0
  else
    if data ~= '' then
      local went = redis.pcall('XADD', log, 'MINID', '~', oldest, events .. '-0', 's', start, 'd', data)
      if type(went) == 'table' and went.err and not string.find(went.err, 'equal or smaller') then
        redis.call('XADD', log, events .. '-0', 's', start, 'd', data)
      end
    end
    if ended ~= '' then
      redis.pcall('XADD', log, events .. '-1', 's', start + #data, 'e', ended)
      redis.call('HSET', about, 'state', 'ended')
    end
    if ttl > 0 then
      redis.call('PEXPIRE', about, ttl)
      redis.call('PEXPIRE', log, ttl)
    end
  end
end
return well and '' or answer
"""
"""ARGV: a list in MessagePack, of each: stream, fence, number of the last event, start, length of the frames, oldest
event kept, ttl (0 as it is), end ('' not yet); then the frames of all. Answers '' when all is written; else of each 1:
written; 0: nothing is known of it; -1: it was sealed."""

FETCH: Final = """
local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
if #entries == 0 then
  entries = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if #entries == 0 then return {'', 0, '', ''} end
  local fields, at = entries[1][2], 0
  for i = 1, #fields, 2 do
    if fields[i] == 's' then at = at + fields[i + 1] elseif fields[i] == 'd' then at = at + #fields[i + 1] end
  end
  return {entries[1][1], at, '', ''}
end
local first, pos, last, ended, parts = 0, nil, '', '', {}
for _, entry in ipairs(entries) do
  local start, data, tail = 0, '', ''
  for i = 1, #entry[2], 2 do
    local name, value = entry[2][i], entry[2][i + 1]
    if name == 's' then start = tonumber(value) elseif name == 'd' then data = value else tail = value end
  end
  if pos == nil then first, pos = start, start end
  if start > pos then break end
  if start + #data > pos then
    parts[#parts + 1] = string.sub(data, pos - start + 1)
    pos = start + #data
  end
  last, ended = entry[1], tail
end
return {last, first, table.concat(parts), ended}
"""
"""KEYS: log. ARGV: id after which, most entries. Answers the last entry's id, where the frames begin, the frames, the
end ('' not there). Without any: where the log ends, and id '' when it holds nothing at all."""

FIND: Final = """
local about = redis.call('HGETALL', KEYS[1])
local owner = redis.call('HGET', KEYS[1], 'owner')
return {about, owner and redis.call('EXISTS', 'rawstream:process:' .. owner) or 0}
"""
"""KEYS: stream. Answers its fields and values, and whether its owner lives."""

SEEN: Final = "if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'seen', '1') end"
"""KEYS: stream."""

LEADS: Final = "return redis.call('GET', KEYS[1])"
"""KEYS: chat or key. Answers what it stands for."""

SEAL: Final = """
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return 1 end
redis.call('HSET', KEYS[1], 'state', 'lost', 'fence', '')
local last, at = '0', 0
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if newest then
  last = string.match(newest[1], '^%d+')
  for i = 1, #newest[2], 2 do
    local name, value = newest[2][i], newest[2][i + 1]
    if name == 's' then at = at + value elseif name == 'd' then at = at + #value end
  end
end
redis.pcall('XADD', KEYS[2], last .. '-1', 's', at, 'e', ARGV[1])
redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
return 1
"""
"""KEYS: stream, log, its owner's process. ARGV: the end. Answers 0 when the owner lives, else 1: the log has ended."""

SEND: Final = """
local answer = {}
for i = 1, #KEYS / 2 do
  answer[i] = 0
  if redis.call('EXISTS', KEYS[2 * i - 1]) == 1 and
    redis.call('XADD', KEYS[2 * i], 'NOMKSTREAM', 'MAXLEN', '~', ARGV[1], '*', 'm', ARGV[i + 1]) then answer[i] = 1 end
end
return answer
"""
"""KEYS: process and control, for each message. ARGV: most messages that may wait, the messages. Answers of each 0 when
the process does not live."""

LIVE: Final = """
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[1])
local now = redis.call('TIME')[1] * 1000
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
if ARGV[4] ~= '' then
  redis.call('ZREM', KEYS[3], KEYS[1])
else
  redis.call('ZADD', KEYS[3], now + ARGV[1], KEYS[1])
end
redis.call('PEXPIRE', KEYS[3], ARGV[1])
local answer = {redis.call('PEXPIRE', KEYS[2], 12 * ARGV[1]), redis.call('ZCARD', KEYS[3])}
if ARGV[4] == '' then answer[2] = answer[2] - 1 end
if answer[1] == 0 then
  redis.call('XADD', KEYS[2], '*', 'm', '')
  redis.call('PEXPIRE', KEYS[2], 12 * ARGV[1])
else
  redis.call('XTRIM', KEYS[2], 'MINID', '~', ARGV[3])
end
for i = 4, #KEYS do answer[i - 1] = redis.call('EXISTS', KEYS[i]) end
return answer
"""
"""KEYS: own process and control, all processes, others' processes. ARGV: ttl, what to say of oneself, id of the last
message read, '' or that it takes no more connections. Answers 0 when the control stream was not there (any more), how
many others take connections, and for each other whether it lives."""

TOUCH: Final = "for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[1]) end"
"""KEYS: any. ARGV: ttl."""

FORGET: Final = "return redis.call('DEL', unpack(KEYS))"
"""KEYS: any."""
