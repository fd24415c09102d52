// The demo's page in one browser in one network namespace, told what to do in lines of JSON.
//
//   node lan.mjs chromium|firefox URL
//
// Says `{ ready }` when the page runs, or `{ refused }` with its text. In: `{ call: true }` waits for a call with a
// picture and says `{ pair, href, secure, lan }`; `{ file: true }` sends a file and says `{ transfer }`; `{ ended: true }`
// waits for the end of the call and says `{ title }`; `{ close: true }` closes the page as a person does.

import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

import { launch } from './browsers.mjs';
import { Tab } from './tab.mjs';

const CALL_MS = 40_000;
const CLOSE_MS = 5_000;
const FILE_BYTES = 1_000_003;

const [kind, url] = process.argv.slice(2);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const input = createInterface({ input: process.stdin });
const lines = input[Symbol.asyncIterator]();
const running = await launch(kind);
input.once('close', async () => {
  await Promise.race([running.close().catch(() => {}), sleep(CLOSE_MS)]);
  process.exit(0);
});

const page = await running.browser.newPage();
const tab = new Tab(kind, page);
page.on('pageerror', (error) => tab.note(error.message));
await page.goto(url);
if (await page.evaluate(() => document.getElementById('pill') === null)) {
  say({ refused: await page.evaluate(() => document.body.innerText) });
} else {
  await tab.until('its script runs', () => window.throughway !== undefined, 15_000);
  say({ ready: true });
}
for (;;) {
  const { value, done } = await lines.next();
  if (done) break;
  const task = JSON.parse(value);
  try {
    if (task.call) {
      await tab.connected(CALL_MS);
      const pair = await tab.pair(CALL_MS);
      await tab.framesGrow(15, CALL_MS);
      const facts = await page.evaluate(() => ({ href: location.href, secure: isSecureContext, lan: document.getElementById('phone-url').href }));
      say({ pair, errors: tab.errors, ...facts });
    }
    if (task.file) {
      await page.evaluate((bytes) => window.throughway.sendFile('over-the-network.bin', new Uint8Array(bytes)), FILE_BYTES);
      say({ transfer: await tab.transfer('over-the-network.bin', CALL_MS) });
    }
    if (task.ended) {
      await tab.until('the call is over', () => window.throughway.phase === 'ended', CALL_MS);
      say({ title: await page.$eval('#cover-title', (title) => title.textContent) });
    }
    if (task.close) {
      await page.close({ runBeforeUnload: true });
      say({ closed: true });
    }
  } catch (error) {
    say({ failed: error.message, story: await tab.story() });
  }
}
