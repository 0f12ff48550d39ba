// `useChat` of `@ai-sdk/react`: the hook itself, mounted by React in a document, against POST /api/chat.
import { Window } from "happy-dom";

import { CUTS, given, line, report, told, until } from "./support.mjs";

const window = new Window({ url: "http://127.0.0.1/" });
Object.assign(globalThis, { window, document: window.document, HTMLElement: window.HTMLElement });
globalThis.HTMLIFrameElement = window.HTMLIFrameElement;
const { createElement, useEffect } = await import("react");
const { createRoot } = await import("react-dom/client");
const { useChat } = await import("@ai-sdk/react");
const { DefaultChatTransport } = await import("ai");

/** A mounted chat: `hook()` is what it gave last, `log` what it told. */
async function mount(url, { model, user, id = undefined, resume = false }) {
  const log = { statuses: [], data: [], finishes: [], errors: [] };
  const transport = new DefaultChatTransport({ api: `${url}/api/chat`, body: { model, user } });
  let current;
  function Probe() {
    const chat = useChat({
      id,
      resume,
      transport,
      onData: (part) => log.data.push(part),
      onError: (error) => log.errors.push(told(error)),
      onFinish: ({ message, isAbort, isDisconnect, isError, finishReason }) =>
        log.finishes.push({ id: message.id, isAbort, isDisconnect, isError, finishReason }),
    });
    useEffect(() => {
      current = chat;
      if (log.statuses.at(-1) !== chat.status) log.statuses.push(chat.status);
    });
    return createElement("p", null, chat.messages.map(textOf).join("|"));
  }
  const container = document.createElement("div");
  document.body.append(container);
  const root = createRoot(container);
  root.render(createElement(Probe));
  await until(() => current, "the hook is mounted");
  return { hook: () => current, log, root, shown: () => container.textContent };
}

const textOf = ({ parts }) => parts.filter(({ type }) => type === "text").map(({ text }) => text).join("");
const idle = ({ hook }) => ["ready", "error"].includes(hook().status);

/** What the chat holds now. */
function state({ hook, log, shown }) {
  const { messages, status, error } = hook();
  const last = messages.findLast(({ role }) => role === "assistant");
  return {
    ...log,
    status,
    error: told(error),
    roles: messages.map(({ role }) => role),
    ids: messages.map(({ id }) => id),
    text: last ? textOf(last) : "",
    parts: last ? last.parts.map(({ type, state: at }) => (at ? `${type}:${at}` : type)) : [],
    metadata: last?.metadata ?? null,
    reasoning: (last?.parts ?? []).filter(({ type }) => type === "reasoning").map(({ text }) => text).join(""),
    shown: shown(),
  };
}

/** Send one message and wait for its end; what there is then. */
async function converse(url, asked) {
  const chat = await mount(url, asked);
  await chat.hook().sendMessage({ text: "hello" });
  await until(() => idle(chat), "the chat is idle");
  const seen = state(chat);
  chat.root.unmount();
  return seen;
}

const long = (chat, length = 20) => until(() => state(chat).text.length > length, "some text");

await report(["@ai-sdk/react", "ai", "react"], {
  "full stream": (asked) => converse(given.url, asked),
  reasoning: (asked) => converse(given.url, asked),
  tools: (asked) => converse(given.url, asked),
  parts: (asked) => converse(asked.url, asked),
  regenerate: async (asked) => {
    const chat = await mount(given.url, asked);
    await chat.hook().sendMessage({ text: "hello" });
    await until(() => idle(chat), "the first answer");
    const first = state(chat);
    await chat.hook().regenerate();
    await until(() => idle(chat), "the second answer");
    const second = state(chat);
    await chat.hook().sendMessage({ text: "and now?" });
    await until(() => idle(chat), "the third answer");
    return { first, second, third: state(chat) };
  },
  resume: async (asked) => {
    const watched = await line();
    const chat = await mount(watched.url, { ...asked, id: "chat-1", resume: true });
    await until(() => watched.answers.length, "the resume is answered");
    await until(() => idle(chat), "the chat is idle");
    const before = state(chat);
    await chat.hook().sendMessage({ text: "hello" });
    await until(() => idle(chat), "an answer");
    return { before, after: state(chat), requests: watched.requests, answers: watched.answers };
  },
  cancel: async (asked) => {
    const chat = await mount(given.url, asked);
    const sent = chat.hook().sendMessage({ text: "hello" });
    await long(chat);
    await chat.hook().stop();
    await sent;
    await until(() => idle(chat), "the chat is idle");
    const stopped = state(chat);
    const other = await mount(given.url, asked);
    other.hook().sendMessage({ text: "hello" });
    await long(other);
    other.root.unmount();
    return { stop: stopped, unmount: { text: state(other).text } };
  },
  "error before": async (asked) => {
    const watched = await line();
    return { ...(await converse(watched.url, asked)), requests: watched.requests.length };
  },
  "error after": (asked) => converse(given.url, asked),
  cut: async (asked) => {
    const seen = {};
    for (const cut of CUTS) seen[cut] = await converse((await line({ cut })).url, asked);
    return seen;
  },
  heartbeats: async (asked) => {
    const watched = await line();
    return { ...(await converse(watched.url, asked)), heartbeats: watched.heartbeats };
  },
  "non-ASCII": (asked) => converse(given.url, asked),
});
