// Vercel's AI SDK with zod, through both of its providers that speak OpenAI's API. Run by `test_clients.py` with the
// server's address in ATTUNE_URL. The demo model knows nothing of JSON: the form of its answers is the server's doing.

import assert from "node:assert/strict";
import { test } from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError,
  NoObjectGeneratedError,
  Output,
  embed,
  embedMany,
  generateObject,
  generateText,
  stepCountIs,
  streamObject,
  streamText,
  tool,
} from "ai";
import { z } from "zod";

const WIDTH = 256; // of the demo model's vectors
const baseURL = process.env.ATTUNE_URL + "/v1";
const apiKey = process.env.OPENAI_API_KEY;
const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({
  name: "attune",
  baseURL,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
// `openai(id)` is the one of responses.
const providers = { openai: (id) => openai.chat(id), responses: (id) => openai(id), compatible: (id) => compatible(id) };
const settings = { maxRetries: 0, temperature: 0, maxOutputTokens: 900, prompt: "Tell me about a town." };

const vehicle = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("car"), doors: z.int().min(2).max(5) }),
  z.object({ kind: z.literal("bike"), electric: z.boolean() }),
  z.object({ kind: z.literal("ship"), name: z.string().max(6), crew: z.number().min(0).max(0.5) }),
]);
const trip = z.object({
  vehicle,
  stops: z.array(z.object({ town: z.string().min(1).max(8), nights: z.int32().min(0).max(9) })).min(1).max(2),
  season: z.enum(["spring", "summer"]),
  note: z.string().max(5).nullable(),
  place: z.tuple([z.number().min(-90).max(90), z.number().min(-180).max(180)]),
});
const formats = z.object({
  id: z.uuid(),
  at: z.iso.datetime(),
  day: z.iso.date(),
  code: z.string().regex(/^[A-Z]{2}[0-9]$/),
  start: z.string().startsWith("ab").max(8),
  address: z.ipv4(),
  price: z.templateLiteral(["EUR-", z.enum(["1", "25"])]),
  mail: z.email().max(20),
});

const gather = async (stream) => {
  const all = [];
  for await (const part of stream) all.push(part);
  return all;
};

const total = (usage) => {
  assert.ok(usage.inputTokens > 0 && usage.outputTokens > 0, JSON.stringify(usage));
  assert.equal(usage.totalTokens, usage.inputTokens + usage.outputTokens);
};

