// Node's own http server with backpressure: write() says false, so wait for 'drain'.

import { once } from 'node:events'
import { createServer } from 'node:http'
import { json } from 'node:stream/consumers'
import { DONE, frames, stats, tokens } from '../_source.mjs'

const [host, port] = process.argv.slice(2)

async function chat(req, res) {
  const leaving = new AbortController()
  res.on('close', () => leaving.abort())
  const { signal } = leaving
  try {
    const body = await json(req)
    res.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' })
    for await (const item of tokens(body, signal)) {
      for (const text of frames(item, body)) {
        if (!res.write(text)) await once(res, 'drain', { signal })
      }
    }
    res.end(DONE)
  } catch (error) {
    if (!signal.aborted) throw error
  }
}

const server = createServer((req, res) => {
  if (req.url === '/stats') {
    res.setHeader('Content-Type', 'application/json')
    res.end(JSON.stringify(stats))
  } else chat(req, res)
})
server.listen({ host, port: Number(port), backlog: 2048 })
