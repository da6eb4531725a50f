// What axe finds on a page that keeps somebody from reading or using it.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

export async function isAccessible(page) {
  await page.evaluate(AXE);
  const { violations, passes } = await page.evaluate(
    (rules) => window.axe.run(document, { runOnly: rules, resultTypes: ["violations", "passes"] }),
    RULES,
  );
  assert.ok(passes.length > 10, "axe has looked");
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  const words = ({ id, nodes }) => nodes.map((node) => `${id}: ${node.html} ${node.failureSummary}`);
  assert.deepEqual(serious.flatMap(words), [], `of ${page.url()}`);
}
