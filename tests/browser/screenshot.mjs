// Makes the picture of the demo in README.md: two tabs in a call, seen in Chromium at 1280x800.
//
//   node screenshot.mjs [BINARY] [FILE]
//
// Without FILE it writes docs/demo.png. Look at the picture before you commit it.

import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { launch } from './browsers.mjs';
import { DemoServer } from './server.mjs';
import { Tab } from './tab.mjs';

const [width, height] = [1280, 800];
/** The default ports of the demo, because the picture shows them. They must be free. */
const [PORT, HTTP_PORT] = [3478, 8080];
const ROOM = 'call';
/** After this time the rates are steady, and their curves have some length. */
const CALL_MS = 12_000;
const BYTES_MAX = 300_000;

const root = fileURLToPath(new URL('../../', import.meta.url));
const [binary = resolve(root, 'target/release/throughway'), file = resolve(root, 'docs/demo.png')] = process.argv.slice(2);

const server = new DemoServer(binary, PORT, HTTP_PORT);
await server.start();
const running = await launch('chromium');
try {
  const tabs = [];
  for (const name of ['A', 'B']) {
    tabs.push(await Tab.open(running, name, server.url, ROOM));
    await tabs.at(-1).page.setViewport({ width, height });
  }
  const [a] = tabs;
  await Promise.all(tabs.map((tab) => tab.connected()));
  await a.page.bringToFront();
  await sleep(CALL_MS);
  await a.framesGrow();
  await a.page.screenshot({ path: file });
} finally {
  await running.close();
  await server.stop();
}
const { size } = await stat(file);
console.log(`${file}: ${size} bytes`);
if (size > BYTES_MAX) throw new Error(`more than ${BYTES_MAX} bytes: make the picture again`);
