// A user of docs/app-server.md: logs in, gets a credential, and calls itself through the relay.
//
//   node user.mjs chromium|firefox URL
//
// Says in lines of JSON `{ refused, login, username }`, then what getStats has counted when the call is quiet; hangs up
// and goes when its input ends.

import { createInterface } from 'node:readline';

import { launch } from './browsers.mjs';
import { callIn } from './numbered.mjs';

const COUNT = 400;
/** A browser short of CPU loses datagrams by itself; this call is about what is counted, so it may repeat. */
const TASK = { count: COUNT, everyMs: 5, size: 900, isReliable: true };
const ARRIVE_MS = 10_000;

const [name, url] = process.argv.slice(2);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const input = createInterface({ input: process.stdin });
const running = await launch(name);

async function logIn(page) {
  return page.evaluate(async () => {
    const form = (password) => ({ method: 'POST', body: new URLSearchParams({ name: 'alice', password }) });
    const refused = [(await fetch('/')).status, (await fetch('/', form('wrong'))).status, (await fetch('/')).status];
    const login = (await fetch('/', form('wonderland'))).status;
    window.configuration = await (await fetch('/')).json();
    return { refused, login, username: window.configuration.iceServers[0].username };
  });
}

/** Both ends on one page; gives what getStats says of all candidate pairs once it says the same twice. */
async function call(page) {
  await page.evaluate(`window.callIn = ${callIn}`);
  return page.evaluate(async (task, arriveMs) => {
    const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
    const { iceServers } = window.configuration;
    const [a, b] = ['offer', 'answer'].map((role) => window.callIn({ role, iceServers, ...task }, window));
    window.ends = [a, b];
    await a.accept(await b.answer(await a.offer()));
    await Promise.all([a.opened, b.opened]);
    await a.send();
    const until = Date.now() + arriveMs;
    while ([a, b].some((end) => end.missing().length > 0)) {
      if (Date.now() > until) throw new Error(`missing: ${a.missing()} and ${b.missing()}`);
      await sleep(50);
    }
    const counted = async () => {
      const sums = { sent: 0, received: 0 };
      for (const { connection } of [a, b]) {
        for (const stats of (await connection.getStats()).values()) {
          if (stats.type !== 'candidate-pair') continue;
          sums.sent += stats.bytesSent ?? 0;
          sums.received += stats.bytesReceived ?? 0;
        }
      }
      return sums;
    };
    let before = null;
    let now = await counted();
    while (JSON.stringify(now) !== JSON.stringify(before)) {
      await sleep(700);
      before = now;
      now = await counted();
    }
    return { ...now, results: [a.result(), b.result()], candidates: [...a.candidates, ...b.candidates] };
  }, TASK, ARRIVE_MS);
}

try {
  const page = await running.browser.newPage();
  await page.goto(url);
  say(await logIn(page));
  say({ count: COUNT, ...(await call(page)) });
  await new Promise((resolve) => { input.once('close', resolve); });
  await page.evaluate(() => window.ends.forEach(({ connection }) => connection.close()));
} finally {
  await running.close();
}
