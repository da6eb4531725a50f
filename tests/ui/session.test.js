// Signing in and out, and what others see.

import assert from "node:assert/strict";

import { signIn, visit, world } from "./browser.js";
import { PAGES } from "./pages.js";

visit("whoever is not signed in is asked for a key, and then sees what they wanted", {}, async (page) => {
  const wanted = `/ui/fine-tunes/${world.jobs.trained}`;
  await page.goto(wanted);
  assert.equal(new URL(page.url()).pathname, "/ui/sign-in");
  await page.getByLabel("API key").fill(world.keys.acme);
  await page.keyboard.press("Enter");
  await page.waitForURL((url) => url.pathname === wanted);
  await page.getByRole("heading", { level: 1 }).waitFor();
  assert.ok(!page.url().includes(world.keys.acme), "a key is in no address");
  const stored = await page.evaluate(() => [document.cookie, localStorage.length, sessionStorage.length]);
  assert.deepEqual(stored, ["", 0, 0], "a script finds neither the key nor the session");
});

visit("a wrong key is refused in words, beside the field", { expected: /401/ }, async (page) => {
  await page.goto("/ui/sign-in");
  const field = page.getByLabel("API key");
  await field.fill("sk-attune-nothing");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("alert").waitFor();
  assert.equal(await field.getAttribute("aria-invalid"), "true");
  assert.equal(await field.getAttribute("aria-describedby"), await page.getByRole("alert").getAttribute("id"));
});

visit("signing out ends it, also for the way back", { who: "acme" }, async (page) => {
  await page.goto(`/ui/fine-tunes/${world.jobs.trained}`);
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("API key").waitFor();
  await page.goBack();
  await page.getByLabel("API key").waitFor();
  await page.goto("/ui/fine-tunes");
  await page.getByLabel("API key").waitFor();
});

visit("signing in and out works without JavaScript", { who: "acme", javascript: false }, async (page) => {
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("API key").waitFor();
});

visit("by keyboard alone one gets to a job", { who: "acme" }, async (page) => {
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "main", "the first stop skips the navigation");
  const link = `/ui/fine-tunes/${world.jobs.trained}`;
  const focused = () => page.evaluate(() => document.activeElement.getAttribute("href"));
  for (let stops = 0; (await focused()) !== link; stops++) {
    assert.ok(stops < 100, "the job cannot be reached by Tab");
    await page.keyboard.press("Tab");
  }
  await page.keyboard.press("Enter");
  await page.waitForURL((url) => url.pathname === link);
  const plot = page.locator("[data-chart=loss] .plot");
  await plot.locator("canvas").waitFor();
  await plot.focus();
  await page.keyboard.press("ArrowRight");
  assert.match(await page.locator("#told").textContent(), /^Step 1: Training loss /);
});

for (const { name, path } of PAGES.filter((page) => page.admin)) {
  visit(`${name}: only admins see it`, { who: "acme", expected: /403/ }, async (page) => {
    assert.equal((await page.goto(path(world.jobs))).status(), 403);
    assert.equal(await page.locator(`nav a[href="${path(world.jobs)}"]`).count(), 0);
  });
}

for (const { name, path } of PAGES.filter((page) => !page.missing && !page.open && !page.admin)) {
  visit(`${name}: others see nothing of acme's`, { who: "rival", expected: /404/ }, async (page) => {
    const answer = await page.goto(path(world.jobs));
    const text = await page.locator("body").innerHTML();
    if (answer.status() !== 404) {
      assert.equal(answer.status(), 200);
      for (const [job, id] of Object.entries(world.jobs)) {
        if (job !== "secret") assert.ok(!text.includes(id), `${job} is shown`);
      }
    }
    // The address that was asked for stands in the message.
    for (const words of ["letters.jsonl", "held-out.jsonl", "acme", "ATT-1", "slower"]) {
      assert.ok(!text.includes(words), `"${words}" is shown`);
    }
  });
}

visit("rival sees its own job", { who: "rival" }, async (page) => {
  await page.goto("/ui/fine-tunes");
  assert.ok((await page.locator("main").innerText()).includes(world.jobs.secret));
});

visit("two people in one browser, one after the other, are not mixed", { who: "acme" }, async (page) => {
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("API key").waitFor();
  await signIn(page, "rival");
  await page.goto("/ui/fine-tunes");
  const text = await page.locator("body").innerText();
  assert.ok(text.includes("rival") && !text.includes(world.jobs.trained));
});
