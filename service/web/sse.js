// Server-sent events from a fetched body. EventSource cannot send an Authorization header, and with one parser for
// GET and POST there is one behaviour.

// Lines end at LF, CR LF or CR alone; U+2028 is an ordinary character, so no regular expression with \s or $ here.
const LINE_END = /\r\n|\n|\r/;

/** Yields {event, data, id, retry} for each message of a streamed response; id and retry are the last ones named. */
export async function* messagesOf(response) {
  let message = empty("", null);
  for await (const line of linesOf(response.body)) {
    if (line !== "") {
      take(message, line);
      continue;
    }
    if (message.lines.length) {
      yield { event: message.event || "message", data: message.lines.join("\n"), id: message.id, retry: message.retry };
    }
    message = empty(message.id, message.retry);
  }
}

function empty(id, retry) {
  return { event: "", lines: [], id, retry };
}

function take(message, line) {
  const colon = line.indexOf(":");
  const field = colon < 0 ? line : line.slice(0, colon);
  const rest = colon < 0 ? "" : line.slice(colon + 1);
  const value = rest.startsWith(" ") ? rest.slice(1) : rest;
  if (field === "data") message.lines.push(value);
  else if (field === "event") message.event = value;
  else if (field === "id" && !value.includes("\0")) message.id = value;
  else if (field === "retry" && /^[0-9]+$/.test(value)) message.retry = Number(value);
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      // A CR at the very end may be half of a CR LF: it waits for the next chunk.
      const held = rest.endsWith("\r") ? "\r" : "";
      const lines = rest.slice(0, rest.length - held.length).split(LINE_END);
      rest = lines.pop() + held;
      yield* lines;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
