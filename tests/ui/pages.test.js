// Every page in light and dark, on a phone and without JavaScript: readable, accessible, and without faults.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";

import { isAccessible } from "./accessibility.js";
import { visit, world } from "./browser.js";
import { PAGES, viewer } from "./pages.js";

// For people to look at; git does not keep them.
const SCREENSHOTS = new URL("screenshots/", import.meta.url).pathname;
mkdirSync(SCREENSHOTS, { recursive: true });

const LOOKS = {
  light: {},
  dark: { dark: true },
  phone: { width: 320 },
};

for (const { name, path, reads, ready, missing, ...page } of PAGES) {
  const who = viewer(page);
  const expected = missing && /404/;
  for (const [look, options] of Object.entries(LOOKS)) {
    const known = { ...options, who, expected };
    visit(`${name}, ${look}: reads well, and axe finds nothing serious`, known, async (page) => {
      await page.goto(path(world.jobs));
      if (ready) await page.locator(ready).first().waitFor();
      await page.evaluate(() => document.fonts.ready);
      await page.screenshot({ path: `${SCREENSHOTS}${name}-${look}.png`, fullPage: true });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(wide <= (options.width ?? 1280), `the page is ${wide} wide`);
      await isAccessible(page);
    });
  }

  visit(`${name}: reads without JavaScript`, { who, expected, javascript: false }, async (page) => {
    await page.goto(path(world.jobs));
    assert.equal(await page.locator("h1").count(), 1);
    const text = await page.locator("body").innerText();
    for (const words of reads) assert.ok(text.includes(words), `"${words}" is not in ${text}`);
    assert.equal(await page.locator("[data-chart] canvas").count(), 0, "no script has run");
  });
}

visit("every page of the navigation is looked at", { who: "operators" }, async (page) => {
  const links = await page.locator("nav a").evaluateAll((links) => links.map((link) => link.getAttribute("href")));
  const known = PAGES.map(({ path }) => path(world.jobs));
  assert.ok(links.length > 0);
  assert.deepEqual(links.filter((link) => !known.includes(link)), [], "these have no line in pages.js");
});
