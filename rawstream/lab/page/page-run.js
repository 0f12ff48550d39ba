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

  /** `url`: the run's own. `handlers`: `sample(state)` for each one, `ended(state)` when the run is over (null: gone). */
  constructor(url, handlers) {
    this.url = url;
    this.handlers = handlers;
    this.onVisibility = () => (document.hidden ? this.#unwatch() : this.#watch());
    document.addEventListener("visibilitychange", this.onVisibility);
    this.#watch();
  }

  /** `kind`: the path under which runs of this kind are started. */
  static async start(settings, handlers, kind = "/lab/runs") {
    const { id } = await call("POST", kind, settings);
    return new Run(`${kind}/${id}`, handlers);
  }

  change(body) {
    return call("POST", this.url, body);
  }

  /** Ends it, here and on the server. Safe to call twice. */
  async end() {
    const gone = this.#ended;
    this.#finish();
    if (!gone) await call("DELETE", this.url).catch(() => {}); // it may have ended by itself
  }

  #watch() {
    if (this.#source || this.#ended || document.hidden) return;
    const source = new EventSource(`${this.url}/events?interval=100`);
    this.#source = source;
    source.onmessage = (event) => {
      this.handlers.sample(JSON.parse(event.data));
    };
    source.onerror = () => {
      if (this.#source !== source) return;
      // A browser comes back after a break and after the end alike; whether there is anything to come back to is asked.
      this.#unwatch();
      call("GET", this.url).then(
        (state) => (state.over ? this.#over(state) : setTimeout(() => this.#watch(), 500)),
        () => this.#over(null),
      );
    };
  }

  #unwatch() {
    this.#source?.close();
    this.#source = null;
  }

  #over(state) {
    if (this.#ended) return;
    this.#finish();
    this.handlers.ended(state);
  }

  #finish() {
    this.#ended = true;
    this.#unwatch();
    document.removeEventListener("visibilitychange", this.onVisibility);
  }
}
