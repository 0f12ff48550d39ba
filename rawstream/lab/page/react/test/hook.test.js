// The hook and the component in React itself, over a document without a screen, against a scripted server.
// tests/js/browser.test.js has the same in Chromium, with real tokens and real frames.
import assert from "node:assert/strict";
import test from "node:test";

import { Window } from "happy-dom";

import { DONE, scripted, token, until } from "../../../../../tests/js/support.js";

let frames = 0;
const window = new Window({ url: "http://127.0.0.1/" });
Object.assign(globalThis, {
  window,
  document: window.document,
  HTMLElement: window.HTMLElement,
  HTMLIFrameElement: window.HTMLIFrameElement,
  requestAnimationFrame: (callback) => setTimeout(() => ((frames += 1), callback()), 16),
  cancelAnimationFrame: clearTimeout,
});
globalThis.navigator ??= window.navigator; // Node has one of its own since 21
const { createElement: h, Profiler, StrictMode, useEffect, version } = await import("react");
const { createRoot } = await import("react-dom/client");
const { renderToString } = await import("react-dom/server");
const { StreamingResponse, useStreamingChat, useStreamingResponse } = await import("../index.js");

const URL_ = "http://127.0.0.1/chat";

/** Mount `element`; gives its container and what takes it away again. */
function mount(t, element) {
  const container = document.createElement("div");
  document.body.append(container);
  const root = createRoot(container);
  root.render(element);
  const unmount = () => {
    root.unmount();
    container.remove();
  };
  t.after(unmount);
  return { container, root, unmount };
}

/** A component that shows the text, and hands what the hook gave it to `seen`. */
function Probe({ seen, ...options }) {
  const chat = useStreamingChat({ url: URL_, ...options });
  useEffect(() => void seen.push(chat));
  return h("p", null, chat.text);
}

test(`the hook's answer, in React ${version}`, async (t) => {
  const seen = [];
  const { fetch } = scripted({ chunks: [token("Hel"), token("lo"), DONE] });
  const { container } = mount(t, h(Probe, { seen, fetch }));
  await until(() => seen.length);
  assert.deepEqual([seen[0].text, seen[0].isStreaming, seen[0].error, seen[0].status], ["", false, null, "idle"]);
  const end = await seen[0].send("hello");
  assert.deepEqual([end.status, end.text], ["done", "Hello"]);
  await until(() => seen.at(-1).status === "done");
  assert.equal(container.textContent, "Hello");
  assert.ok(seen.some((chat) => chat.isStreaming));
  assert.equal(useStreamingResponse, useStreamingChat);
});

test("send, stop and regenerate are the same functions in every render, and see the newest options", async (t) => {
  const seen = [];
  const script = scripted({ chunks: [token("a"), DONE] });
  const { root } = mount(t, h(Probe, { seen, fetch: script.fetch, body: { seed: 1 } }));
  await until(() => seen.length);
  root.render(h(Probe, { seen, fetch: script.fetch, body: { seed: 2 } }));
  await until(() => seen.length === 2);
  await seen[0].send("hello");
  await until(() => seen.at(-1).status === "done");
  for (const name of ["send", "stop", "regenerate"]) {
    assert.ok(
      seen.every((chat) => chat[name] === seen[0][name]),
      name,
    );
  }
  assert.equal(script.calls[0].body.seed, 2);
});

test("a thousand tokens at once are a handful of state updates: never more than frames", async (t) => {
  let commits = 0;
  const seen = [];
  const { fetch } = scripted({ chunks: [Array.from({ length: 1000 }, () => token("x")).join(""), DONE] });
  mount(t, h(Profiler, { id: "p", onRender: () => (commits += 1) }, h(Probe, { seen, fetch })));
  await until(() => seen.length);
  const before = frames;
  await seen[0].send("hello");
  await until(() => seen.at(-1).status === "done");
  assert.equal(seen.at(-1).text.length, 1000);
  // Two that the user brought about come at once: the mount's and the send's.
  assert.ok(commits <= frames - before + 2, `${commits} commits in ${frames - before} frames`);
  assert.ok(commits < 50, `${commits} commits`);
});

