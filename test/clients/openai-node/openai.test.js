// The official Node client against a running Quire: BASE_URL (with /v1), MODEL and CONTEXT say where.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const model = process.env.MODEL;
const context = Number(process.env.CONTEXT);
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Say something." }];
const chat = { model, messages, seed: 7, max_completion_tokens: 24 };

test("models", async () => {
  const ids = [];
  for await (const m of client.models.list()) ids.push(m.id);
  assert.ok(ids.includes(model));
  assert.equal((await client.models.retrieve(model)).owned_by, "quire");
});

test("chat", async () => {
  const { data, request_id } = await client.chat.completions.create({ ...chat, n: 2 }).withResponse();
  assert.equal(data.choices.length, 2);
  assert.equal(data.choices[1].index, 1);
  assert.ok(data.choices[0].message.content.length > 0);
  assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
  assert.match(request_id, /^[0-9a-f]{32}$/);
});

test("chat stream", async () => {
  const whole = await client.chat.completions.create(chat);
  // The helper throws at the end if a role, a finish reason or a piece is missing.
  const runner = client.chat.completions.stream({ ...chat, stream_options: { include_usage: true } });
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
  assert.equal(final.choices[0].finish_reason, whole.choices[0].finish_reason);
  assert.equal((await runner.totalUsage()).total_tokens, whole.usage.total_tokens);
});

test("chat logprobs", async () => {
  const r = await client.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 2 });
  const { content, refusal } = r.choices[0].logprobs;
  assert.equal(refusal, null);
  assert.ok(content.length > 0);
  const bytes = Buffer.from(content.flatMap((t) => t.bytes));
  assert.ok(bytes.toString().startsWith(r.choices[0].message.content));
  for (const t of content) assert.equal(t.top_logprobs.length, 2);
});

test("completions", async () => {
  const body = { model, prompt: ["One", "Two"], max_tokens: 6, seed: 7, echo: true, logprobs: 1 };
  const r = await client.completions.create(body);
  assert.deepEqual(r.choices.map((c) => c.index), [0, 1]);
  assert.ok(r.choices[1].text.startsWith("Two"));
  const lp = r.choices[0].logprobs;
  assert.equal(lp.tokens.length, lp.token_logprobs.length);
  assert.equal(lp.token_logprobs[0], null);
});

test("completion stream", async () => {
  const body = { model, prompt: "One", max_tokens: 12, seed: 7 };
  const whole = await client.completions.create(body);
  let text = "";
  for await (const chunk of await client.completions.create({ ...body, stream: true })) text += chunk.choices[0]?.text ?? "";
  assert.equal(text, whole.choices[0].text);
});

test("errors", async () => {
  await assert.rejects(client.chat.completions.create({ ...chat, temperature: 9 }), (e) => {
    assert.ok(e instanceof OpenAI.BadRequestError);
    assert.equal(e.param, "temperature");
    assert.equal(e.code, "invalid_value");
    return true;
  });
  await assert.rejects(client.chat.completions.create({ ...chat, model: "none" }), OpenAI.NotFoundError);
  const long = [{ role: "user", content: "word and ".repeat(context) }];
  await assert.rejects(client.chat.completions.create({ ...chat, messages: long }), (e) => e.code === "context_length_exceeded");
});

test("abort", async () => {
  const stream = await client.chat.completions.create({ ...chat, stream: true, max_completion_tokens: Math.floor(context / 2), ignore_eos: true });
  for await (const _ of stream) break; // leaving the loop closes the connection
  assert.ok(stream.controller.signal.aborted);
});
