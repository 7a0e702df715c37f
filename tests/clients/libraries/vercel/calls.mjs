// One call of the Vercel AI SDK: node calls.mjs URL KEY MODEL CALL. Writes what came of it as JSON.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { embedMany, generateObject, generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const [baseURL, apiKey, name, call] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: 'flexserve',
  baseURL,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider(name);
const prompt = 'What is FlexServe?';
const greedy = { model, prompt, temperature: 0, maxRetries: 0 };

const calls = {
  async text() {
    const { text, usage, finishReason } = await generateText({ ...greedy, maxOutputTokens: 24 });
    return { text, tokens: usage.outputTokens, finishReason };
  },
  async stream() {
    const { textStream, usage } = streamText({ ...greedy, maxOutputTokens: 24 });
    let text = '';
    for await (const part of textStream) text += part;
    return { text, tokens: (await usage).outputTokens };
  },
  async tool() {
    const asked = [];
    const weather = tool({
      description: 'Say how the weather is in a city.',
      inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => asked.push(city) && `sunny in ${city}`,
    });
    const { text } = await generateText({ ...greedy, tools: { weather }, stopWhen: stepCountIs(3) });
    return { text, asked };
  },
  async object() {
    const schema = z.object({ name: z.enum(['Ada', 'Bob']), age: z.number().int().min(18).max(99) });
    const { object } = await generateObject({ ...greedy, schema, maxOutputTokens: 200 });
    return object;
  },
  async vectors() {
    const { embeddings } = await embedMany({ model: provider.embeddingModel(name), values: ['a', 'b'] });
    return embeddings;
  },
};

try {
  console.log(JSON.stringify(await calls[call]()));
} catch (error) {
  console.log(JSON.stringify({ error: error.name, status: error.statusCode, message: error.message }));
}
