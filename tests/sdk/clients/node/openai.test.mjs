// OpenAI's package for Node.js. Run by `test_clients.py` with the server's address in ATTUNE_URL.

import assert from "node:assert/strict";
import { createReadStream, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import OpenAI from "openai";

const WIDTH = 256; // of the demo model's vectors
const client = new OpenAI({ baseURL: process.env.ATTUNE_URL + "/v1", maxRetries: 0, timeout: 60_000 });
const folder = mkdtempSync(join(tmpdir(), "attune-node-"));
after(() => rmSync(folder, { recursive: true }));

const training = join(folder, "train.jsonl");
const lines = readFileSync(join(process.env.ATTUNE_DEMO, "tickets", "train.jsonl"), "utf8").split("\n");
writeFileSync(training, lines.slice(0, 20).join("\n") + "\n");

const near = (one, other) => one.every((value, at) => Math.abs(value - other[at]) < 1e-6);

test("a completion is the same whole and streamed", async () => {
  const question = { model: "demo", prompt: "On Friday", max_tokens: 16, temperature: 0 };
  const { data: whole, request_id } = await client.completions.create(question).withResponse();
  assert.match(request_id, /^req_/);
  let text = "";
  for await (const chunk of await client.completions.create({ ...question, stream: true })) {
    text += chunk.choices[0].text;
  }
  assert.equal(text, whole.choices[0].text);
  assert.ok(["stop", "length"].includes(whole.choices[0].finish_reason));
});

test("a chat streams through the helper, with its usage", async () => {
  const stream = client.chat.completions.stream({
    model: "gpt-4o-mini",
    messages: [{ role: "user", content: "Hello" }],
    max_tokens: 12,
    stream_options: { include_usage: true },
  });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const answer = await stream.finalChatCompletion();
  assert.equal(answer.choices[0].message.content, text);
  assert.equal(answer.model, "gpt-4o-mini");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test("an embedding comes packed by default and has the model's width", async () => {
  const packed = await client.embeddings.create({ model: "text-embedding-3-small", input: ["a", "b"] });
  const plain = await client.embeddings.create({
    model: "text-embedding-3-small",
    input: ["a", "b"],
    encoding_format: "float",
  });
  for (const [at, item] of packed.data.entries()) {
    assert.equal(item.index, at);
    assert.equal(item.embedding.length, WIDTH);
    assert.ok(near(item.embedding, plain.data[at].embedding));
  }
});

test("a file from a stream on disk becomes a model", async () => {
  // Sent in chunks without a length, and the file before its purpose.
  const file = await client.files.create({ file: createReadStream(training), purpose: "fine-tune" });
  assert.equal(file.filename, "train.jsonl");
  assert.equal(await (await client.files.content(file.id)).text(), readFileSync(training, "utf8"));

  let job = await client.fineTuning.jobs.create({
    model: "gpt-4o-mini",
    training_file: file.id,
    suffix: "node",
    method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 1, batch_size: 4 } } },
    metadata: { team: "a b" },
  });
  assert.equal(job.model, "gpt-4o-mini");
  const mine = await client.fineTuning.jobs.list({ metadata: { team: "a b" }, limit: 5 });
  assert.ok(mine.data.some((other) => other.id === job.id));
  for (let tries = 0; job.status !== "succeeded" && tries < 600; tries++) {
    assert.ok(!["failed", "cancelled"].includes(job.status), JSON.stringify(job.error));
    await sleep(200);
    job = await client.fineTuning.jobs.retrieve(job.id);
  }
  assert.equal(job.status, "succeeded");
  const messages = [];
  for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 3 })) messages.push(event.message);
  assert.ok(messages.some((message) => message.includes(job.fine_tuned_model)));
  assert.ok(messages.length > 3, "the list was followed over its pages");

  const listed = [];
  for await (const model of client.models.list()) listed.push(model.id);
  assert.ok(listed.includes(job.fine_tuned_model));
  const answer = await client.chat.completions.create({
    model: job.fine_tuned_model,
    messages: [{ role: "user", content: "Hello" }],
    max_tokens: 4,
  });
  assert.equal(answer.model, job.fine_tuned_model);
  assert.equal((await client.models.delete(job.fine_tuned_model)).deleted, true);
  await assert.rejects(client.models.retrieve(job.fine_tuned_model), OpenAI.NotFoundError);
  assert.equal((await client.files.delete(file.id)).deleted, true);
});

