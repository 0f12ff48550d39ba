// `useChat` of `@ai-sdk/react`: the hook itself, mounted by React in a document, against POST /api/chat.
import { Window } from "happy-dom";

import { common, eachCut, given, line, over, report, told, until } from "./support.mjs";

const window = new Window({ url: "http://127.0.0.1/" });
Object.assign(globalThis, { window, document: window.document, HTMLElement: window.HTMLElement });
globalThis.HTMLIFrameElement = window.HTMLIFrameElement;
const { createElement, useEffect, useState } = await import("react");
const { createRoot } = await import("react-dom/client");
const { useChat } = await import("@ai-sdk/react");
const { DefaultChatTransport } = await import("ai");

/** A mounted chat: `hook()` is what it gave last, `log` what it told; after `settled()` React has shown all of it. */
async function mount(url, { model, user, id = undefined, resume = false }) {
  const log = { statuses: [], data: [], finishes: [], errors: [] };
  const transport = new DefaultChatTransport({ api: `${url}/api/chat`, body: { model, user } });
  let current;
  let asked = 0;
  let marked = 0;
  let setMark;
  function Probe() {
    const [mark, set] = useState(0);
    setMark = set;
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
      marked = mark;
      if (log.statuses.at(-1) !== chat.status) log.statuses.push(chat.status);
    });
    return createElement("p", null, chat.messages.map(textOf).join("|"));
  }
  const container = document.createElement("div");
  document.body.append(container);
  const root = createRoot(container);
  root.render(createElement(Probe));
  await until(() => current, "the hook is mounted");
  // An update of ours comes behind all that the chat has asked React for until now.
  const settled = async () => {
    asked += 1;
    setMark(asked);
    await until(() => marked === asked, "React has rendered");
  };
  return { hook: () => current, log, root, settled, shown: () => container.textContent };
}

const textOf = ({ parts }) => parts.filter(({ type }) => type === "text").map(({ text }) => text).join("");

/** Until nothing is under way any more. */
async function idle(chat) {
  await chat.settled();
  await until(() => ["ready", "error"].includes(chat.hook().status), "the chat is idle");
}

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
    others: (last?.parts ?? []).filter(({ type }) => /^(data-|tool-|dynamic-tool)/.test(type)),
    metadata: last?.metadata ?? null,
    reasoning: (last?.parts ?? []).filter(({ type }) => type === "reasoning").map(({ text }) => text).join(""),
    shown: shown(),
  };
}

/** Send one message and wait for its end; what there is then. */
async function converse(url, asked) {
  const chat = await mount(url, asked);
  await chat.hook().sendMessage({ text: "hello" });
  await idle(chat);
  const seen = state(chat);
  chat.root.unmount();
  return seen;
}

const long = (chat, length = 20) => until(() => state(chat).text.length > length, "some text");

// In turn, because React has the more to show the more of them run at once.
const behaviours = {
  ...common(converse),
  regenerate: async (asked) => {
    const chat = await mount(given.url, asked);
    const after = async (step) => {
      await step();
      await idle(chat);
      return structuredClone(state(chat));
    };
    return {
      first: await after(() => chat.hook().sendMessage({ text: "hello" })),
      second: await after(() => chat.hook().regenerate()),
      third: await after(() => chat.hook().sendMessage({ text: "and now?" })),
    };
  },
  resume: async (asked) => {
    const watched = await line();
    const chat = await mount(watched.url, { ...asked, id: "chat-1", resume: true });
    await until(() => watched.answers.length, "the resume is answered");
    await idle(chat);
    const before = structuredClone(state(chat));
    await chat.hook().sendMessage({ text: "hello" });
    await idle(chat);
    return { before, after: state(chat), requests: watched.requests, answers: watched.answers };
  },
  "comes back": (asked) =>
    eachCut(async (cut) => {
      const id = `chat-${cut}`;
      const lost = await over({ cut, times: 1 }, converse, { ...asked, id });
      const watched = await line();
      const chat = await mount(watched.url, { ...asked, id, resume: true });
      await until(() => watched.answers.length, "the resume is answered");
      await idle(chat);
      return { lost, after: state(chat), requests: watched.requests, answers: watched.answers };
    }),
  cancel: async (asked) => {
    const chat = await mount(given.url, asked);
    const sent = chat.hook().sendMessage({ text: "hello" });
    await long(chat);
    await chat.hook().stop();
    await sent;
    await idle(chat);
    const stopped = state(chat);
    const other = await mount(given.url, asked);
    other.hook().sendMessage({ text: "hello" });
    await long(other);
    other.root.unmount();
    return { stop: stopped, unmount: { text: state(other).text } };
  },
  reasoning: (asked) => converse(given.url, asked),
  tools: (asked) => converse(given.url, asked),
  parts: ({ url, ...asked }) => converse(url, asked),
};
await report(["@ai-sdk/react", "ai", "react"], behaviours, { atOnce: 1 });
