// Every page. `pages.test.js` looks at each in light, dark, on a phone and without JavaScript; `texts.test.js` with
// texts that try to be more; `session.test.js` as somebody else. A new page gets its line here.
//
// `path` is made of the jobs that `conftest.py` describes. `reads` are words that it shows even without JavaScript,
// `ready` an element that it has once its scripts are done. `open` pages are seen by whoever has not signed in, `admin`
// pages by admins alone, all others as acme. `missing` is for one that is not there.

export const PAGES = [
  { name: "sign-in", path: () => "/ui/sign-in", open: true, reads: ["API key"] },
  {
    name: "fine-tunes",
    path: () => "/ui/fine-tunes",
    reads: ["succeeded", "failed", "Step", "USD"],
    ready: "svg.spark",
  },
  {
    name: "fine-tune",
    path: ({ trained }) => `/ui/fine-tunes/${trained}`,
    reads: [
      "Loss", "lowest", "Estimate and actual", "Answers to validation prompts", "Checkpoints", "letters.jsonl", "ATT-1",
      "Classification", "sorted into classes", "not defined",
    ],
    ready: "[data-chart=loss] canvas",
  },
  { name: "fine-tune-failed", path: ({ failed }) => `/ui/fine-tunes/${failed}`, reads: ["failed", "Code:"] },
  {
    name: "fine-tune-long",
    path: ({ long }) => `/ui/fine-tunes/${long}`,
    reads: ["Step 10000 of 10000"],
    ready: "[data-chart=loss] canvas",
  },
  { name: "points", path: ({ trained }) => `/ui/fine-tunes/${trained}/points`, reads: ["train_loss", "learning_rate"] },
  { name: "events", path: ({ trained }) => `/ui/fine-tunes/${trained}/events`, reads: ["successfully completed"] },
  {
    name: "comparison",
    path: ({ trained, other }) => `/ui/fine-tunes/compare?job=${trained}&job=${other}`,
    reads: ["Last training loss", "Classification of the validation files", "Settings that differ", "n_epochs", "rank"],
    ready: "#plot canvas",
  },
  { name: "new-fine-tune", path: () => "/ui/fine-tunes/new", reads: ["New fine-tune", "A file of examples"] },
  {
    name: "new-distillation",
    path: () => "/ui/fine-tunes/new/distillation",
    reads: ["Learn from a teacher", "Who answers", "What the answers may cost"],
  },
  { name: "playground", path: () => "/ui/playground", reads: ["Playground", "Model 4"] },
  { name: "similarity", path: () => "/ui/playground/texts", reads: ["Similarity of texts"] },
  { name: "models", path: () => "/ui/models", reads: ["Models", "demo"] },
  { name: "usage", path: () => "/ui/usage", reads: ["Usage and cost"] },
  { name: "costs", path: () => "/ui/usage/costs", reads: ["What it costs", "Requests"] },
  { name: "operations", path: () => "/ui/operations", admin: true, reads: ["Operations", "Engines"] },
  { name: "keys", path: () => "/ui/operations/keys", admin: true, reads: ["API keys", "acme"] },
  { name: "not-found", path: () => "/ui/nowhere", reads: ["Not found"], missing: true },
];

// The key that a page is looked at with.
export const viewer = ({ open, admin }, usual = "acme") => (open ? undefined : admin ? "operators" : usual);
