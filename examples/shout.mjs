#!/usr/bin/env node
// An agent in JavaScript (Node 18 or later): {"text": "hello"} becomes {"text": "HELLO!"}.
//
//   echo '{"text": "hello"}' | examples/shout.mjs
import { text } from "node:stream/consumers";

const payload = JSON.parse(await text(process.stdin));

if (typeof payload?.text !== "string") {
  console.error('the payload must look like {"text": "…"}');
  process.exit(1); // a failure: tried again, and dead in the end
}

const { MARK = "", WARREN_TASK_ID, WARREN_ATTEMPT } = process.env;
console.error(`task ${WARREN_TASK_ID}, attempt ${WARREN_ATTEMPT}`); // shown should it fail
console.log(JSON.stringify({ text: payload.text.toUpperCase() + MARK }));
