// The mock source that the Node peers share: the same tokens, pacing and counters as _source.py.
// Rule 1: it is pulled; the handler's `for await` is the demand.

import { openSync, writeSync } from 'node:fs'
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises'

const WORDS = `
the of and to in is that it was for on are as with his they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over
`.trim().split(/\s+/)

function makeTokens(count) {
  let state = 1n
  const made = []
  for (let i = 0; i < count; i++) {
    state = (state * 1103515245n + 12345n) % 2147483648n
    made.push(' ' + WORDS[Number(state >> 16n) % WORDS.length])
  }
  return made
}

export const TOKENS = makeTokens(1009)
const TWICE = [...TOKENS, ...TOKENS]

export const stats = { pulled: 0, opened: 0, closed: 0 }

const events = process.env.BENCH_EVENTS_FILE ? openSync(process.env.BENCH_EVENTS_FILE, 'a') : null
const event = (...words) => {
  if (events !== null) writeSync(events, words.join(' ') + '\n')
}

// hrtime is CLOCK_MONOTONIC on Linux, as Python's time.monotonic_ns().
const seconds = () => Number(process.hrtime.bigint()) / 1e9

// Node's timers have whole milliseconds and round down: rounding up keeps a token from coming early.
const until = (due, signal) => sleep(Math.ceil((due - seconds()) * 1000), undefined, { signal })

// Yields strings, or (batch > 1) lists of them. `signal`, where a handler has one, ends a wait.
export async function* tokens({ prompt = '', mock }, signal) {
  const { tokens: limit = 200, tokens_per_second: rate = 50, suspend = false } = mock ?? {}
  const batch = Math.min(mock?.batch || 1, TOKENS.length)
  const number = ++stats.opened
  const name = prompt.includes('#') ? prompt.slice(prompt.lastIndexOf('#') + 1).trim() : number
  let sent = 0
  const opened = process.hrtime.bigint()
  event('open', name, opened)
  const start = Number(opened) / 1e9 + (mock?.first_token_seconds || 0)
  try {
    if (rate === null && start > seconds()) await until(start, signal)
    while (limit === null || sent < limit) {
      if (rate !== null) {
        const due = start + sent / rate
        if (due > seconds()) await until(due, signal)
      } else if (suspend) await turn()
      const at = sent % TOKENS.length
      if (batch === 1) {
        sent++
        stats.pulled++
        yield TOKENS[at]
      } else {
        const ready = limit === null ? batch : Math.min(batch, limit - sent)
        sent += ready
        stats.pulled += ready
        yield TWICE.slice(at, at + ready)
      }
    }
  } finally {
    stats.closed++
    event('close', name, process.hrtime.bigint(), sent)
  }
}

const frame = (token) => `data: ${JSON.stringify({ token })}\n\n`

// The SSE texts of one pull, each to be written by itself: one per token, or one in all where the request says `joined`.
export function frames(item, { joined = false }) {
  if (typeof item === 'string') return [frame(item)]
  const texts = item.map(frame)
  return joined ? [texts.join('')] : texts
}

export const DONE = 'data: [DONE]\n\n'
