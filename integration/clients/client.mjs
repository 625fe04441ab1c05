// Sends the requests of openai_test.go with the OpenAI SDK for Node, and prints the results
// as JSON. The SDK itself reads OPENAI_BASE_URL and OPENAI_API_KEY.
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });

const ask = (text, image, options) =>
  client.chat.completions
    .create({
      model: "fake",
      messages: [
        { role: "system", content: "Be brief." },
        {
          role: "user",
          content: [
            { type: "text", text },
            { type: "image_url", image_url: { url: "data:image/png;base64,AAAA" } },
            { type: "image_url", image_url: { url: `data:image/png;base64,${image}`, detail: "low" } },
          ],
        },
      ],
      max_completion_tokens: 100,
      ...options,
    })
    .withResponse();

async function whole(text, image) {
  const { data, request_id } = await ask(text, image);
  const [choice] = data.choices;
  return { id: request_id, text: choice.message.content, finish: choice.finish_reason, tokens: data.usage.total_tokens };
}

async function stream(text, image, leave = false) {
  const seen = { text: "" };
  const { data, request_id } = await ask(text, image, { stream: true, stream_options: { include_usage: true } });
  seen.id = request_id;
  try {
    for await (const { choices, usage } of data) {
      seen.text += choices[0]?.delta.content ?? "";
      seen.finish = choices[0]?.finish_reason ?? seen.finish;
      seen.tokens = usage?.total_tokens;
      if (leave && seen.text) break;
    }
  } catch (err) {
    seen.message = fault(err).message;
  }
  return seen;
}

function fault(err) {
  if (!(err instanceof OpenAI.APIError)) throw err;
  return { id: err.requestID, status: err.status, message: err.error.message, param: err.param };
}

const models = await client.models.list();
console.log(
  JSON.stringify({
    models: models.data.map((model) => model.id),
    stream: await stream("What is in these pictures? 你好", "BBBB"),
    whole: await whole("What is in these pictures? 你好", "BBBB"),
    refusedStream: await stream("Refuse.", "LARG").catch(fault),
    refused: await whole("Refuse.", "LARG").catch(fault),
    broken: await stream("Break off.", "BBBB"),
    left: await stream("Go on. ".repeat(1000), "BBBB", true),
  }),
);
