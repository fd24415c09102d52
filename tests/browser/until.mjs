// Waiting for what a page or a server does in its own time.

import { setTimeout as sleep } from 'node:timers/promises';

const POLL_MS = 50;

/** Asks until the answer is true, and gives it; an error after so many milliseconds. */
export async function until(what, question, milliseconds) {
  const end = Date.now() + milliseconds;
  for (;;) {
    const answer = await question();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`not within ${milliseconds} ms: ${what}`);
    await sleep(POLL_MS);
  }
}
