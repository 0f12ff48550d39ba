// `ai` with `@ai-sdk/openai-compatible`: streamText against /v1, as its users call it.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { jsonSchema, streamText, tool } from "ai";

import { common, given, report, told } from "./support.mjs";

/** One answer, read part by part to its end. `watch` is called after each part. */
async function read(url, { model, user }, { watch = () => {}, ...options } = {}) {
  const provider = createOpenAICompatible({ name: "rawstream", baseURL: `${url}/v1`, includeUsage: true });
  const seen = { text: "", reasoning: "", parts: {}, deltas: 0, calls: [] };
  Object.assign(seen, { aborted: false, errors: [], finish: null, usage: null });
  const result = streamText({
    model: provider(model),
    prompt: "hello",
    providerOptions: { rawstream: { user } },
    onError: ({ error }) => seen.errors.push(told(error)),
    onAbort: () => (seen.aborted = true),
    ...options,
  });
  try {
    for await (const part of result.fullStream) {
      seen.parts[part.type] = (seen.parts[part.type] ?? 0) + 1;
      if (part.type === "text-delta") {
        seen.text += part.text;
        seen.deltas += 1;
      }
      if (part.type === "reasoning-delta") seen.reasoning += part.text;
      if (part.type === "tool-call") seen.calls.push({ name: part.toolName, input: part.input });
      if (part.type === "finish") Object.assign(seen, { finish: part.finishReason, usage: part.totalUsage });
      watch(seen);
    }
  } catch (error) {
    seen.thrown = told(error);
  }
  return seen;
}

const lookup = tool({ description: "looks something up", inputSchema: jsonSchema({ type: "object" }) });

await report(["ai", "@ai-sdk/openai-compatible"], {
  ...common(read),
  cancel: (asked) => {
    const controller = new AbortController();
    const watch = (seen) => seen.deltas >= 5 && controller.abort();
    return read(given.url, asked, { abortSignal: controller.signal, watch });
  },
  tools: (asked) => read(given.url, asked, { tools: { [asked.tool]: lookup } }),
  reasoning: (asked) => read(given.url, asked),
});
