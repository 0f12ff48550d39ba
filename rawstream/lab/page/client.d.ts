/** rawstream's browser client. Durations are milliseconds, except `retryAfter` (seconds, as in HTTP). */

export interface ChatMessage {
  role: string;
  content: unknown;
}

export interface RetryPolicy {
  /** How often to try again. Default 2. */
  attempts?: number;
  /** How often to come back to an answer that was cut, in a row without an event of it. Default 8, or `attempts`. */
  resumes?: number;
  /** The first pause is up to this long, each further one up to twice the one before. Default 500. */
  base?: number;
  /** No pause is longer, but for what `Retry-After` asks. Default 10,000. */
  most?: number;
}

export interface Retry {
  /** 1 for the first repetition. */
  attempt: number;
  /** Milliseconds until it is sent. */
  delay: number;
  /** Why. */
  error: StreamError;
}

/** What is asked. With none of them the URL is fetched with GET. */
export interface ChatInput {
  prompt?: string;
  messages?: readonly ChatMessage[];
  /** Further fields of the request's JSON; with `method: "GET"`, of its query. */
  body?: Record<string, unknown>;
}

export interface StreamChatOptions extends ChatInput {
  /** `/chat`, `/stream`, `/text`, or `/v1/chat/completions` of anything OpenAI-compatible. */
  url: string | URL;
  /** Default: POST with something to say, GET without. */
  method?: string;
  headers?: HeadersInit;
  credentials?: RequestCredentials;
  /** Aborting it closes the connection, which stops the generation; the iteration then throws the signal's reason. */
  signal?: AbortSignal;
  /** The source never runs more than this many tokens ahead of what was taken from the iterator. */
  credit?: number;
  /** Where to tell what was consumed. Default: `streams/{id}/credit` beside `url`. */
  creditUrl?: string;
  /** Resume behind this event (`Last-Event-ID`). */
  lastEventId?: string;
  /**
   * Reconnect with `Last-Event-ID` when the answer is cut in the middle. Default: where the server's ids say that it
   * resumes (`/stream`; `/chat` with `on_disconnect`). `true` says so of another server; `false`: never.
   */
  resume?: boolean;
  /** Tries before the first byte of the answer: a number of repetitions, or a policy. `0` or `false`: none. */
  retry?: number | boolean | RetryPolicy;
  /** The longest silence, heartbeats included, before the answer counts as lost. Default 120,000; 0: any. */
  timeout?: number;
  /** Characters of one event at most. Default 1,048,576. */
  maxEvent?: number;
  /** Default: the platform's. */
  fetch?: typeof globalThis.fetch;
  /** The answer has begun: `stream.id` is known. */
  onOpen?: (stream: ChatStream) => void;
  onEvent?: (event: ChatEvent) => void;
  /** An event that makes no sense was left out; the stream goes on. */
  onMalformed?: (event: ChatEvent & { malformed: string }) => void;
  onRetry?: (retry: Retry) => void;
}

export interface ChatEvent {
  /** What it adds to the answer; "" when it adds nothing. */
  text: string;
  /** Its JSON; null where there is none. */
  data: unknown;
  /** Its data as it came. */
  raw: string;
  /** The event's name: "message" unless the server gave one; "text" for a piece of plain text. */
  type: string;
  /** The last event id as of this event. */
  id: string;
  finishReason: string | null;
  /** Why it makes no sense, or null. */
  malformed?: string | null;
}

export type StreamState = "idle" | "connecting" | "retrying" | "streaming" | "done" | "stopped" | "failed";

/**
 * `code` is the server's own, `http_<status>`, or one of: `unreachable`, `idle`, `cut` (no terminal event),
 * `not_a_stream`, `event_too_long`, `not_resumed`, `credit_failed`, `misuse`, `stream_failed`.
 */
export class StreamError extends Error {
  constructor(
    message: string,
    more?: { code?: string; status?: number | null; retryAfter?: number | null; retryable?: boolean; cause?: unknown },
  );
  readonly code: string;
  /** The HTTP status, where the answer was refused. */
  readonly status: number | null;
  /** Seconds after which the server wants to be asked again. */
  readonly retryAfter: number | null;
  /** Whether asking again may help. */
  readonly retryable: boolean;
}

