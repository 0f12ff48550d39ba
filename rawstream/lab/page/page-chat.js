/* The chat box: what an application does with client.js, and a gate in front of its consumer to hold it by hand.
 *
 * Rule 1: the page is a consumer. It takes the next token when the last one is shown; held, it takes none, and
 *         nothing behind it takes any in its place: not client.js, and with credit not the server.
 * Rule 2: the DOM is touched once per frame, however many tokens came.
 * Rule 3: an answer that was cut, refused or stopped says so; what has come of it stays.
 */
import { batchByFrame, streamChat } from "/client.js";
import { count, seconds } from "/page-format.js";

const FRAME_SHARE = 6; // milliseconds of a frame for taking tokens; the rest is the browser's, to draw them
const ASK_EVERY = 200; // milliseconds between two looks at how far the source is
const BLOCK = 4000; // characters per paragraph: laying out one endless paragraph would cost more with every token
const BLOCKS = 50; // paragraphs that are kept of an answer: a page that shows bounds has one too

/** What the mock source is asked for; a real upstream is left at its own pace. */
const PACES = {
  20: { tokens: 400, tokens_per_second: 20 },
  200: { tokens: 4000, tokens_per_second: 200 },
  2000: { tokens: 40000, tokens_per_second: 2000 },
  null: { tokens: null, tokens_per_second: null },
  fail: { tokens: 400, tokens_per_second: 50, fail_after: 40 },
};

const at = (id) => document.getElementById(id);

/** Opens and shuts in front of the consumer; `once()` lets a single token through. */
class Gate {
  #open = null;
  held = false;