for (const [name, model] of Object.entries(providers)) {
  test(`${name}: a text is the same whole and streamed, with its usage`, async () => {
    const whole = await generateText({ model: model("long"), ...settings, maxOutputTokens: 12 });
    assert.ok(whole.text);
    assert.ok(["stop", "length"].includes(whole.finishReason));
    total(whole.usage);
    const stream = streamText({ model: model("long"), ...settings, maxOutputTokens: 12 });
    let text = "";
    for await (const delta of stream.textStream) text += delta;
    assert.equal(text, whole.text);
    assert.deepEqual(await stream.usage, whole.usage);
  });

  for (const [kind, schema] of Object.entries({ trip, vehicle: z.object({ vehicle }), formats })) {
    test(`${name}: an object follows its zod schema (${kind})`, async () => {
      // A seed that draws: the most probable answer is one of many.
      for (const seed of [1, 2]) {
        const { object, finishReason } = await generateObject({
          model: model("long"), ...settings, temperature: 1, seed, schema,
        });
        assert.equal(finishReason, "stop");
        schema.parse(object);
      }
    });
  }

  test(`${name}: an object grows in a stream to what it is as a whole`, async () => {
    const whole = await generateObject({ model: model("long"), ...settings, schema: trip });
    const stream = streamObject({ model: model("long"), ...settings, schema: trip });
    const partial = await gather(stream.partialObjectStream);
    assert.ok(partial.length > 1);
    assert.deepEqual(partial.at(-1), whole.object);
    assert.deepEqual(await stream.object, whole.object);
    total(await stream.usage);
  });

  test(`${name}: a text's output is an object, an array or a choice`, async () => {
    const { output } = await generateText({ model: model("long"), ...settings, output: Output.object({ schema: trip }) });
    trip.parse(output);
    const stream = streamText({ model: model("long"), ...settings, output: Output.object({ schema: trip }) });
    const partial = await gather(stream.partialOutputStream);
    assert.deepEqual(partial.at(-1), output);
    const options = ["sunny", "rainy"];
    const choice = await generateText({ model: model("long"), ...settings, output: Output.choice({ options }) });
    assert.ok(options.includes(choice.output));
  });

  test(`${name}: a tool is called with what its schema allows, and its result goes back`, async () => {
    const seen = [];
    const weather = tool({
      description: "The weather of a place",
      inputSchema: z.object({
        where: z.discriminatedUnion("by", [
          z.object({ by: z.literal("town"), town: z.string().max(8) }),
          z.object({ by: z.literal("point"), at: z.tuple([z.int().min(0).max(9), z.int().min(0).max(9)]) }),
        ]),
        days: z.int().min(1).max(7),
        unit: z.enum(["C", "F"]).optional(),
      }),
      execute: async (input) => (seen.push(input), { sun: true, degrees: 21 }),
    });
    const call = {
      model: model("long"),
      ...settings,
      tools: { weather },
      toolChoice: { type: "tool", toolName: "weather" },
      stopWhen: stepCountIs(2),
      // The model calls once and then must speak.
      prepareStep: ({ stepNumber }) => (stepNumber > 0 ? { toolChoice: "none" } : {}),
    };
    const whole = await generateText(call);
    assert.deepEqual(whole.steps.map((step) => step.finishReason).slice(0, 1), ["tool-calls"]);
    assert.equal(whole.steps.length, 2);
    assert.equal(whole.steps[0].toolResults[0].output.degrees, 21);
    assert.ok(whole.text);
    total(whole.totalUsage);
    const stream = streamText(call);
    const parts = await gather(stream.fullStream);
    const error = parts.find((part) => part.type === "error" || part.type === "tool-error");
    assert.equal(error, undefined);
    const pieces = parts.filter((part) => part.type === "tool-input-delta").map((part) => part.delta);
    assert.deepEqual(JSON.parse(pieces.join("")), seen[1]);
    assert.equal(seen.length, 2);
    assert.deepEqual(seen[1], seen[0]);
    assert.equal(await stream.text, whole.text);
  });

  test(`${name}: tools without arguments and with open ones are called, too`, async () => {
    const tools = {
      clock: tool({ inputSchema: z.object({}), execute: async () => "noon" }),
      store: tool({
        inputSchema: z.object({ values: z.record(z.enum(["a", "b"]), z.int().min(0).max(9)) }),
        execute: async ({ values }) => Object.keys(values).length,
      }),
    };
    for (const toolName of Object.keys(tools)) {
      for (const run of [generateText, streamText]) {
        const answer = await run({ model: model("long"), ...settings, tools, toolChoice: { type: "tool", toolName } });
        const [result] = await answer.toolResults;
        assert.equal(result?.toolName, toolName);
        assert.ok(result.output === "noon" || result.output === 2, JSON.stringify(result));
      }
    }
  });

  test(`${name}: a cut object and a missing model are told as such`, async () => {
    await assert.rejects(
      generateObject({ model: model("long"), ...settings, maxOutputTokens: 3, schema: trip }),
      (error) => NoObjectGeneratedError.isInstance(error) && error.finishReason === "length",
    );
    await assert.rejects(
      generateText({ model: model("nobody"), ...settings }),
      (error) => APICallError.isInstance(error) && error.statusCode === 404 && /nobody/.test(error.message),
    );
  });

  test(`${name}: a stream that is given up ends, and the server answers on`, async () => {
    const control = new AbortController();
    const stream = streamText({
      model: model("long"), ...settings, abortSignal: control.signal, output: Output.object({ schema: trip }),
    });
    const kinds = [];
    for await (const part of stream.fullStream) {
      kinds.push(part.type);
      if (part.type === "text-delta") control.abort();
    }
    assert.equal(kinds.at(-1), "abort");
    assert.ok(!kinds.includes("finish"));
    await assert.rejects(
      generateText({ model: model("long"), ...settings, abortSignal: AbortSignal.abort() }),
      { name: "AbortError" },
    );
    assert.ok((await generateText({ model: model("long"), ...settings, maxOutputTokens: 2 })).text);
  });
}

test("the provider's older completions work", async () => {
  for (const model of [openai.completion("demo"), compatible.completionModel("demo")]) {
    const { text, usage } = await generateText({ model, ...settings, maxOutputTokens: 8 });
    assert.ok(text);
    total(usage);
  }
});

test("values become vectors in order, over more than one request", async () => {
  for (const model of [openai.embedding("text-embedding-3-small"), compatible.embeddingModel("text-embedding-3-small")]) {
    const values = Array.from({ length: 40 }, (_, at) => `letter ${at}`);
    const { embeddings, usage } = await embedMany({ model, values, maxRetries: 0, maxParallelCalls: 2 });
    assert.deepEqual(embeddings.map((vector) => vector.length), values.map(() => WIDTH));
    assert.ok(usage.tokens > 0);
    const single = await embed({ model, value: values[39], maxRetries: 0 });
    assert.ok(single.embedding.every((value, at) => Math.abs(value - embeddings[39][at]) < 1e-5));
  }
});

test("responses: what the server keeps is referred to in the next turn", async () => {
  const messages = [{ role: "user", content: "My name is Ada." }];
  const model = openai("long");
  const first = await generateText({ model, maxRetries: 0, temperature: 0, maxOutputTokens: 12, messages });
  assert.match(first.response.id, /^resp_/);
  const more = [...messages, ...first.response.messages, { role: "user", content: "What is my name?" }];
  const second = await generateText({ model, maxRetries: 0, temperature: 0, maxOutputTokens: 12, messages: more });
  assert.ok(JSON.stringify(second.request.body).includes("item_reference"));
  const spelled = await generateText({
    model, maxRetries: 0, temperature: 0, maxOutputTokens: 12, messages: more,
    providerOptions: { openai: { store: false } },
  });
  assert.equal(second.text, spelled.text);
  const previousResponseId = first.response.id;
  const third = await generateText({
    model, maxRetries: 0, temperature: 0, maxOutputTokens: 12, prompt: "What is my name?",
    providerOptions: { openai: { previousResponseId } },
  });
  assert.equal(third.text, second.text);
});