/** One answer. It can be iterated over once; leaving the loop closes the connection. */
export interface ChatStream extends AsyncIterable<ChatEvent> {
  readonly state: StreamState;
  /** `x-stream-id`. It is secret: whoever has it may stop the stream. */
  readonly id: string | null;
  readonly requestId: string | null;
  /** Events with text, handed out. */
  readonly tokens: number;
  /** Times that the answer went on after its connection was lost. While it is lost, `state` is "retrying". */
  readonly resumed: number;
  readonly finishReason: string | null;
  /** What a reconnect would send. */
  readonly lastEventId: string;
  /** Take the whole answer, for the sake of `onEvent` or of its text. */
  run(): Promise<string>;
  /**
   * Tell the answer's source something, beside the stream: anything JSON can hold, 64 KiB at most. Resolves when it
   * waits for the source. Rejects with StreamError: `misuse` before the answer has begun, `unreachable`, or the
   * server's own code (`no_such_stream`, `no_signals`, `too_many_signals`, `body_too_large`).
   */
  signal(value: unknown): Promise<void>;
  /** Leave: the generation is stopped, the connection closed, and the iteration ends without an error. Idempotent. */
  cancel(): void;
}

/** Nothing is sent before the first demand, and nothing is read ahead of the consumer. */
export function streamChat(options: StreamChatOptions): ChatStream;

/** An incremental parser of server-sent events (WHATWG HTML, section 9.2): any chunking gives the same events. */
export class SseParser {
  constructor(options?: { maxEvent?: number; lastEventId?: string });
  readonly lastEventId: string;
  /** The last reconnection time that the server asked for, milliseconds. */
  readonly retry: number | null;
  readonly maxEvent: number;
  /** Throws StreamError `event_too_long`. */
  feed(bytes: Uint8Array): { type: string; data: string; id: string }[];
}

/** What an event of an answer says. Throws StreamError where it tells a failure. */
export function readEvent(message: { type: string; data: string; id: string }): ChatEvent & {
  done: boolean;
  malformed: string | null;
};

export interface Batch<Item> {
  (item: Item): void;
  /** Call back now, if there is anything. */
  flush(): void;
  /** Forget what was pushed. */
  cancel(): void;
}

/** `callback(items)` once per frame with everything pushed since; by a timer while the tab is hidden. */
export function batchByFrame<Item>(callback: (items: Item[]) => void): Batch<Item>;

export interface ChatOptions extends Omit<StreamChatOptions, "prompt" | "messages" | "signal" | "lastEventId"> {
  /** Keep the conversation, and send it whole with each prompt. Default: each prompt stands alone. */
  history?: boolean;
}

export interface ChatState {
  readonly status: StreamState;
  /** The answer under way, or the last one. */
  readonly text: string;
  readonly tokens: number;
  /** With `history`: the turns so far, without the answer under way. */
  readonly messages: readonly ChatMessage[];
  readonly error: Error | null;
  /** While `status` is "retrying". */
  readonly retry: Retry | null;
  readonly streamId: string | null;
  readonly finishReason: string | null;
}

/** A chat box without its looks. All methods may be passed around without the object. */
export class ChatClient {
  constructor(options?: ChatOptions);
  /** As of now. */
  readonly state: ChatState;
  readonly isStreaming: boolean;
  /** Other options, from the next `send` on. */
  configure(options: ChatOptions): void;
  /** Ask, stopping the answer before. Resolves to the state at the answer's end; never rejects. */
  send(input: string | ChatInput): Promise<ChatState>;
  /** Ask the last question again; null when there was none. */
  regenerate(): Promise<ChatState> | null;
  /** Stop the answer under way; what has come of it stays. */
  stop(): void;
  /** `listener()` after each change, at most once per frame while tokens come. Returns the unsubscription. */
  subscribe(listener: () => void): () => void;
  /** The state as it was last told: the same object until the next change. */
  getSnapshot(): ChatState;
}
