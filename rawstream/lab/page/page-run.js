/* A run of the lab: started, changed and ended over HTTP, watched over the server's own event stream.
 *
 * Rule 1: one event stream at a time, and none while the tab is hidden (a browser has six connections per server).
 * Rule 2: a run that this page started ends with the page.
 */

const JSON_TYPE = { "content-type": "application/json" };

async function call(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: JSON_TYPE,
    body: body === undefined ? undefined : JSON.stringify(body),
    keepalive: method === "DELETE",
  });
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    const message = told.error?.message ?? told.error ?? told.message;
    throw new Error(typeof message === "string" ? message : `the server answered ${answer.status}`);
  }
  return answer.status === 204 ? null : answer.json();
}

export class Run {
  #source = null;
  #ended = false;

  /** `handlers`: `sample(state)` for each one, `ended()` when the run is over. */
  constructor(id, handlers) {
    this.id = id;
    this.handlers = handlers;
    this.onVisibility = () => (document.hidden ? this.#unwatch() : this.#watch());
    document.addEventListener("visibilitychange", this.onVisibility);
    this.#watch();
  }

  static async start(settings, handlers) {
    const { id } = await call("POST", "/lab/runs", settings);
    return new Run(id, handlers);
  }

  change(body) {
    return call("POST", `/lab/runs/${this.id}`, body);
  }

  /** Ends it, here and on the server. Safe to call twice. */
  async end() {
    const gone = this.#ended;
    this.#finish();
    if (!gone) await call("DELETE", `/lab/runs/${this.id}`).catch(() => {}); // it may have ended by itself
  }

  #watch() {
    if (this.#source || this.#ended || document.hidden) return;
    const source = new EventSource(`/lab/runs/${this.id}/events?interval=100`);
    this.#source = source;
    source.onmessage = (event) => {
      this.handlers.sample(JSON.parse(event.data));
    };
    source.onerror = () => {
      if (this.#source !== source) return;
      // A browser comes back after a break and after the end alike; whether there is anything to come back to is asked.
      this.#unwatch();
      call("GET", `/lab/runs/${this.id}`).then(
        ({ over }) => (over ? this.#over() : setTimeout(() => this.#watch(), 500)),
        () => this.#over(),
      );
    };
  }

  #unwatch() {
    this.#source?.close();
    this.#source = null;
  }

  #over() {
    if (this.#ended) return;
    this.#finish();
    this.handlers.ended();
  }

  #finish() {
    this.#ended = true;
    this.#unwatch();
    document.removeEventListener("visibilitychange", this.onVisibility);
  }
}
