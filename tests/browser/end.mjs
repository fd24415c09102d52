// One end of a call, in a browser or in werift, in a process of its own, so that it lives in one network namespace.
//
//   node end.mjs chromium|firefox|werift
//
// The runner speaks with it in lines of JSON; tests/namespaces/ends.py says which.

import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

import { launch } from './browsers.mjs';
import { callIn } from './numbered.mjs';

const POLL_MS = 50;
const CLOSE_MS = 5_000;

const kind = process.argv[2];
const input = createInterface({ input: process.stdin });
const lines = input[Symbol.asyncIterator]();

async function hear() {
  const { value, done } = await lines.next();
  return done ? new Promise(() => {}) : JSON.parse(value);
}

function say(what) {
  process.stdout.write(`${JSON.stringify(what)}\n`);
}

/** The end lives in a page of its own and is told what to do there. */
async function inBrowser() {
  const running = await launch(kind, { authority: process.env.TEST_CA });
  return {
    async begin(task) {
      const page = await running.browser.newPage();
      if (task.page) {
        const answer = await page.goto(task.page);
        if (!answer?.ok()) throw new Error(`${task.page}: ${answer?.status()}`);
      }
      await page.evaluate(`window.callIn = ${callIn}`);
      await page.evaluate((what) => { window.end = window.callIn(what, window); }, task);
      return {
        offer: () => page.evaluate(() => window.end.offer()),
        answer: (sdp) => page.evaluate((text) => window.end.answer(text), sdp),
        accept: (sdp) => page.evaluate((text) => window.end.accept(text), sdp),
        opened: () => page.evaluate(() => window.end.opened),
        send: () => page.evaluate(() => window.end.send()),
        result: () => page.evaluate(() => window.end.result()),
        facts: () => page.evaluate(() => ({ candidates: window.end.candidates, errors: window.end.errors })),
        async close() {
          await page.evaluate(() => window.end.connection.close());
          await page.close();
        },
      };
    },
    close: () => running.close(),
  };
}

async function inWerift() {
  const werift = await import('werift');
  return {
    async begin(task) {
      const end = callIn(task, werift);
      return {
        offer: end.offer,
        answer: end.answer,
        accept: end.accept,
        opened: () => end.opened,
        send: end.send,
        result: async () => end.result(),
        facts: async () => ({ candidates: end.candidates, errors: end.errors }),
        close: () => end.connection.close(),
      };
    },
    close: async () => {},
  };
}

async function call(stack, task) {
  const end = await stack.begin(task);
  try {
    if (task.role === 'offer') {
      const sdp = await end.offer();
      say({ sdp, ...(await end.facts()) });
      const heard = await hear();
      if (heard.over) return;
      await end.accept(heard.sdp);
    } else {
      const { sdp } = await hear();
      const answer = await end.answer(sdp);
      say({ sdp: answer, ...(await end.facts()) });
    }
    await end.opened();
    say({ opened: true });
    if (task.role === 'offer') await end.send();
    const until = Date.now() + task.seconds * 1000;
    let result = await end.result();
    while (result.missing.length > 0 && Date.now() < until) {
      await sleep(POLL_MS);
      result = await end.result();
    }
    say(result);
    await hear();
  } finally {
    await end.close();
  }
}

const stack = await (kind === 'werift' ? inWerift() : inBrowser());
// the runner closes our input when it wants us gone, whatever we are at
input.once('close', async () => {
  await Promise.race([stack.close().catch(() => {}), sleep(CLOSE_MS)]);
  process.exit(0);
});
say({ ready: kind });
for (;;) {
  await call(stack, await hear());
  say({ closed: true });
}
