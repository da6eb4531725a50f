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

// Forms that cannot be taken back ask first: <form data-confirm="…">.
document.addEventListener("submit", (event) => {
  const question = event.target.dataset?.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

localTimes();
