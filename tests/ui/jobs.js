// Jobs for tests that need one of their own, and files for them.

import { readFileSync } from "node:fs";

import { api } from "./browser.js";

const lines = (name) => {
  const text = readFileSync(new URL(`../../models/demo/tickets/${name}.jsonl`, import.meta.url), "utf8");
  return text.trimEnd().split("\n");
};
export const TICKETS = lines("train");
export const HELD_OUT = lines("heldout");

// Longer than any test takes, on any machine: whoever starts such a job cancels it.
const ENDLESS = { n_epochs: 50, batch_size: 1, learning_rate: 1e-4 };

export async function startJob(examples, hyperparameters = ENDLESS) {
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", new File([TICKETS.slice(0, examples).join("\n")], "letters.jsonl"));
  const file = await api("acme", "POST", "/v1/files", form);
  const method = { type: "supervised", supervised: { hyperparameters } };
  const job = { model: "demo", training_file: file.id, method, suffix: "newcomer" };
  return api("acme", "POST", "/v1/fine_tuning/jobs", job);
}

export const cancel = (job) => api("acme", "POST", `/v1/fine_tuning/jobs/${job.id}/cancel`);

// Waits until a job's page shows this state.
export const says = (page, word) => page.locator(`#standing .state.${word}`).waitFor();
