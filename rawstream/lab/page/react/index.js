/**
 * Streamed answers in React 18 and 19: a hook and a component over ../client.js. Plain JavaScript, no build step.
 *
 *     const { text, isStreaming, error, send, stop } = useStreamingChat({ url: "/chat" });
 *
 * Rule 1: one state update per frame, however many tokens arrive (the client batches; React reads its snapshot).
 * Rule 2: an unmounted component has no stream. One that is mounted twice (StrictMode) starts one.
 * Rule 3: the text that is settled is not rendered again: a frame costs what its tokens cost, not what the answer does.
 * Rule 4: nothing takes the focus away: no control disappears or is disabled while it may be focused.
 */

import { createElement as h, memo, useEffect, useMemo, useState, useSyncExternalStore } from "react";

import { ChatClient } from "../client.js";

const UNDER_WAY = new Set(["connecting", "retrying", "streaming"]);
const BLOCK = 2000; // characters that a frame may lay out again

/** A chat with `options.url`: its state, and stable `send`, `stop` and `regenerate`. */
export function useStreamingChat(options) {
  const [client] = useState(() => new ChatClient(options));
  useEffect(() => client.configure(options)); // the newest, and only of renders that came to be
  useEffect(() => client.stop, [client]);
  const state = useSyncExternalStore(client.subscribe, client.getSnapshot, client.getSnapshot);
  return useMemo(() => {
    const { send, stop, regenerate } = client;
    return { ...state, isStreaming: UNDER_WAY.has(state.status), send, stop, regenerate };
  }, [client, state]);
}

export { useStreamingChat as useStreamingResponse };

const STATUS = {
  idle: "",
  connecting: "Waiting for the answer",
  retrying: "The server cannot be reached; trying again",
  streaming: "Answering",
  done: "The answer is complete",
  stopped: "Stopped",
  failed: "",
};

/** The streamed answer to `prompt` (or `messages`), with its controls. Another prompt asks again. */
export function StreamingResponse({
  prompt,
  messages,
  body,
  renderMarkdown,
  onEnd,
  className,
  label = "Answer",
  stopLabel = "Stop",
  regenerateLabel = "Regenerate",
  ...options
}) {
  const { text, status, error, isStreaming, send, stop, regenerate } = useStreamingChat(options);
  const asked = prompt === undefined && messages === undefined ? null : JSON.stringify({ prompt, messages, body });
  useEffect(() => {
    if (asked === null) return undefined;
    let superseded = false;
    send(JSON.parse(asked)).then((last) => superseded || onEnd?.(last));
    return () => {
      superseded = true;
      stop();
    };
    // onEnd is whichever it was when the question was asked: another one is no reason to ask again.
  }, [asked, options.url, send, stop]);
  const again = asked !== null && !isStreaming;
  return h(
    "section",
    { className, "aria-label": label, "data-status": status },
    // Busy until it is complete: a screen reader reads an answer, and not its tokens.
    h("div", { "aria-live": "polite", "aria-busy": isStreaming }, h(Answer, { text, isStreaming, renderMarkdown })),
    h("p", { role: "status", style: VISUALLY_HIDDEN }, STATUS[status]),
    h("p", { role: "alert" }, error ? error.message : null),
    h(
      "p",
      null,
      h(Control, { enabled: isStreaming, onPress: stop, label: stopLabel }),
      " ",
      h(Control, { enabled: again, onPress: regenerate, label: regenerateLabel }),
    ),
  );
}

/** A button that stays focusable: `disabled` would throw the focus away in the moment the answer ends. */
function Control({ enabled, onPress, label }) {
  const onClick = enabled ? () => void onPress() : undefined;
  return h("button", { type: "button", "aria-disabled": !enabled, onClick }, label);
}

function Answer({ text, isStreaming, renderMarkdown }) {
  // Once, at the end: half of a table or of a code fence renders as something else in every frame.
  const rendered = useMemo(
    () => (renderMarkdown && text && !isStreaming ? renderMarkdown(text) : null),
    [text, isStreaming],
  );
  return rendered ?? blocks(text).map((block, index) => h(Block, { key: index, text: block }));
}

const Block = memo(({ text }) => h("div", { style: { whiteSpace: "pre-wrap", overflowWrap: "anywhere" } }, text));

/** The text cut at line ends into pieces of which only the last one still changes. */
function blocks(text) {
  const found = [];
  let start = 0;
  while (text.length - start > BLOCK) {
    const end = text.indexOf("\n", start + BLOCK - 1);
    if (end < 0) break;
    found.push(text.slice(start, end + 1));
    start = end + 1;
  }
  found.push(text.slice(start));
  return found;
}

const VISUALLY_HIDDEN = {
  position: "absolute",
  width: 1,
  height: 1,
  margin: -1,
  overflow: "hidden",
  clipPath: "inset(50%)",
  whiteSpace: "nowrap",
};
