// A gateway on Node's http: request.pipe(), answer.pipe(). pipe() carries the backpressure.

import { Agent, createServer, request } from 'node:http'

const [host, port, upstream] = process.argv.slice(2)
const agent = new Agent({ keepAlive: true, maxSockets: Infinity, maxFreeSockets: 1024 })
const base = new URL(upstream)

const server = createServer((req, res) => {
  const options = { agent, host: base.hostname, port: base.port, method: req.method, path: req.url }
  const outgoing = request({ ...options, headers: { ...req.headers, host: base.host } }, (answer) => {
    res.writeHead(answer.statusCode, answer.headers)
    answer.pipe(res)
    answer.on('error', () => res.destroy())
  })
  outgoing.on('error', () => {
    if (res.headersSent) res.destroy()
    else res.writeHead(502).end()
  })
  res.on('close', () => {
    if (!res.writableFinished) outgoing.destroy()
  })
  req.pipe(outgoing)
})
server.listen({ host, port: Number(port), backlog: 2048 })
