// A browser while its server drains: what it gathers, and whether a call that stands goes on.
//
//   node redirect.mjs chromium|firefox
//
// The runner speaks with it in lines of JSON. In: `{ call: iceServers }` opens a call with both ends on one page and
// says `{ opened }`; `{ progress: true }` says whether more messages arrive; `{ gather: iceServers }` says
// `{ candidates, errors }` of a connection of its own; `{ hangUp: true }` ends the call and says `{ closed }`.

import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

import { launch } from './browsers.mjs';
import { callIn } from './numbered.mjs';

const POLL_MS = 50;
const OPEN_MS = 20_000;
const PROGRESS_MS = 5_000;
const CLOSE_MS = 5_000;
/** More than any case lasts. */
const TASK = { count: 100_000, everyMs: 25, size: 1000 };

const input = createInterface({ input: process.stdin });
const lines = input[Symbol.asyncIterator]();
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const running = await launch(process.argv[2]);
input.once('close', async () => {
  await Promise.race([running.close().catch(() => {}), sleep(CLOSE_MS)]);
  process.exit(0);
});

async function until(page, condition, milliseconds, ...args) {
  const end = Date.now() + milliseconds;
  while (!(await page.evaluate(condition, ...args))) {
    if (Date.now() > end) return false;
    await sleep(POLL_MS);
  }
  return true;
}

async function open(page, iceServers) {
  await page.evaluate(`window.callIn = ${callIn}`);
  await page.evaluate(async (servers, task) => {
    const [a, b] = ['offer', 'answer'].map((role) => window.callIn({ role, iceServers: servers, ...task }, window));
    window.ends = [a, b];
    await a.accept(await b.answer(await a.offer()));
    Promise.all([a.opened, b.opened]).then(() => a.send().catch(() => {}));
  }, iceServers, TASK);
  return until(page, () => window.ends[0].received > 4, OPEN_MS);
}

async function gather(iceServers) {
  const page = await running.browser.newPage();
  try {
    await page.evaluate(`window.callIn = ${callIn}`);
    return await page.evaluate(async (servers, task) => {
      const end = window.callIn({ role: 'offer', iceServers: servers, ...task }, window);
      await end.offer();
      end.connection.close();
      return { candidates: end.candidates, errors: end.errors };
    }, iceServers, TASK);
  } finally {
    await page.close();
  }
}

const page = await running.browser.newPage();
say({ ready: true });
for (;;) {
  const { value, done } = await lines.next();
  if (done) break;
  const task = JSON.parse(value);
  if (task.call) say({ opened: await open(page, task.call) });
  if (task.progress) {
    const before = await page.evaluate(() => window.ends[0].received);
    say({ goesOn: await until(page, (number) => window.ends[0].received > number + 4, PROGRESS_MS, before) });
  }
  if (task.gather) say(await gather(task.gather));
  if (task.hangUp) {
    await page.evaluate(() => window.ends.forEach(({ connection }) => connection.close()));
    say({ closed: true });
  }
}