test("unmounting closes the stream, and nothing is set afterwards", async (t) => {
  const seen = [];
  const script = scripted({ chunks: [token("a"), "hang"] });
  const { unmount } = mount(t, h(Probe, { seen, fetch: script.fetch }));
  await until(() => seen.length);
  const sending = seen[0].send("hello");
  await until(() => seen.at(-1).text === "a");
  unmount();
  assert.ok(script.calls[0].left);
  assert.equal((await sending).status, "stopped");
});

test("StrictMode mounts twice and starts one stream; another prompt ends it and starts another", async (t) => {
  const script = scripted({ chunks: [token("a"), "hang"] });
  const page = (prompt) => h(StrictMode, null, h(StreamingResponse, { url: URL_, prompt, fetch: script.fetch }));
  const { container, root, unmount } = mount(t, page("one"));
  await until(() => container.textContent.startsWith("a"));
  assert.equal(script.calls.length, 1);
  root.render(page("two"));
  await until(() => script.calls.length === 2);
  assert.deepEqual(
    script.calls.map(({ body, left }) => [body.prompt, left]),
    [
      ["one", true],
      ["two", false],
    ],
  );
  root.render(page("two"));
  await until(() => container.textContent.startsWith("a"));
  assert.equal(script.calls.length, 2, "a render is no question");
  unmount();
  assert.ok(script.calls[1].left);
});

test("assistive technology: polite, busy while it streams, the end announced, an error as an alert", async (t) => {
  const script = scripted({ chunks: [token("a"), "hang"] }, { chunks: ['data: {"error":"broke","code":"x"}\n\n'] });
  const ends = [];
  const element = h(StreamingResponse, {
    url: URL_,
    prompt: "hi",
    fetch: script.fetch,
    onEnd: (s) => ends.push(s.status),
  });
  const { container } = mount(t, element);
  const find = (selector) => container.querySelector(selector);
  await until(() => find("[aria-live]")?.textContent === "a");
  assert.equal(find("[aria-live]").getAttribute("aria-live"), "polite");
  assert.equal(find("[aria-live]").getAttribute("aria-busy"), "true");
  assert.equal(find("[role=status]").textContent, "Answering");
  const [stop, again] = container.querySelectorAll("button");
  stop.focus();
  stop.click();
  await until(() => find("[role=status]").textContent === "Stopped");
  assert.equal(find("[aria-live]").getAttribute("aria-busy"), "false");
  assert.equal(document.activeElement, stop, "the focus stays where it was");
  assert.deepEqual(
    [stop, again].map((button) => button.getAttribute("aria-disabled")),
    ["true", "false"],
  );
  assert.deepEqual(ends, ["stopped"]);
  again.click();
  await until(() => find("[role=alert]").textContent === "broke");
  assert.equal(script.calls.length, 2);
});

test("markdown is rendered once, at the end, and never while the answer grows", async (t) => {
  const rendered = [];
  const renderMarkdown = (text) => {
    rendered.push(text);
    return h("strong", null, text);
  };
  const { fetch } = scripted({ chunks: [token("**a"), token("b**"), DONE] });
  const page = () =>
    h(StreamingResponse, { url: URL_, prompt: "hi", fetch, renderMarkdown: (text) => renderMarkdown(text) });
  const { container, root } = mount(t, page());
  await until(() => container.querySelector("strong"));
  root.render(page());
  await until(() => container.querySelector("strong"));
  assert.deepEqual(rendered, ["**ab**"]);
});

test("text that is settled keeps its nodes: only the last block changes", async (t) => {
  const line = `${"word ".repeat(100)}\n`;
  const chunks = Array.from({ length: 40 }, () => token(line));
  const { fetch } = scripted({ chunks: [...chunks.slice(0, 20), "hang"] }, { chunks: [...chunks, DONE] });
  const { container } = mount(t, h(StreamingResponse, { url: URL_, prompt: "hi", fetch }));
  const live = await until(() => container.querySelector("[aria-live]"));
  await until(() => live.textContent === line.repeat(20));
  const before = [...live.children];
  assert.ok(before.length > 3);
  container.querySelectorAll("button")[0].click();
  await until(() => container.querySelector("[role=status]").textContent === "Stopped");
  assert.ok(before.every((node, index) => live.children[index] === node));
});

test("it renders on a server, where there is no stream", () => {
  assert.match(renderToString(h(StreamingResponse, { url: "/chat", prompt: "hi" })), /aria-busy="false"/);
});
