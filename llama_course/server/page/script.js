const log = document.querySelector("#log");
const form = document.querySelector("form");
const text = form.querySelector("textarea");
const button = form.querySelector("button");
const key = form.querySelector("input");  // shown once the server asks for it
const messages = [];
let running = null;  // the AbortController of the answer that is being written

function show(role, content) {
  const paragraph = document.createElement("p");
  paragraph.className = role;
  paragraph.textContent = content;
  log.append(paragraph);
  paragraph.scrollIntoView();
  return paragraph;
}

// The streamed answer to the messages; the oldest are dropped while they do not fit the context.
async function request(signal) {
  for (;;) {
    const answer = await fetch("v1/chat/completions", {
      method: "POST",
      signal,
      headers: {"content-type": "application/json", ...(key.value && {authorization: `Bearer ${key.value}`})},
      body: JSON.stringify({model: document.body.dataset.model, messages, stream: true}),
    });
    if (answer.ok) return answer;
    const {error} = await answer.json();
    if (answer.status === 401) key.hidden = false;
    if (error.code !== "context_length_exceeded" || messages.length < 3) throw new Error(error.message);
    messages.splice(0, 2);
  }
}

async function write(answer, paragraph) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part; !(part = await reader.read()).done;) {
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event !== "data: [DONE]") {
        const said = JSON.parse(event.slice("data: ".length));
        if (said.error) throw new Error(said.error.message);
        paragraph.textContent += said.choices[0]?.delta.content ?? "";
      }
    }
  }
}

form.addEventListener("submit", async event => {
  event.preventDefault();
  if (running) return running.abort();
  if (!text.value.trim()) return;
  messages.push({role: "user", content: text.value});
  show("user", text.value);
  text.value = "";
  running = new AbortController();
  button.textContent = "Stop";
  const paragraph = show("assistant", "");
  try {
    await write(await request(running.signal), paragraph);
  } catch (error) {
    if (error.name !== "AbortError") show("error", error.message);
  }
  if (paragraph.textContent) messages.push({role: "assistant", content: paragraph.textContent});
  else messages.pop();  // nothing was answered: it is asked again, or something else
  running = null;
  button.textContent = "Send";
});

text.addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    form.requestSubmit();
  }
});