  pass() {
    if (!this.held) return null;
    return new Promise((resolve) => (this.#open = resolve));
  }

  once() {
    this.#open?.();
    this.#open = null;
  }

  hold(held) {
    this.held = held;
    if (!held) this.once();
  }
}

export class ChatBox {
  #gate = new Gate();
  #turn = null;
  #prompt = "";

  constructor() {
    at("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      const prompt = at("prompt").value.trim();
      if (!prompt) return;
      at("prompt").value = "";
      this.send(prompt);
    });
    at("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        at("ask").requestSubmit();
      }
    });
    at("stop").addEventListener("click", () => this.stop());
    at("regenerate").addEventListener("click", () => this.send(this.#prompt));
    at("hold").addEventListener("click", () => this.#hold(!this.#gate.held));
    at("take").addEventListener("click", () => this.#gate.once());
  }

  stop() {
    this.#turn?.stream.cancel();
    this.#gate.once();
  }

  /** Ask; an answer under way is stopped first. */
  async send(prompt) {
    this.stop();
    this.#prompt = prompt;
    const turn = new Turn(prompt, this.#gate);
    this.#turn = turn;
    const focused = document.activeElement;
    this.#able();
    await turn.run();
    if (this.#turn === turn) {
      this.#turn = null;
      this.#hold(false);
      this.#able();
      if (document.activeElement === document.body) (focused?.disabled ? at("prompt") : focused)?.focus?.();
    }
  }

  #hold(held) {
    this.#gate.hold(held);
    at("hold").setAttribute("aria-pressed", String(held));
    at("hold").textContent = held ? "Let it flow" : "Hold";
    this.#able();
  }

  #able() {
    const runs = this.#turn !== null;
    at("stop").disabled = at("hold").disabled = !runs;
    at("take").disabled = !runs || !this.#gate.held;
    at("regenerate").disabled = !this.#prompt;
  }
}

/** One question and its answer. */
class Turn {
  #gate;
  #answer;
  #text;
  #consumed = 0;
  #made = 0;
  #asking = null;
  #over = false; // the server has made and sent everything, whatever of it is still on its way
  #frames = [];
  #arrivals = [];

  constructor(prompt, gate) {
    this.#gate = gate;
    const pace = at("pace").value;
    const credit = Number(at("credit").value) || undefined;
    const question = paragraph("user", prompt);
    this.#answer = paragraph("answer", "");
    this.#answer.setAttribute("aria-busy", "true");
    this.#answer.dataset.state = "streaming";
    this.#text = this.#answer.appendChild(document.createElement("div")).appendChild(new Text());
    at("transcript").querySelector(".empty")?.remove();
    at("transcript").append(question, this.#answer);
    this.stream = streamChat({
      url: "/chat",
      prompt,
      body: PACES[pace] ? { mock: PACES[pace] } : undefined,
      credit,
      onOpen: () => say("Answering."),
      onRetry: ({ attempt, delay, error }) =>
        say(`${error.message}. Connecting again in ${seconds(delay / 1000)} (try ${attempt + 1}).`),
      onMalformed: ({ malformed }) => say(`Left out an event that makes no sense: ${malformed}.`),
    });
    this.#show = batchByFrame((texts) => this.#append(texts.join("")));
  }

  #show;

  async run() {
    say("Connecting.");
    at("transcript").scrollTop = at("transcript").scrollHeight;
    this.#figures();
    const watching = setInterval(() => this.#look(), ASK_EVERY);
    const counting = this.#countFrames();
    try {
      let since = performance.now();
      for await (const { text } of this.stream) {
        this.#consumed += text ? 1 : 0;
        this.#show(text);
        if (this.#gate.held) {
          this.#figures();
          await this.#gate.pass();
          since = performance.now();
        } else if (performance.now() - since > FRAME_SHARE && !document.hidden) {
          await new Promise((resolve) => afterFrame(resolve));
          since = performance.now();
        }
      }
      this.#end(this.stream.state === "stopped" ? "stopped" : "done");
    } catch (error) {
      this.#end("failed", error);
    } finally {
      clearInterval(watching);
      counting.abort();
    }
  }

  #append(text) {
    const transcript = at("transcript");
    const atEnd = transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < 40;
    this.#text.appendData(text);
    if (this.#text.length > BLOCK) {
      // Begin the next paragraph where a line ends anyway, or at a space.
      const data = this.#text.data;
      const cut = Math.max(data.lastIndexOf("\n"), data.lastIndexOf(". ")) + 1;
      if (cut > 0) {
        const rest = this.#text.splitText(cut);
        this.#answer.appendChild(document.createElement("div")).append(rest);
        this.#text = rest;
      }
      if (this.#answer.childElementCount > BLOCKS) this.#answer.firstElementChild.remove();
    }
    if (atEnd) transcript.scrollTop = transcript.scrollHeight;
  }

  #end(state, error) {
    this.#show.flush();
    this.#answer.dataset.state = state;
    this.#answer.setAttribute("aria-busy", "false");
    if (state === "done") this.#made = this.#consumed;
    const told = {
      done: `Done: ${count(this.#consumed)} tokens.`,
      stopped: `Stopped after ${count(this.#consumed)} tokens.`,
      failed: `Failed after ${count(this.#consumed)} tokens: ${error?.message ?? "no reason"}.`,
    }[state];
    const note = paragraph("note", told);
    note.classList.toggle("bad", state === "failed");
    this.#answer.after(note);
    const transcript = at("transcript");
    if (this.#answer.nextElementSibling === transcript.lastElementChild) transcript.scrollTop = transcript.scrollHeight;
    say(state === "failed" ? `${told} “Regenerate” asks again.` : told);
    this.#figures();
  }

  /** How far the source is, as the server says. */
  async #look() {
    if (!this.stream.id || this.#asking || this.#over || document.hidden) return;
    this.#asking = fetch(`/streams/${encodeURIComponent(this.stream.id)}`)
      .then((answer) => (answer.ok ? answer.json() : void (this.#over = true)))
      .then((state) => state && (this.#made = Math.max(this.#made, state.tokens)))
      .catch(() => {}) // the answer itself says when the server has gone
      .finally(() => (this.#asking = null));
    await this.#asking;
    this.#figures();
  }

  #countFrames() {
    const stop = new AbortController();
    const tick = (now) => {
      if (stop.signal.aborted) return;
      this.#frames.push(now);
      this.#arrivals.push(this.#consumed);
      while (this.#frames[0] < now - 1000) {
        this.#frames.shift();
        this.#arrivals.shift();
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    return stop;
  }

  #figures() {
    const passed = (this.#frames.at(-1) - this.#frames[0]) / 1000;
    const ahead = Math.max(0, this.#made - this.#consumed);
    put("made", Math.max(this.#made, this.#consumed));
    put("consumed", this.#consumed);
    put("ahead", ahead);
    if (passed > 0.2) {
      put("arriving", Math.round((this.#arrivals.at(-1) - this.#arrivals[0]) / passed));
      put("fps", Math.round((this.#frames.length - 1) / passed));
    }
  }
}

/** After the next frame has been drawn, or soon where none comes. */
function afterFrame(callback) {
  let called = false;
  const once = () => {
    if (called) return;
    called = true;
    clearTimeout(timer);
    callback();
  };
  const timer = setTimeout(once, 100);
  requestAnimationFrame(once);
}

function put(id, value) {
  at(id).value = value;
  at(id).textContent = count(value);
}

function say(text) {
  at("chat-status").textContent = text;
}

function paragraph(kind, text) {
  const element = document.createElement("div");
  element.className = kind;
  element.textContent = text;
  return element;
}