test("a running job is cancelled", async () => {
  const file = await client.files.create({ file: createReadStream(training), purpose: "fine-tune" });
  const job = await client.fineTuning.jobs.create({
    model: "demo",
    training_file: file.id,
    method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 50 } } },
  });
  assert.equal((await client.fineTuning.jobs.cancel(job.id)).id, job.id);
});

test("faults arrive as their classes with message, code and parameter", async () => {
  const messages = [{ role: "user", content: "Hello" }];
  await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), (fault) => {
    assert.ok(fault instanceof OpenAI.NotFoundError);
    assert.equal(fault.code, "model_not_found");
    assert.match(fault.message, /nobody/);
    assert.match(fault.requestID, /^req_/);
    return true;
  });
  await assert.rejects(client.chat.completions.create({ model: "demo", messages, temperature: 9 }), (fault) => {
    assert.ok(fault instanceof OpenAI.BadRequestError);
    assert.equal(fault.param, "temperature");
    return true;
  });
  await assert.rejects(client.models.delete("demo"), OpenAI.PermissionDeniedError);
  const long = "a ".repeat(5000);
  await assert.rejects(client.completions.create({ model: "demo", prompt: long, stream: true }), (fault) => {
    assert.ok(fault instanceof OpenAI.BadRequestError);
    assert.equal(fault.code, "context_length_exceeded");
    return true;
  });
});

test("a stream that is given up does not disturb the next request", async () => {
  const stream = await client.completions.create({ model: "demo", prompt: "On", max_tokens: 500, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.choices);
    break;
  }
  assert.ok(stream.controller.signal.aborted);
  assert.ok((await client.completions.create({ model: "demo", prompt: "On", max_tokens: 2 })).choices[0]);
});

test("a response is the same whole and streamed through the helper", async () => {
  const question = { model: "gpt-4o-mini", input: "Hello", max_output_tokens: 12, temperature: 0 };
  const whole = await client.responses.create(question);
  assert.ok(whole.output_text);
  const stream = client.responses.stream(question);
  let text = "";
  stream.on("response.output_text.delta", (event) => (text += event.delta));
  const streamed = await stream.finalResponse();
  assert.equal(text, whole.output_text);
  assert.equal(streamed.output_text, whole.output_text);
  assert.deepEqual(streamed.usage.output_tokens, whole.usage.output_tokens);
  const kept = await client.responses.retrieve(streamed.id);
  assert.equal(kept.output[0].id, streamed.output[0].id);
  await client.responses.delete(kept.id);
  await assert.rejects(client.responses.retrieve(kept.id), { status: 404 });
});

test("a response calls a tool, and goes on with its result", async () => {
  const parameters = {
    type: "object", properties: { town: { type: "string", maxLength: 8 } }, required: ["town"],
    additionalProperties: false,
  };
  const tools = [{ type: "function", name: "weather", parameters, strict: true }];
  const question = { model: "gpt-4o-mini", input: "How is the weather?", tools, tool_choice: "required" };
  const stream = client.responses.stream({ ...question, parallel_tool_calls: false });
  const first = await stream.finalResponse();
  const [call] = first.output;
  assert.equal(call.type, "function_call");
  assert.equal(typeof JSON.parse(call.arguments).town, "string");
  const output = { type: "function_call_output", call_id: call.call_id, output: "Sunny." };
  const second = await client.responses.create({
    model: "gpt-4o-mini", input: [output], previous_response_id: first.id, max_output_tokens: 12,
  });
  assert.ok(second.output_text);
});

