// The playground: asks each model in a stream of its own and fills its column; copies code. The server's part is
// src/api/ui/playground. Texts of users and models go into the page as text nodes only.

const form = document.getElementById("ask");
const answers = document.getElementById("answers");
const told = document.getElementById("told");
const stopButton = document.getElementById("stop-asking");
// The streams that run.
let running = new Set();

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

// Code can be copied where there is a clipboard, and is marked elsewhere.
function offerCopies(root) {
  for (const button of root.querySelectorAll("[data-copy]")) button.hidden = false;
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2_000);
  } catch {
    getSelection().selectAllChildren(code);
  }
});
offerCopies(document);

// Of all tokens of an answer one can be reached by Tab; the arrow keys go on from it.
function rove(tokens) {
  for (const token of tokens.children) token.tabIndex = token === tokens.firstElementChild ? 0 : -1;
}
for (const tokens of document.querySelectorAll("[data-tokens]")) rove(tokens);
document.addEventListener("keydown", (event) => {
  const token = event.target.closest?.(".token");
  if (!token) return;
  if (event.key === "Escape") { token.blur(); return; }
  const all = token.parentElement;
  const next = {
    ArrowRight: token.nextElementSibling,
    ArrowLeft: token.previousElementSibling,
    Home: all.firstElementChild,
    End: all.lastElementChild,
  }[event.key];
  if (!next) return;
  event.preventDefault();
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

function percent(logprob) {
  const percent = 100 * Math.exp(logprob);
  return percent > 0 && percent < 0.1 ? "below 0.1 %" : `${percent.toFixed(1)} %`;
}

// As parts.rs shows it.
function tokenElement({ text, logprob, top }) {
  const probability = Math.exp(logprob);
  const sureness = probability >= 0.9 ? "sure" : probability >= 0.5 ? "likely" : probability >= 0.1 ? "doubtful" : "rare";
  const line = (one, value) => [element("bdi", { textContent: JSON.stringify(one) }), ` ${percent(value)}`];
  const tip = element("span", { className: "tip", dir: "ltr" }, element("strong", {}, ...line(text, logprob)));
  tip.setAttribute("role", "tooltip");
  for (const [other, value] of top) if (other !== text) tip.append(element("br"), ...line(other, value));
  return element("span", { className: `token ${sureness}`, tabIndex: -1 }, text.replaceAll("\n", "⏎\n"), tip);
}

// The tokens of a piece, in the form of either route.
function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map((token) => ({
      text: token.token,
      logprob: token.logprob,
      top: token.top_logprobs.map((other) => [other.token, other.logprob]),
    }));
  }
  return (logprobs.tokens ?? []).map((text, index) => ({
    text,
    logprob: logprobs.token_logprobs[index],
    top: Object.entries(logprobs.top_logprobs?.[index] ?? {}),
  }));
}

// As the server words amounts.
function money(amount, currency) {
  if (amount === 0 || amount >= 0.01) return `${amount.toFixed(2)} ${currency}`;
  const places = Math.min(12, Math.max(2, 1 - Math.floor(Math.log10(amount))));
  return `${amount.toFixed(places)} ${currency}`;
}

// Yields the documents of a stream of events; ends with it.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice("data: ".length));
    }
  }
}

class Column {
  constructor(section) {
    this.section = section;
    this.model = section.dataset.model;
    this.answer = section.querySelector("[data-answer]");
    this.tokens = section.querySelector("[data-tokens]");
    this.controller = new AbortController();
  }

  fact(name, value) {
    const place = this.section.querySelector(`[data-fact=${name}]`);
    place.textContent = value;
    place.parentElement.hidden = value === "";
  }

  fail(message) {
    const place = this.section.querySelector("[data-fault]");
    place.hidden = false;
    place.firstElementChild.textContent = message;
  }

  async ask(fields) {
    fields.delete("model");
    fields.append("model", this.model);
    this.section.setAttribute("aria-busy", "true");
    try {
      await this.read(fields);
    } catch (error) {
      if (error.name === "AbortError") this.fact("end", "stopped by you");
      else this.fail("The connection to the server was lost.");
    }
    this.section.removeAttribute("aria-busy");
    const keep = this.section.querySelector("[data-keep]");
    keep.value = this.answer.textContent;
    keep.hidden = keep.value === "";
  }

