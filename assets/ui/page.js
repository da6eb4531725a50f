// What every page does with JavaScript; without it, pages read the same. Other modules import from here.

// Times in the reader's own words; the server writes them in UTC.
export function localTimes(root = document) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const date = new Date(time.dateTime);
    if (!Number.isNaN(date.getTime())) {
      time.title = time.textContent;
      time.textContent = date.toLocaleString();
    }
  }
}

// Parts that are asked for anew from time to time, while somebody looks: <div id="…" data-refresh="SECONDS">. Not while
// the focus is in them.
for (const part of document.querySelectorAll("[data-refresh][id]")) {
  setInterval(async () => {
    const old = document.getElementById(part.id);
    if (document.hidden || !old || old.contains(document.activeElement) || old.querySelector(":checked")) return;
    const response = await fetch(location.href, { headers: { accept: "text/html" } }).catch(() => null);
    if (!response?.ok || response.redirected) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html").getElementById(part.id);
    if (!fresh) return;
    localTimes(fresh);
    old.replaceWith(fresh);
  }, 1000 * part.dataset.refresh);
}

// Forms that cannot be taken back ask first: <form data-confirm="…">.
document.addEventListener("submit", (event) => {
  const question = event.target.dataset?.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

localTimes();
