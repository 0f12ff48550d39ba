// What a TypeScript user writes; test_javascript.py has tsc check it. Nothing of it runs.
import { batchByFrame, ChatClient, SseParser, StreamError, streamChat } from "rawstream-client";
import type { ChatEvent, ChatState } from "rawstream-client";
import { StreamingResponse, useStreamingChat, useStreamingResponse } from "rawstream-client/react";

export async function ask(signal: AbortSignal): Promise<string> {
  const stream = streamChat({ url: "/chat", prompt: "hello", signal, credit: 32, retry: { attempts: 3 } });
  let text = "";
  try {
    for await (const event of stream) text += event.text;
  } catch (error) {
    if (error instanceof StreamError && error.retryAfter !== null) return `${error.code} ${error.retryAfter + 1}`;
  }
  // @ts-expect-error: there is no such option
  streamChat({ url: "/chat", promt: "hello" });
  await stream.signal({ steer: "shorter" });
  return stream.id ?? text;
}

export function Chat() {
  const { text, isStreaming, error, send, stop } = useStreamingChat({ url: "/chat", history: true });
  const { regenerate } = useStreamingResponse({ url: "/chat" });
  // @ts-expect-error: the state is not to be written
  useStreamingChat({ url: "/chat" }).text = "";
  return (
    <main>
      <button onClick={() => (isStreaming ? stop() : void send("hello"))}>{error?.message ?? text}</button>
      <button onClick={() => void regenerate()} />
      <StreamingResponse url="/chat" prompt="hello" renderMarkdown={(markdown) => <b>{markdown}</b>} />
    </main>
  );
}

export const client = new ChatClient({ url: "/chat" });
export const state: ChatState = client.getSnapshot();
export const push = batchByFrame<ChatEvent>((events) => events.map((event) => event.text));
export const events: { data: string }[] = new SseParser().feed(new Uint8Array());
