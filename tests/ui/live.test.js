// How the pages of running jobs share the six connections that a browser has for a server.

import assert from "node:assert/strict";

import { visit } from "./browser.js";
import { cancel, says, startJob } from "./jobs.js";

const isStream = (request) => /\/stream\?after=\d+$/.test(request.url());
const isLook = (request) => /\/stream\?after=\d+&hold=no$/.test(request.url());

// Waits until the page has moved by itself, so often.
async function moves(page, times) {
  const step = () => page.locator("#steps progress").evaluate((bar) => bar.value);
  for (let time = 0; time < times; time++) {
    const before = await step();
    await page.waitForFunction((before) => document.querySelector("#steps progress")?.value > before, before);
  }
}

// Opens the job's page, to be looked at without loading it again.
async function open(page, path) {
  await page.goto(path);
  await page.evaluate(() => { window.same = true; });
  await says(page, "running");
  await page.locator("[data-chart=loss] canvas").waitFor();
  return page;
}

const isSame = (page) => page.evaluate(() => window.same);

visit("eight pages of a running job all move, four of them by a stream", { who: "acme" }, async (first, context) => {
  const streams = new Map();
  const live = () => new Set([...streams.values()].filter((page) => !page.isClosed()));
  const looks = new Set();
  context.on("request", (request) => {
    if (isStream(request)) streams.set(request, request.frame().page());
    if (isLook(request)) looks.add(request.frame().page());
  });
  for (const end of ["requestfinished", "requestfailed"]) context.on(end, (request) => streams.delete(request));
  const job = await startJob(400);
  const path = `/ui/fine-tunes/${job.id}`;
  try {
    const pages = [await open(first, path)];
    while (pages.length < 8) pages.push(await open(await context.newPage(), path));
    await Promise.all(pages.map((page) => moves(page, 2)));
    const others = pages.filter((page) => !live().has(page));
    assert.equal(others.length, 4, "each of four pages holds a stream");
    assert.ok(others.every((page) => looks.has(page)), "the others look from time to time");

    // Whoever leaves makes room.
    const [closed] = live();
    const [next] = await Promise.all([context.waitForEvent("request", isStream), closed.close()]);
    assert.ok(others.includes(next.frame().page()), "a page that had no place takes it");
    const left = pages.filter((page) => page !== closed);
    await Promise.all(left.map((page) => moves(page, 2)));
    assert.equal(live().size, 4);
    for (const page of left) assert.ok(await isSame(page), "a page was loaded again");
  } finally {
    await cancel(job);
  }
});

visit("a page moves to the end where a browser shares no places", { who: "acme" }, async (page, context) => {
  // As where the page came from another machine without TLS.
  await context.addInitScript(() => {
    Object.defineProperty(Navigator.prototype, "locks", { configurable: true, get: () => undefined });
  });
  const requests = [];
  page.on("request", (request) => requests.push(request));
  const job = await startJob(400);
  try {
    await open(page, `/ui/fine-tunes/${job.id}`);
    await moves(page, 2);
  } finally {
    await cancel(job);
  }
  await says(page, "cancelled");
  assert.ok(await isSame(page), "the page was loaded again");
  assert.ok(requests.some(isLook));
  assert.ok(!requests.some(isStream), "a connection was held");
});

visit("a page that nobody looks at holds no connection", { who: "acme" }, async (page) => {
  const job = await startJob(400);
  const look = (hidden) => page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
  try {
    const [stream] = await Promise.all([page.waitForRequest(isStream), page.goto(`/ui/fine-tunes/${job.id}`)]);
    const [ended] = await Promise.all([page.waitForEvent("requestfailed", isStream), look(true)]);
    assert.equal(ended, stream);
    await Promise.all([page.waitForRequest(isStream), look(false)]);
  } finally {
    await cancel(job);
  }
});