  async read(fields) {
    const begun = performance.now();
    const seconds = (from, to) => (to - from) / 1000;
    const { signal } = this.controller;
    const response = await fetch("/ui/playground/stream", {
      method: "POST", body: fields, signal, headers: { accept: "text/event-stream" },
    });
    if (response.status === 401) { location.reload(); return; }
    if (!response.ok) {
      const body = await response.json().catch(() => null);
      this.fail(body?.error?.message ?? `The server answered with status ${response.status}.`);
      return;
    }
    let first = null;
    let last = begun;
    for await (const document of events(response)) {
      if (document.error) { this.fail(document.error.message); return; }
      const choice = document.choices[0];
      const text = choice?.delta?.content ?? choice?.text ?? "";
      const tokens = tokensOf(choice?.logprobs);
      if (text || tokens.length) {
        last = performance.now();
        if (first === null) {
          first = last;
          this.fact("first", `${seconds(begun, first).toFixed(2)} s`);
        }
        if (text) this.answer.append(text);
        if (tokens.length) {
          this.tokens.append(...tokens.map(tokenElement));
          this.tokens.firstElementChild.tabIndex = 0;
          this.tokens.parentElement.hidden = false;
        }
      }
      if (choice?.finish_reason) {
        this.fact("end", choice.finish_reason === "length" ? "at the most tokens" : "by itself, or at a stop text");
      }
      if (document.usage) this.used(document.usage, seconds(first ?? last, last), seconds(begun, performance.now()));
    }
  }

  // The tokens after the first one came in `writing` seconds; all of it took `whole`.
  used(usage, writing, whole) {
    const { prompt_tokens: prompt, completion_tokens: completion } = usage;
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    const count = (tokens) => tokens.toLocaleString("en");
    this.fact("took", `${whole.toFixed(2)} s`);
    this.fact("speed", completion > 1 && writing > 0 ? ((completion - 1) / writing).toFixed(1) : "");
    this.fact("tokens", `${count(prompt)} read${cached ? ` (${count(cached)} from the cache)` : ""}, ${count(completion)} written`);
    const { price, currency } = this.section.dataset;
    if (!price) { this.fact("cost", "no price is set"); return; }
    const [forPrompt, forCached, forCompletion] = price.split(" ").map(Number);
    const amount = ((prompt - cached) * forPrompt + cached * forCached + completion * forCompletion) / 1e6;
    this.fact("cost", money(amount, currency));
  }
}

function stop() {
  for (const column of running) column.controller.abort();
}

async function ask() {
  stop();
  form.querySelector("#fault")?.remove();
  const fields = new URLSearchParams(new FormData(form));
  const asked = new URLSearchParams(fields);
  asked.append("part", "columns");
  const response = await fetch(form.action, { method: "POST", body: asked, headers: { accept: "text/html" } });
  if (response.redirected) { location.reload(); return; }
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  // The columns, or the words for a fault: of the form, or of the server.
  answers.replaceChildren(...fresh.querySelectorAll(".columns, #fault, .message"));
  offerCopies(answers);
  const columns = [...answers.querySelectorAll("[data-model]")].map((section) => new Column(section));
  running = new Set(columns);
  stopButton.hidden = !columns.length;
  told.textContent = columns.length ? "The models are asked." : "";
  const mine = running;
  await Promise.all(columns.map(async (column) => {
    await column.ask(new URLSearchParams(fields));
    mine.delete(column);
    if (mine === running) told.textContent = `${column.model} has ended.`;
  }));
  if (mine === running) stopButton.hidden = true;
}

form?.addEventListener("submit", (event) => {
  // “Go on with this answer” is a form of its own kind, which leads to a new page.
  if (event.submitter?.name === "keep") return;
  event.preventDefault();
  ask().catch(() => {
    answers.replaceChildren(element("p", { className: "fault", textContent: "The server cannot be reached." }));
  });
});
stopButton?.addEventListener("click", stop);
window.addEventListener("pagehide", stop);
