// A headless Chromium, and pages in it that are watched: whatever a person does in `visit`, a page must not write an
// error to the console, throw, send a request elsewhere, or break its own Content-Security-Policy.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { chromium } from "playwright-core";

// What `conftest.py` has prepared.
export const world = JSON.parse(process.env.ATTUNE_UI_WORLD);

// Milliseconds that anything may take on a busy machine.
const PATIENCE = 120_000;

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: world.chromium });
});
after(() => browser.close());

// Declares a test in which somebody looks at pages. `who` is the key to sign in with; without it nobody is signed in.
// `expected` matches messages of the console that the test provokes, such as that of a page that is not there.
export function visit(name, options, work) {
  const { who, expected, dark = false, width = 1280, javascript = true } = options;
  test(name, { timeout: 4 * PATIENCE }, async () => {
    const context = await browser.newContext({
      baseURL: world.url,
      colorScheme: dark ? "dark" : "light",
      viewport: { width, height: 900 },
      javaScriptEnabled: javascript,
      reducedMotion: "reduce",
    });
    context.setDefaultTimeout(PATIENCE);
    const faults = watch(context);
    try {
      const page = await context.newPage();
      if (who) await signIn(page, who);
      await work(page, context);
      const unexpected = faults.filter((fault) => !expected?.test(fault));
      assert.deepEqual(unexpected, [], "a page has faults");
    } finally {
      await context.close();
    }
  });
}

// Collects what no page may do.
function watch(context) {
  const faults = [];
  context.on("console", (message) => {
    const { url } = message.location();
    if (["error", "warning"].includes(message.type())) faults.push(`console: ${message.text()} (${url})`);
  });
  context.on("weberror", (fault) => faults.push(`page: ${fault.error().stack}`));
  context.on("request", (request) => {
    const { origin, protocol } = new URL(request.url());
    if (origin !== world.url && protocol !== "data:") faults.push(`elsewhere: ${request.url()}`);
  });
  // The protocol of the browser runs this; the policy of the page does not see it.
  context.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      console.error(`policy: ${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
    });
  });
  return faults;
}

export async function signIn(page, who) {
  await page.goto("/ui/sign-in");
  await page.getByLabel("API key").fill(world.keys[who]);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("button", { name: "Sign out" }).waitFor();
}

// Sends a request to the API, as programs do.
export async function api(who, method, path, body) {
  const headers = { authorization: `Bearer ${world.keys[who]}` };
  if (body && !(body instanceof FormData)) {
    headers["content-type"] = "application/json";
    body = JSON.stringify(body);
  }
  const response = await fetch(world.url + path, { method, headers, body });
  const answer = await response.json();
  assert.ok(response.ok, JSON.stringify(answer));
  return answer;
}
