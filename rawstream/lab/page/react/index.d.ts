import type { ReactElement, ReactNode } from "react";

import type { ChatInput, ChatOptions, ChatState } from "../client.js";

export interface StreamingChat extends ChatState {
  /** From `send` to the answer's end, pauses before a repetition included. */
  readonly isStreaming: boolean;
  /** Ask, stopping the answer before. Resolves to the state at the answer's end; never rejects. Stable. */
  readonly send: (input: string | ChatInput) => Promise<ChatState>;
  /** Stop the answer under way; what has come of it stays. Stable. */
  readonly stop: () => void;
  /** Ask the last question again; null when there was none. Stable. */
  readonly regenerate: () => Promise<ChatState> | null;
}

/**
 * A chat with `options.url`. At most one state update per frame; unmounting closes the stream. Options may be a new
 * object in every render; they count from the next `send` on.
 */
export function useStreamingChat(options: ChatOptions): StreamingChat;
export { useStreamingChat as useStreamingResponse };

export interface StreamingResponseProps extends ChatOptions, ChatInput {
  /** What to show instead of the plain text once the answer has ended. Called once per answer. */
  renderMarkdown?: (text: string) => ReactNode;
  /** The answer has ended: done, stopped or failed. */
  onEnd?: (state: ChatState) => void;
  className?: string;
  /** The name of the region. Default "Answer". */
  label?: string;
  stopLabel?: string;
  regenerateLabel?: string;
}

/** The streamed answer to `prompt` or `messages`, accessible, with controls to stop and to regenerate. */
export function StreamingResponse(props: StreamingResponseProps): ReactElement;
