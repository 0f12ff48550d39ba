// Express as the tutorials have it (`plain`: res.write() and nothing else), and with the wait for 'drain' (`drain`).

import { createRequire } from 'node:module'
import { DONE, frames, stats, tokens } from '../_source.mjs'

const [host, port, discipline] = process.argv.slice(2)
// Modules of the private environment are found by NODE_PATH, which only require() reads.
const express = createRequire(import.meta.url)('express')

const app = express()
app.use(express.json())

app.post('/chat', async (req, res) => {
  res.setHeader('Content-Type', 'text/event-stream')
  res.setHeader('Cache-Control', 'no-cache')
  res.setHeader('Connection', 'keep-alive')
  res.flushHeaders()

  let closed = false
  res.on('close', () => {
    closed = true
  })

  for await (const item of tokens(req.body)) {
    if (closed) break
    for (const text of frames(item, req.body)) {
      const more = res.write(text)
      if (discipline === 'drain' && !more && !closed) {
        await new Promise((resolve) => {
          const go = () => {
            res.off('drain', go)
            res.off('close', go)
            resolve()
          }
          res.on('drain', go)
          res.on('close', go)
        })
      }
    }
  }
  if (closed) return
  res.write(DONE)
  res.end()
})

app.get('/stats', (req, res) => res.json(stats))

app.listen({ host, port: Number(port), backlog: 2048 })
