// The way of somebody who fine-tunes for the first time: a job starts, its curve moves, it is paused and resumed, two
// jobs are compared, the adapter is taken home.

import assert from "node:assert/strict";
import { readFileSync, statSync } from "node:fs";

import { visit, world } from "./browser.js";
import { says, startJob } from "./jobs.js";

visit("a curve moves by itself while a job runs, and stops when the job does", { who: "acme" }, async (page) => {
  const job = await startJob(400);
  const path = `/ui/fine-tunes/${job.id}`;
  await page.goto(path);
  // From here on the page is not loaded again: what it shows comes through its stream.
  await page.evaluate(() => { window.same = true; });
  await says(page, "running");
  await page.locator("[data-chart=loss] canvas").waitFor();
  const said = () => page.locator("[data-chart=loss] .said").textContent();
  const step = () => page.locator("#steps progress").evaluate((bar) => bar.value);
  let [words, at] = [await said(), await step()];
  for (let time = 0; time < 2; time++) {
    await page.waitForFunction(
      ([words, at]) =>
        document.querySelector("[data-chart=loss] .said").textContent !== words &&
        document.querySelector("#steps progress").value > at,
      [words, at],
    );
    [words, at] = [await said(), await step()];
  }
  assert.ok(await page.evaluate(() => window.same), "the page was loaded again");

  await page.getByRole("button", { name: "Pause" }).click();
  await says(page, "paused");
  const events = page.locator("#events");
  await events.getByText("paused").first().waitFor();

  await page.getByRole("button", { name: "Resume" }).click();
  await says(page, "running");
  const before = await step();
  await page.waitForFunction((before) => document.querySelector("#steps progress")?.value > before, before);

  // Whoever does not confirm loses nothing.
  page.once("dialog", (dialog) => dialog.dismiss());
  await page.getByRole("button", { name: "Cancel" }).click();
  await says(page, "running");
  page.once("dialog", (dialog) => dialog.accept());
  await page.getByRole("button", { name: "Cancel" }).click();
  await says(page, "cancelled");
  assert.equal(await page.getByRole("button", { name: "Pause" }).count(), 0);
});

visit("a job is watched to its end, and its adapter taken home", { who: "acme" }, async (page) => {
  const job = await startJob(12, { n_epochs: 1, batch_size: 4 });
  await page.goto(`/ui/fine-tunes/${job.id}`);
  await says(page, "succeeded");
  const download = page.waitForEvent("download");
  await page.getByRole("link", { name: "Download the adapter" }).click();
  const adapter = await (await download).path();
  assert.ok(statSync(adapter).size > 1_000);
  assert.ok(readFileSync(adapter).includes("adapter_config.json"));
  const result = page.waitForEvent("download");
  await page.getByRole("link", { name: "Download the result file" }).click();
  assert.match(readFileSync(await (await result).path(), "utf8"), /^step,/);
});

visit("jobs that are marked in the list are compared", { who: "acme" }, async (page) => {
  await page.goto("/ui/fine-tunes");
  for (const job of [world.jobs.trained, world.jobs.other]) {
    await page.locator(`input[name=job][value="${job}"]`).check();
  }
  await page.getByRole("button", { name: "Compare the marked jobs" }).click();
  await page.locator("#plot canvas").waitFor();
  const settings = page.getByRole("region", { name: "Settings that differ" });
  for (const name of ["n_epochs", "rank", "learning_rate"]) {
    assert.equal(await settings.getByRole("rowheader", { name, exact: true }).count(), 1, name);
  }
  assert.equal(await settings.getByRole("rowheader", { name: "batch_size", exact: true }).count(), 0);
  await page.getByLabel("Across").selectOption("step");
  await page.getByText("Step", { exact: true }).first().waitFor();
  for (const [name, label] of [["Gradient norm", "Gradient norm"], ["Classification: Accuracy", "Accuracy"]]) {
    await page.getByRole("combobox", { name: "Figure" }).selectOption({ label: name });
    await page.locator("#plot .u-label", { hasText: label }).first().waitFor();
  }
  await page.getByRole("combobox", { name: "Figure" }).selectOption({ label: "Loss" });
  await page.locator("#plot .u-label", { hasText: "Training loss" }).first().waitFor();
});

visit("a curve of ten thousand points is thinned, and smoothed as one likes", { who: "acme" }, async (page) => {
  const answer = page.waitForResponse((response) => response.url().includes("/curves"));
  await page.goto(`/ui/fine-tunes/${world.jobs.long}`);
  const { charts } = await (await answer).json();
  for (const { lines } of charts) {
    for (const { step } of lines) {
      assert.ok(step.length > 100 && step.length <= 1_000, `${step.length} points`);
      assert.deepEqual([step[0], step.at(-1)], [1, 10_000]);
    }
  }
  await page.locator("[data-chart=loss] canvas").waitFor();
  const smoother = page.waitForResponse((response) => response.url().includes("smoothing=0.95"));
  await page.getByLabel("Smoothing").fill("0.95");
  assert.ok((await smoother).ok());
  await page.getByLabel("Logarithmic loss").check();
  await page.emulateMedia({ colorScheme: "dark" });
  await page.locator("[data-chart=loss] canvas").waitFor();
});
