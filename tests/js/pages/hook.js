// A page with the hook, measured: commits of the component, and the frames that the browser drew meanwhile.
import { createElement as h, StrictMode, useLayoutEffect } from "react";
import dom from "react-dom/client";

import { StreamingResponse, useStreamingChat } from "/__test__/lab/react/index.js";

const seen = { commits: 0, chat: null };
let root = null;

function Probe(options) {
  const chat = useStreamingChat(options);
  useLayoutEffect(() => {
    seen.commits += 1;
    seen.chat = chat;
  });
  return h("p", { style: { whiteSpace: "pre-wrap" } }, chat.text);
}

function show(element) {
  root = dom.createRoot(document.getElementById("root"));
  root.render(element);
}

export const mountProbe = (options) => show(h(Probe, options));
export const mountStrict = (props) => show(h(StrictMode, null, h(StreamingResponse, props)));
export const unmount = () => root.unmount();
export const chat = () => seen.chat;

/** Send, and say how it went: tokens, commits, and the times between frames in milliseconds. */
export async function measure(prompt) {
  const times = [];
  let going = true;
  const tick = (now) => {
    times.push(now);
    if (going) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
  const sending = seen.chat.send(prompt); // its own commit, in which the old text goes
  await null;
  const before = seen.commits;
  const end = await sending;
  while (seen.chat.status !== "done") await new Promise(requestAnimationFrame);
  going = false;
  await new Promise(requestAnimationFrame);
  const gaps = times.slice(1).map((time, index) => time - times[index]);
  return {
    status: end.status,
    tokens: end.tokens,
    shown: document.querySelector("p").textContent,
    commits: seen.commits - before,
    frames: times.length,
    gaps,
  };
}
