// Calls whose one end is limited by the relay, both ends on one page of a browser.
//
//   node limited.mjs chromium|firefox
//
// The runner speaks with it in lines of JSON. In: `{ limited, free }`, the iceServers of both ends. Out: `{ opened }`, or
// `{ refused, candidates, errors }` where the limited end got no relayed address. Of an open call it then says
// `{ over, afterMs, arrived, states }` when ICE says at the limited end that nothing comes through any more. Then the next.

import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

import { launch } from './browsers.mjs';
import { callIn } from './numbered.mjs';
import { until } from './until.mjs';

const OPEN_MS = 15_000;
const OVER_MS = 30_000;
const CLOSE_MS = 5_000;
/** Four messages of 1,000 bytes in 100 ms, for longer than any case lasts. */
const TASK = { count: 100_000, everyMs: 25, size: 1000 };

const input = createInterface({ input: process.stdin });
const lines = input[Symbol.asyncIterator]();
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const running = await launch(process.argv[2]);
input.once('close', async () => {
  await Promise.race([running.close().catch(() => {}), sleep(CLOSE_MS)]);
  process.exit(0);
});

async function call({ limited, free }) {
  const page = await running.browser.newPage();
  try {
    await page.evaluate(`window.callIn = ${callIn}`);
    const start = await page.evaluate(async (servers, task) => {
      const [a, b] = ['offer', 'answer'].map((role) => window.callIn({ role, iceServers: servers[role], ...task }, window));
      window.ends = [a, b];
      // the free end takes its address first, so that a quota over both is the limited one's to meet
      const offer = await a.offer();
      const answer = await b.answer(offer);
      if (b.candidates.length === 0) return { refused: true, candidates: b.candidates, errors: b.errors };
      await a.accept(answer);
      window.open = false;
      window.states = [];
      b.connection.oniceconnectionstatechange = () => window.states.push(b.connection.iceConnectionState);
      Promise.all([a.opened, b.opened]).then(() => {
        window.open = true;
        a.send().catch(() => {});
      });
      return { refused: false };
    }, { offer: free, answer: limited }, TASK);
    if (start.refused) {
      say(start);
      return;
    }
    await until('the call is open', () => page.evaluate(() => window.open && window.ends[0].received > 4), OPEN_MS);
    say({ opened: true });
    const began = Date.now();
    await until('the call is over', () => page.evaluate(() => ['disconnected', 'failed', 'closed'].includes(window.ends[1].connection.iceConnectionState)), OVER_MS);
    say({ over: true, afterMs: Date.now() - began, ...(await page.evaluate(() => ({ arrived: window.ends[1].received, states: window.states }))) });
  } finally {
    await page.evaluate(() => window.ends?.forEach(({ connection }) => connection.close())).catch(() => {});
    await page.close();
  }
}

say({ ready: true });
for (;;) {
  const { value, done } = await lines.next();
  if (done) break;
  await call(JSON.parse(value));
}
