// Texts of users that try to be more than text, in names of files and models, suffixes, metadata, errors, answers.

import assert from "node:assert/strict";

import { visit, world } from "./browser.js";
import { PAGES, viewer } from "./pages.js";

const { hostile, hostile_other, hostile_failed } = world.jobs;
const JOBS = { ...world.jobs, trained: hostile, long: hostile, other: hostile_other, failed: hostile_failed };
const [TEXT, MODEL] = world.hostile;
// Pages that show them: text by text, for a page that leaves one out must say so here.
const SHOWN = {
  "fine-tunes": [TEXT, MODEL],
  "fine-tune": [TEXT, MODEL, TEXT.slice(1).replaceAll("/", "\\")],
  "fine-tune-failed": [TEXT, MODEL],
  "points": [TEXT],
  "events": [TEXT],
  "comparison": [TEXT],
};

for (const { name, path, ready, ...known } of PAGES.filter((page) => !page.missing && !page.open)) {
  visit(`${name}: hostile texts stay texts`, { who: viewer(known, "mallory") }, async (page) => {
    const requests = [];
    page.on("request", (request) => requests.push(new URL(request.url()).pathname));
    await page.goto(path(JOBS));
    if (ready) await page.locator(ready).first().waitFor();
    const text = await page.locator("body").innerText();
    for (const shown of SHOWN[name] ?? []) assert.ok(text.includes(shown), `${shown} is not in ${text}`);
    assert.equal(await page.evaluate(() => window.hurt), undefined, "a script has run");
    assert.deepEqual(requests.filter((path) => !path.startsWith("/ui")), [], "nothing was made of them");
    assert.equal(await page.locator("script:not([src]), main img, main svg[onload], [onerror]").count(), 0);
    const turning = await page.evaluate(() => {
      const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      const found = [];
      while (texts.nextNode()) {
        const { data, parentElement } = texts.currentNode;
        const open = data.replace(/\u2068[^\u2069]*\u2069/g, "");
        if (open.includes("\u202e") && !parentElement.closest("bdi, [dir=auto]")) found.push(parentElement.outerHTML);
      }
      return found;
    });
    assert.deepEqual(turning, [], "a text that runs from right to left must turn nothing else around");
  });
}

for (const page of Object.keys(SHOWN)) {
  assert.ok(PAGES.some(({ name }) => name === page), `${page} is no page`);
}
