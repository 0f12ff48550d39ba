// The `openai` package from npm, as its users call it.
import OpenAI from "openai";

import { CUTS, given, line, report, told } from "./support.mjs";

const messages = [{ role: "user", content: "hello" }];
const client = (url = given.url, options = {}) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", ...options });

/** Read a stream to its end, however it ends. `watch` is called with what is known after each chunk. */
async function read(stream, watch = () => {}) {
  const seen = { text: "", reasoning: "", chunks: 0, roles: [], finish: [], usage: [], ids: [], models: [], tools: [] };
  const note = (list, value) => value !== null && value !== undefined && !list.includes(value) && list.push(value);
  try {
    for await (const chunk of stream) {
      seen.chunks += 1;
      note(seen.ids, chunk.id);
      note(seen.models, chunk.model);
      if (chunk.usage) seen.usage.push(chunk.usage);
      for (const { delta, finish_reason: reason } of chunk.choices) {
        seen.text += delta.content ?? "";
        seen.reasoning += delta.reasoning_content ?? "";
        note(seen.roles, delta.role);
        note(seen.finish, reason);
        for (const call of delta.tool_calls ?? []) {
          const tool = (seen.tools[call.index] ??= { id: "", name: "", arguments: "" });
          tool.id ||= call.id ?? "";
          tool.name += call.function?.name ?? "";
          tool.arguments += call.function?.arguments ?? "";
        }
      }
      if (watch(seen) === "break") break;
    }
    return { ...seen, error: null };
  } catch (error) {
    return { ...seen, error: told(error) };
  }
}

const ask = (openai, asked, options) => openai.chat.completions.create({ messages, stream: true, ...asked }, options);

async function refused(openai, asked) {
  try {
    return await read(await ask(openai, asked));
  } catch (error) {
    return { text: "", error: { ...told(error), requestId: error.requestID, isApiError: error instanceof OpenAI.APIError } };
  }
}

await report(["openai"], {
  "full stream": async (asked) => {
    const openai = client();
    const whole = await openai.chat.completions.create({ messages, ...asked });
    return {
      ...(await read(await ask(openai, { ...asked, stream_options: { include_usage: true } }))),
      whole: { text: whole.choices[0].message.content, finish: whole.choices[0].finish_reason, usage: whole.usage },
      without: (await read(await ask(openai, asked))).usage,
      listed: (await openai.models.list()).data.map(({ id }) => id),
    };
  },
  tools: async (asked) => read(await ask(client(), asked)),
  reasoning: async (asked) => read(await ask(client(), asked)),
  cancel: async (asked) => {
    const five = (act) => (seen) => (seen.chunks === 5 ? act() : undefined);
    const aborted = await ask(client(), asked);
    const first = await read(aborted, five(() => aborted.controller.abort()));
    const second = await read(await ask(client(), asked), five(() => "break"));
    const controller = new AbortController();
    const third = await read(await ask(client(), asked, { signal: controller.signal }), five(() => controller.abort()));
    return { "controller.abort()": first, break: second, signal: third };
  },
  "error before": async (asked) => {
    const watched = await line();
    const seen = await refused(client(watched.url), asked);
    return { ...seen, requests: watched.requests.length };
  },
  statuses: async (asked) => {
    const seen = {};
    for (const status of asked.statuses) {
      const model = asked.model.replace("STATUS", String(status));
      seen[status] = (await refused(client(given.url, { maxRetries: 0 }), { ...asked, statuses: undefined, model })).error;
    }
    return seen;
  },
  "error after": async (asked) => read(await ask(client(), asked)),
  cut: async (asked) => {
    const seen = {};
    for (const cut of CUTS) {
      const cutting = await line({ cut });
      seen[cut] = { ...(await read(await ask(client(cutting.url), asked))), requests: cutting.requests.length };
    }
    return seen;
  },
  heartbeats: async (asked) => {
    const watched = await line();
    const seen = await read(await ask(client(watched.url), asked));
    return { ...seen, heartbeats: watched.heartbeats };
  },
  "non-ASCII": async (asked) => read(await ask(client(), asked)),
});
