// The whole way of a newcomer through the pages, by their own buttons alone: from a key over a file with faults and a
// table to a specialist that answers beside its base, and to its adapter. Then out again, and in as somebody else.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { isAccessible } from "./accessibility.js";
import { signIn, visit, world } from "./browser.js";
import { HELD_OUT, TICKETS, says } from "./jobs.js";

const NEW = "/ui/fine-tunes/new";
const SUFFIX = "journey";
// Many steps, so that the job surely runs when it is paused at the second point that the page is told of.
const SETTINGS = { Epochs: 10, "Batch size": 1, "Learning rate": 0.002, Rank: 8 };
const EXAMPLES = 150;
const STEPS = EXAMPLES * SETTINGS.Epochs;
// What the browser says of answers that this test provokes: a file with faults, and pages that are not there.
const expected = /status of 400 \(Bad Request\) \(\S+\/ui\/fine-tunes\/new\S*\)|status of 404/;

visit("a newcomer gets from a key to a specialist that nobody else sees", { expected }, async (page) => {
  await page.goto("/ui");
  await page.getByLabel("API key").waitFor();
  await isAccessible(page);
  await signIn(page, "acme");
  await page.goto("/ui/fine-tunes");
  await page.getByRole("link", { name: "New fine-tune" }).click();
  await page.waitForURL((url) => url.pathname === NEW);
  await isAccessible(page);

  await dropFaults(page);
  const file = await dropExamples(page);
  await dropTable(page);
  await seeEstimate(page);
  const path = await start(page);
  const job = path.split("/").at(-1);
  await watch(page);
  await pauseAndResume(page);
  await says(page, "succeeded");
  await isAccessible(page);
  await page.getByText(`Step ${STEPS} of ${STEPS}`).waitFor();
  const model = await tryBesideBase(page);
  await page.goto(path);
  await takeHome(page);

  const own = [
    path, `${path}/points`, `${path}/events`, `${NEW}/settings?training_file=${file}`, `/ui/models/${model}`,
  ];
  for (const address of own) assert.equal((await page.goto(address)).status(), 200, address);
  await page.goto(path);
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("API key").waitFor();
  for (const address of own) {
    await page.goto(address);
    assert.equal(new URL(page.url()).pathname, "/ui/sign-in", address);
  }
  await seeNothing(page, { own, job, file, model });
});

// Drops a file onto the form, as from the desktop.
async function drop(page, name, text) {
  const form = page.locator("form[data-drop]");
  const files = await page.evaluateHandle(([name, text]) => {
    const dropped = new DataTransfer();
    dropped.items.add(new File([text], name));
    return dropped;
  }, [name, text]);
  await form.dispatchEvent("dragover", { dataTransfer: files });
  await form.dispatchEvent("drop", { dataTransfer: files });
}

// A file with faults is not taken; its lines and what to change are shown.
async function dropFaults(page) {
  await drop(page, "broken.jsonl", [TICKETS[0], `${TICKETS[1]},`, '{"prompt": ', TICKETS[2]].join("\n"));
  await page.getByRole("heading", { name: "broken.jsonl was not taken" }).waitFor();
  await page.getByText("It has faults on 2 lines.").waitFor();
  await page.getByText("Line 2 ends with a comma: remove the comma at the end.").waitFor();
  await page.locator("figure.line", { hasText: "Line 3" }).getByText('{"prompt":').waitFor();
  await isAccessible(page);
}

// The same page takes the corrected file and says what was understood of it.
async function dropExamples(page) {
  await drop(page, "letters.jsonl", TICKETS.slice(0, EXAMPLES).join("\n"));
  await page.waitForURL((url) => url.pathname === `${NEW}/settings`);
  const understood = page.locator("#understood");
  await understood.getByText(`Examples${EXAMPLES}`).waitFor();
  const words = await understood.innerText();
  assert.match(words, /Format\s+chats/);
  assert.match(words, /Tokens\s+[\d,]+, [\d,]+ of them learned/);
  await understood.locator("mark.learned", { hasText: '"item"' }).first().waitFor();
  return new URL(page.url()).searchParams.get("training_file");
}

