// A new fine-tune: files are dropped, and the page of the settings tells what the job would take as they change. Without
// this module the forms do the same by their buttons.

// A file is checked as soon as it is chosen or dropped.
for (const form of document.querySelectorAll("form[data-drop]")) {
  const input = form.querySelector("input[type=file]");
  const told = form.querySelector("[data-told]");
  const send = () => {
    if (!input.files.length) return;
    told.textContent = `${input.files[0].name} is being sent and checked …`;
    form.requestSubmit();
  };
  input.addEventListener("change", send);
  const over = (event, is) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    form.classList.toggle("over", is);
  };
  form.addEventListener("dragover", (event) => over(event, true));
  form.addEventListener("dragleave", (event) => over(event, false));
  form.addEventListener("drop", (event) => {
    over(event, false);
    if (!event.dataTransfer.files.length) return;
    if (event.dataTransfer.files.length > 1) {
      told.textContent = "Drop one file.";
      return;
    }
    input.files = event.dataTransfer.files;
    send();
  });
}
// A file that misses the form would take the place of the page.
for (const name of ["dragover", "drop"]) {
  document.addEventListener(name, (event) => {
    if ([...event.dataTransfer.types].includes("Files")) event.preventDefault();
  });
}

const form = document.querySelector("form[data-new-job]");
const PAUSE = 500; // milliseconds without a change

if (form) {
  let running = null;
  let timer = null;

  const chosen = () => {
    const query = new URLSearchParams();
    for (const [name, value] of new FormData(form)) if (value !== "") query.set(name, value);
    return query;
  };

  // Asks for parts anew, one after the other; what was asked before is given up.
  async function ask(names) {
    running?.abort();
    running = new AbortController();
    const { signal } = running;
    const query = chosen();
    history.replaceState(null, "", `${form.getAttribute("action")}?${query}`);
    names = names.filter((name) => document.getElementById(name));
    for (const name of names) document.getElementById(name).setAttribute("aria-busy", "true");
    for (const name of names) {
      query.set("part", name);
      try {
        const response = await fetch(`${form.getAttribute("action")}?${query}`, { signal, headers: { accept: "text/html" } });
        if (response.redirected) location.reload();
        const page = new DOMParser().parseFromString(await response.text(), "text/html");
        const fresh = page.getElementById(name);
        if (signal.aborted) return;
        const old = document.getElementById(name);
        if (fresh) old.replaceWith(fresh);
        else {
          old.removeAttribute("aria-busy");
          old.replaceChildren(...page.querySelectorAll("main > *:not(h1)"));
        }
        if (name === "estimate") blame(fresh);
      } catch (error) {
        if (error.name === "AbortError") return;
        document.getElementById(name).textContent = "The server does not answer.";
      }
    }
  }

  // Marks the field that the server named.
  function blame(section) {
    for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
    const param = section?.querySelector("[data-param]")?.dataset.param?.split(".").at(-1);
    if (param) form.elements.namedItem(param)?.setAttribute("aria-invalid", "true");
  }

  let wanted = new Set();
  form.addEventListener("input", ({ target }) => {
    wanted.add("estimate");
    if ("reads" in target.dataset) wanted.add("understood");
    clearTimeout(timer);
    timer = setTimeout(() => {
      const names = ["understood", "estimate"].filter((name) => wanted.has(name));
      wanted = new Set();
      ask(names);
    }, PAUSE);
  });
  form.addEventListener("submit", (event) => {
    if (!event.submitter || "start" in event.submitter.dataset) return;
    event.preventDefault();
    ask(["estimate"]);
  });
  // A second click starts no second job.
  form.addEventListener("submit", (event) => {
    if (!event.defaultPrevented) setTimeout(() => { if (event.submitter) event.submitter.disabled = true; });
  });
  addEventListener("pageshow", () => { for (const button of form.querySelectorAll("button")) button.disabled = false; });

  // A validation file that is uploaded comes back to the settings as they are now.
  for (const other of document.querySelectorAll("form[data-drop]")) {
    other.addEventListener("submit", () => {
      const query = chosen();
      query.delete("validation_file");
      other.action = `${other.getAttribute("action").split("?")[0]}?${query}`;
    });
  }

  ask(["understood", "estimate"].filter((name) => "missing" in (document.getElementById(name)?.dataset ?? {})));
}
