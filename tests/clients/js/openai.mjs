// The `openai` package from npm, as its users call it.
import OpenAI from "openai";

import { common, given, report, told } from "./support.mjs";

const messages = [{ role: "user", content: "hello" }];
const client = (url = given.url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });

/** Read a stream to its end, however it ends. `watch` is called with what is known after each chunk. */
async function read(stream, watch = () => {}) {
  const seen = { text: "", texts: [], reasoning: "", chunks: 0, roles: [], finish: [], usage: [], tools: [] };
  Object.assign(seen, { ids: [], models: [] });
  const note = (list, value) => value !== null && value !== undefined && !list.includes(value) && list.push(value);
  try {
    for await (const chunk of stream) {
      seen.chunks += 1;
      note(seen.ids, chunk.id);
      note(seen.models, chunk.model);
      if (chunk.usage) seen.usage.push(chunk.usage);
      for (const { delta, index, finish_reason: reason } of chunk.choices) {
        seen.texts[index] = (seen.texts[index] ?? "") + (delta.content ?? "");
        seen.text = seen.texts[0] ?? "";
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

/** One conversation, its refusal too. */
async function converse(url, asked) {
  try {
    return await read(await ask(client(url), asked));
  } catch (error) {
    const more = { requestId: error.requestID, isApiError: error instanceof OpenAI.APIError };
    return { text: "", error: { ...told(error), ...more } };
  }
}

const behaviours = common(converse);

await report(["openai"], {
  ...behaviours,
  "full stream": async (asked) => {
    const openai = client();
    const whole = await openai.chat.completions.create({ messages, ...asked });
    return {
      ...(await behaviours["full stream"]({ ...asked, stream_options: { include_usage: true } })),
      whole: { text: whole.choices[0].message.content, finish: whole.choices[0].finish_reason, usage: whole.usage },
      without: (await converse(given.url, asked)).usage,
      listed: (await openai.models.list()).data.map(({ id }) => id),
    };
  },
  cancel: async (asked) => {
    const five = (act) => (seen) => (seen.chunks === 5 ? act() : undefined);
    const aborted = await ask(client(), asked);
    const first = await read(aborted, five(() => aborted.controller.abort()));
    const second = await read(await ask(client(), asked), five(() => "break"));
    const controller = new AbortController();
    const third = await read(await ask(client(), asked, { signal: controller.signal }), five(() => controller.abort()));
    return { "controller.abort()": first, break: second, signal: third };
  },
  tools: (asked) => converse(given.url, asked),
  reasoning: (asked) => converse(given.url, asked),
  choices: (asked) => converse(given.url, asked),
});