// A table becomes a validation file once somebody has said which column is which.
async function dropTable(page) {
  const cell = (text) => `"${text.replaceAll('"', '""')}"`;
  const rows = HELD_OUT.slice(0, 12).map((line) => JSON.parse(line).messages.map(({ content }) => content));
  const table = rows.map(([letter, entry], index) => [String(index), entry, letter]);
  table.unshift(["number", "entry", "letter"]);
  await drop(page, "cases.csv", table.map((row) => row.map(cell).join(",")).join("\r\n"));
  await page.getByRole("heading", { name: "Which column is which?" }).waitFor();
  await page.getByRole("cell", { name: rows[0][0] }).waitFor();
  await isAccessible(page);
  const chat = page.locator("details", { hasText: "Questions and answers of a chat" });
  if (!(await chat.evaluate((details) => details.open))) await chat.locator("summary").click();
  await chat.getByLabel("Question (user)").selectOption({ label: "letter" });
  await chat.getByLabel("Answer (assistant)").selectOption({ label: "entry" });
  await chat.getByRole("button", { name: "Make the examples" }).click();
  await page.waitForURL((url) => url.pathname === `${NEW}/settings` && url.searchParams.has("validation_file"));
  const understood = page.locator("#understood");
  await understood.getByRole("heading", { name: "Validation file" }).waitFor();
  await understood.getByText("Examples12").waitFor();
  // Its name stands between marks that keep a name which runs from right to left to itself.
  assert.match(await page.locator("#validation_file option:checked").textContent(), /^\u2068cases\.jsonl\u2069 \(file-/);
}

// The estimate follows the settings.
async function seeEstimate(page) {
  const estimate = page.locator("#estimate dl.facts");
  await estimate.waitFor();
  await page.getByLabel("Name of the new model").fill(SUFFIX);
  for (const [label, value] of Object.entries(SETTINGS)) {
    await page.getByLabel(label, { exact: true }).fill(String(value));
  }
  await estimate.getByText(`${SETTINGS.Epochs} epochs, ${STEPS.toLocaleString("en")} steps of 1 examples`).waitFor();
  const before = await estimate.innerText();
  assert.match(before, /rank 8,/);
  await page.getByLabel("Rank", { exact: true }).fill("4");
  await estimate.getByText("rank 4,").waitFor();
  await page.getByLabel("Epochs", { exact: true }).fill("2");
  await estimate.getByText(`2 epochs, ${EXAMPLES * 2} steps`).waitFor();
  assert.match(await estimate.innerText(), /Time\s+\S[^]*Memory at the peak\s+\S[^]*Cost\s+\S/);
  assert.notEqual(await estimate.innerText(), before);
  await page.getByLabel("Rank", { exact: true }).fill(String(SETTINGS.Rank));
  await page.getByLabel("Epochs", { exact: true }).fill(String(SETTINGS.Epochs));
  await estimate.getByText("rank 8,").waitFor();
  await isAccessible(page);
}

async function start(page) {
  await page.getByRole("button", { name: "Start the fine-tune" }).click();
  await page.waitForURL(/\/ui\/fine-tunes\/ftjob-/);
  return new URL(page.url()).pathname;
}

// The curve begins and moves without the page being loaded again.
async function watch(page) {
  await page.evaluate(() => { window.same = true; });
  const said = page.locator("[data-chart=loss] .said");
  await said.waitFor();
  const first = await said.textContent();
  await page.waitForFunction((first) => document.querySelector("[data-chart=loss] .said").textContent !== first, first);
  assert.ok(await page.evaluate(() => window.same), "the page was loaded again");
}

async function pauseAndResume(page) {
  await page.getByRole("button", { name: "Pause" }).click();
  await says(page, "paused");
  await isAccessible(page);
  const step = () => page.locator("#steps progress").evaluate((bar) => bar.value);
  const before = await step();
  assert.ok(before > 0 && before < STEPS, `paused at step ${before}`);
  await page.getByRole("button", { name: "Resume" }).click();
  await page.waitForFunction((before) => document.querySelector("#steps progress")?.value > before, before);
}

// Base and specialist answer side by side, token by token.
async function tryBesideBase(page) {
  await page.getByRole("link", { name: "Try it beside its base" }).click();
  await page.waitForURL((url) => url.pathname === "/ui/playground");
  await page.getByLabel("Prompt", { exact: true }).fill(JSON.parse(HELD_OUT[20]).messages[0].content);
  await page.locator("details", { hasText: "Temperature" }).locator("summary").click();
  await page.getByLabel("Temperature").fill("0");
  await page.getByLabel("Most tokens").fill("48");
  await page.getByRole("button", { name: "Ask" }).click();
  const columns = page.locator(".column");
  const answers = [];
  for (const index of [0, 1]) {
    const column = columns.nth(index);
    const fact = (name) => column.locator(`[data-fact=${name}]`);
    await fact("end").waitFor();
    assert.match(await fact("first").textContent(), /^\d+\.\d\d s$/);
    assert.ok(Number(await fact("speed").textContent()) > 0);
    assert.match(await fact("tokens").textContent(), /^\d+ read.*, \d+ written$/);
    const answer = column.locator("[data-answer]");
    assert.ok((await answer.evaluate((answer) => answer.childNodes.length)) > 1, "an answer came in pieces");
    answers.push(await answer.textContent());
  }
  await page.waitForFunction(() => !document.querySelector(".column[aria-busy]"));
  await isAccessible(page);
  const models = await columns.evaluateAll((columns) => columns.map((column) => column.dataset.model));
  assert.equal(models[0], "demo");
  assert.ok(models[1].includes(SUFFIX), models[1]);
  assert.notEqual(answers[0], answers[1]);
  assert.ok(answers[1].startsWith('{"item":'), answers[1]);
  return models[1];
}

// The adapter is one that other programs read, and the result file has a line for each step.
async function takeHome(page) {
  const take = async (name) => {
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page.getByRole("link", { name }).click(),
    ]);
    return readFileSync(await download.path());
  };
  const files = filesOf(await take("Download the adapter"));
  const [config, weights] = ["adapter_config.json", "adapter_model.safetensors"].map((name) => files.get(name));
  assert.equal(JSON.parse(config).r, SETTINGS.Rank);
  const headed = 8 + Number(weights.readBigUInt64LE(0));
  const tensors = Object.entries(JSON.parse(weights.subarray(8, headed))).filter(([name]) => name !== "__metadata__");
  assert.ok(tensors.length > 0 && tensors.some(([name]) => name.includes("lora_A")));
  const end = Math.max(...tensors.map(([, { data_offsets: [, end] }]) => end));
  assert.equal(headed + end, weights.length, "the tensors fill the file");
  const rows = (await take("Download the result file")).toString().trimEnd().split("\n");
  assert.match(rows[0], /^step,train_loss,.*valid_loss/);
  assert.equal(rows.length, 1 + STEPS);
}