test("a response in the background is streamed, and read again from an event on", async () => {
  const events = [];
  for await (const event of await client.responses.create({
    model: "gpt-4o-mini", input: "Hello", max_output_tokens: 12, background: true, stream: true,
  })) {
    events.push(event);
  }
  const id = events[0].response.id;
  const again = [];
  for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: 3 })) again.push(event);
  assert.deepEqual(again, events.slice(4));
});

test("a conversation is kept, answered and read page by page", async () => {
  const made = await client.conversations.create({
    items: [{ role: "user", content: "My name is Ada." }], metadata: { team: "a" },
  });
  assert.equal(made.object, "conversation");
  const question = { model: "gpt-4o-mini", input: "Who am I?", max_output_tokens: 12, conversation: made.id };
  const answer = await client.responses.stream(question).finalResponse();
  assert.deepEqual(answer.conversation, { id: made.id });
  const items = [];
  for await (const item of client.conversations.items.list(made.id, { order: "asc", limit: 2 })) items.push(item);
  assert.deepEqual(items.map((item) => item.role), ["user", "user", "assistant"]);
  assert.equal(items[2].id, answer.output[0].id);
  await client.conversations.items.delete(items[2].id, { conversation_id: made.id });
  const added = await client.conversations.items.create(made.id, { items: [{ role: "assistant", content: "Ada." }] });
  assert.equal(added.data[0].content[0].type, "output_text");
  assert.deepEqual((await client.conversations.update(made.id, { metadata: { team: "b" } })).metadata, { team: "b" });
  assert.ok((await client.conversations.delete(made.id)).deleted);
  await assert.rejects(client.conversations.retrieve(made.id), { status: 404, code: "conversation_not_found" });
});

test("a conversation is made short, and goes on from there", async () => {
  const input = [{ role: "user", content: "My name is Ada." }, { role: "assistant", content: "Hello, Ada." }];
  const short = await client.responses.compact({ model: "gpt-4o-mini", input });
  assert.deepEqual(short.output.map((item) => item.type), ["message", "compaction"]);
  const second = await client.responses.create({
    model: "gpt-4o-mini", input: [...short.output, { role: "user", content: "Who am I?" }], max_output_tokens: 12,
  });
  assert.ok(second.output_text);
});

test("a custom tool gets its input as a text, in chats and in responses", async () => {
  const grammar = { syntax: "regex", definition: "[0-2][0-9]:[0-5][0-9]" };
  const custom = { name: "alarm", description: "Sets an alarm.", format: { type: "grammar", grammar } };
  const messages = [{ role: "user", content: "Wake me." }];
  const chat = await client.chat.completions.create({
    model: "gpt-4o-mini", messages, tools: [{ type: "custom", custom }], max_tokens: 100,
    tool_choice: { type: "custom", custom: { name: "alarm" } },
  });
  const { message, finish_reason } = chat.choices[0];
  const [call] = message.tool_calls;
  assert.deepEqual([finish_reason, call.type, call.custom.name], ["tool_calls", "custom", "alarm"]);
  assert.match(call.custom.input, /^[0-2][0-9]:[0-5][0-9]$/);
  const result = { role: "tool", tool_call_id: call.id, content: "Set." };
  const next = await client.chat.completions.create({
    model: "gpt-4o-mini", messages: [...messages, message, result], tools: [{ type: "custom", custom }], max_tokens: 12,
    tool_choice: "none",
  });
  assert.ok(next.choices[0].message.content);
  const response = await client.responses.stream({
    model: "gpt-4o-mini", input: "Wake me.", tools: [{ type: "custom", name: "alarm", format: { type: "text" } }],
    tool_choice: { type: "custom", name: "alarm" }, max_output_tokens: 200,
  }).finalResponse();
  assert.equal(response.output[0].type, "custom_tool_call");
  assert.equal(typeof response.output[0].input, "string");
});
