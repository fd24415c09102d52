// Drives Chromium and Firefox over the demo page of a real `throughway demo` process.
//
//   node run.mjs [BINARY] [part of a case's name]
//
// The binary may also come from THROUGHWAY_BIN, the first of the ports used from THROUGHWAY_TEST_PORT. The last line is
// `N passed, M failed`; the exit code says the same. A case that fails is tried once more, and both attempts are shown.

import { existsSync } from 'node:fs';
import { resolve } from 'node:path';

import { launch } from './browsers.mjs';
import { cases } from './cases.mjs';
import { DemoServer } from './server.mjs';
import { Tab } from './tab.mjs';

const CASE_MS = 90_000;
const ATTEMPTS = 2;
/** The page of a case listens this far above its relay. */
const HTTP_PORTS_ABOVE = 50;

const args = process.argv.slice(2);
const binary = resolve(args[0] || process.env.THROUGHWAY_BIN || '../../target/release/throughway');
const filter = args[1] ?? '';
let port = Number(process.env.THROUGHWAY_TEST_PORT ?? 18100);

if (!existsSync(binary)) {
  console.error(`no binary at ${binary}: build it with cargo build --release, or name it as the first argument or in THROUGHWAY_BIN`);
  process.exit(2);
}

/** Browsers live through all cases; each case has a server and tabs of its own. */
const running = new Map();

async function browser(name) {
  const known = running.get(name);
  if (known?.browser.connected) return known;
  const fresh = await launch(name);
  running.set(name, fresh);
  return fresh;
}

class Environment {
  #tabs = [];

  constructor(server, room) {
    this.server = server;
    this.room = room;
  }

  async open(browserName, name, options) {
    const tab = await Tab.open(await browser(browserName), name, this.server.url, this.room, options);
    this.#tabs.push(tab);
    return tab;
  }

  /** Two connected tabs of one browser. */
  async call(browserName, transport = 'udp', options = {}) {
    const a = await this.open(browserName, 'A', { transport, ...options });
    const b = await this.open(browserName, 'B', { transport, ...options });
    await Promise.all([a.connected(), b.connected()]);
    await Promise.all([a.framesGrow(), b.framesGrow()]);
    return [a, b];
  }

  checkErrors() {
    for (const tab of this.#tabs) {
      if (tab.errors.length) throw new Error(`${tab.name}: errors in the page: ${tab.errors.join('; ')}`);
    }
  }

  async story() {
    const stories = await Promise.all(this.#tabs.map((tab) => tab.story()));
    return [...stories, `--- server:\n${this.server.output()}`].join('\n');
  }

  async close() {
    for (const tab of this.#tabs) await tab.page.close().catch(() => {});
    this.server.resume();
    await this.server.stop();
  }
}

async function attempt(test) {
  const server = new DemoServer(binary, port, port + HTTP_PORTS_ABOVE);
  port += 2;
  const environment = new Environment(server, `room-${port}`);
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`not finished after ${CASE_MS} ms`)), CASE_MS);
  });
  try {
    await server.start();
    await Promise.race([test.run(environment), late]);
    environment.checkErrors();
  } catch (error) {
    error.story = await environment.story().catch((problem) => String(problem));
    throw error;
  } finally {
    clearTimeout(timer);
    await environment.close();
  }
}

let passed = 0;
let failed = 0;
const chosen = cases.filter(({ name }) => name.includes(filter));
for (const test of chosen) {
  let fine = false;
  for (let number = 1; number <= ATTEMPTS && !fine; number += 1) {
    const began = Date.now();
    const seconds = () => `${((Date.now() - began) / 1000).toFixed(1)} s`;
    try {
      await attempt(test);
      fine = true;
      console.log(`ok    ${test.name} (${seconds()}${number > 1 ? `, attempt ${number}` : ''})`);
    } catch (error) {
      console.log(`FAIL  ${test.name} (${seconds()}, attempt ${number} of ${ATTEMPTS}): ${error.message}`);
      console.log(`${error.stack?.split('\n').slice(1, 6).join('\n') ?? ''}\n${error.story ?? ''}`);
    }
  }
  if (fine) passed += 1;
  else failed += 1;
}
for (const each of running.values()) await each.close().catch((error) => console.log(`closing ${each.name}: ${error.message}`));
if (chosen.length === 0) console.log(`no case has "${filter}" in its name`);
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed || chosen.length === 0 ? 1 : 0);