// Returns the files of a tar archive by the last part of their names.
function filesOf(archive) {
  const files = new Map();
  for (let at = 0; at < archive.length && archive[at] !== 0;) {
    const name = archive.toString("utf8", at, archive.indexOf(0, at));
    const size = parseInt(archive.toString("latin1", at + 124, at + 136), 8);
    files.set(name.split("/").at(-1), archive.subarray(at + 512, at + 512 + size));
    at += 512 + 512 * Math.ceil(size / 512);
  }
  return files;
}

// Somebody of another organisation finds nothing of all this.
async function seeNothing(page, { own, job, file, model }) {
  await signIn(page, "rival");
  for (const address of own) assert.equal((await page.goto(address)).status(), 404, address);
  const path = own[0];
  const ask = page.context().request;
  for (const end of ["curves", "stream", "stream?hold=no", "adapter", "result"]) {
    assert.equal((await ask.get(`${path}/${end}`)).status(), 404, end);
  }
  for (const action of ["pause", "resume", "cancel"]) {
    assert.equal((await ask.post(`${path}/${action}`)).status(), 404, action);
  }
  assert.equal((await ask.get(`/ui/fine-tunes/compare?job=${job}&job=${world.jobs.secret}`)).status(), 404);
  const asked = await ask.post("/ui/playground/stream", { form: { model, prompt: "Good morning" } });
  assert.equal(asked.status(), 404);
  for (const address of ["/ui/fine-tunes", "/ui/models", "/ui/playground", "/ui/usage"]) {
    assert.equal((await page.goto(address)).status(), 200);
    const text = await page.locator("body").innerHTML();
    for (const name of [job, file, model, SUFFIX]) assert.ok(!text.includes(name), `${address} shows ${name}`);
  }
  // A file of their own leads to the page on which files and models are chosen.
  await page.goto(NEW);
  await drop(page, "own.jsonl", TICKETS.slice(0, 12).join("\n"));
  await page.waitForURL((url) => url.pathname === `${NEW}/settings`);
  await page.locator("#estimate dl.facts").waitFor();
  const choices = await page.locator("#new-job").innerHTML();
  assert.ok(choices.includes("demo"));
  for (const name of [file, model, "cases.jsonl"]) assert.ok(!choices.includes(name), `${name} can be chosen`);
}
