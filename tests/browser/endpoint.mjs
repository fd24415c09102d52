// Real browsers read what the credential endpoint answers: examples/ice-servers.html asks across origins, calls itself
// through the relay, and every shape that holds servers for a browser is given to an RTCPeerConnection.
//
//   node endpoint.mjs [BINARY]
//
// Like run.mjs: the binary may come from THROUGHWAY_BIN, the port of the page from THROUGHWAY_TEST_PORT; the last line
// is `N passed, M failed`.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { networkInterfaces, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { launch } from './browsers.mjs';

const run = promisify(execFile);
const READY_MS = 15_000;
const CALL_MS = 20_000;

const binary = resolve(process.argv[2] || process.env.THROUGHWAY_BIN || '../../target/release/throughway');
const pagePort = Number(process.env.THROUGHWAY_TEST_PORT ?? 18100) + 80;
const origin = `http://127.0.0.1:${pagePort}`;
const key = randomBytes(24).toString('hex');

// Firefox gathers on no loopback address; where there is no other, it can't call.
const addresses = Object.values(networkInterfaces()).flat().filter(({ family, internal }) => family === 'IPv4' && !internal);
const address = addresses[0]?.address ?? '127.0.0.1';

/** `serve` on ports of the kernel's choice, with one key and this page's origin. */
async function startServer(folder) {
  const config = join(folder, 'config.toml');
  const lines = [
    `listen.udp = ["${address}:0"]`,
    `listen.tcp = ["${address}:0"]`,
    `relay.addresses = ["${address}"]`,
    'relay.ports = "61400-61499"', // the kernel takes listeners' ports from below
    'peers.allow = ["127.0.0.0/8"]',
    'log.format = "json"',
    '[http]',
    'listen = "127.0.0.1:0"',
    `cors = ["${origin}"]`,
    '[[http.keys]]',
    'name = "page"',
    `sha256 = "${createHash('sha256').update(key).digest('hex')}"`,
    '[[auth.secrets]]',
    'id = "main"',
    'value = "north-of-everything"',
  ];
  await writeFile(config, lines.join('\n'), { mode: 0o600 });
  const child = spawn(binary, ['serve', '--config', config], { stdio: ['ignore', 'ignore', 'pipe'], env: {} });
  const events = [];
  createInterface({ input: child.stderr }).on('line', (line) => {
    try {
      events.push(JSON.parse(line));
    } catch {
      events.push({ message: line });
    }
  });
  const end = Date.now() + READY_MS;
  while (!events.some(({ message }) => message === 'ready')) {
    if (child.exitCode !== null || Date.now() > end) throw new Error(`not ready: ${JSON.stringify(events)}`);
    await sleep(20);
  }
  const url = events.find(({ message }) => message === 'metrics and health').address;
  return { child, events, url, config };
}

async function open(running, server) {
  const page = await running.browser.newPage();
  await page.goto(`${origin}/`);
  await page.$eval('#endpoint', (field, url) => { field.value = url; }, `${server.url}/ice`);
  return page;
}

const text = (page) => page.$eval('#log', (log) => log.textContent);

async function untilLogged(page, pattern) {
  const end = Date.now() + CALL_MS;
  for (;;) {
    const logged = await text(page);
    if (pattern.test(logged)) return logged;
    if (Date.now() > end) throw new Error(`not within ${CALL_MS} ms: ${pattern}; the page said: ${logged}`);
    await sleep(50);
  }
}

/** The example works as it stands: preflight, answer, call, and the session ends in the server's log. */
async function exampleCalls(running, server) {
  const page = await open(running, server);
  await page.$eval('#key', (field, value) => { field.value = value; }, key);
  await page.click('#start');
  await untilLogged(page, /received: hello through the relay/);
  await page.close();
  const issued = server.events.filter(({ message }) => message === 'credential issued');
  assert.ok(issued.length > 0 && issued.every((event) => event.key === 'page'));
  assert.ok(!JSON.stringify(server.events).includes(key), 'the key is not in the log');
}

/** The same page takes what the command prints, without an endpoint. */
async function pastedCredentialCalls(running, server) {
  const issued = () => server.events.filter(({ message }) => message === 'credential issued').length;
  const before = issued();
  // The server's configuration leaves the port to the kernel; the command must know it.
  const [uri] = (await (await fetch(`${server.url}/.well-known/turn`)).json()).uris;
  const config = join(folder, 'mint.toml');
  const text = await readFile(server.config, 'utf8');
  const listener = `listen.udp = ["${/^turn:(.*)\?transport=udp$/.exec(uri)[1]}"]`;
  await writeFile(config, text.replace(/^listen[.]udp.*$/m, listener), { mode: 0o600 });
  const minted = await run(binary, ['credentials', 'mint', '--config', config, '--user', 'pasted']);
  const page = await open(running, server);
  await page.$eval('#minted', (field, value) => { field.value = value; }, minted.stdout);
  await page.click('#start');
  await untilLogged(page, /received: hello through the relay/);
  await page.close();
  assert.equal(issued(), before, 'the endpoint was not asked');
}

/** A wrong key is told to the page in a sentence: it may read a refusal, too. */
async function wrongKeyIsTold(running, server) {
  const page = await open(running, server);
  await page.$eval('#key', (field) => { field.value = 'nonsense'; });
  await page.click('#start');
  await untilLogged(page, /401: this API key is not known/);
  await page.close();
}

/** Each answer goes into a connection as its readers would put it there; the browser throws on what it can't read. */
async function shapesAreRead(running, server) {
  const page = await open(running, server);
  const read = await page.evaluate(async (base, secret) => {
    const headers = { Authorization: `Bearer ${secret}` };
    const json = async (path, options = {}) => {
      const answer = await fetch(base + path, { headers, ...options });
      return answer.json();
    };
    const all = await json('/v1/credentials?username=alice');
    const draft = await json('/?service=turn');
    const matrix = await json('/_matrix/client/v3/voip/turnServer');
    const one = ({ username, password, uris }) => [{ urls: uris, username, credential: password }];
    const servers = {
      all: all.iceServers,
      draft: one(draft),
      matrix: one(matrix),
      ice: (await json('/ice')).iceServers,
      cloudflare: (await json('/v1/turn/keys/x/credentials/generate-ice-servers', { method: 'POST' })).iceServers,
      cloudflareOld: [(await json('/v1/turn/keys/x/credentials/generate', { method: 'POST' })).iceServers],
      twilio: (await json('/2010-04-01/Accounts/x/Tokens.json', { method: 'POST' })).ice_servers,
      metered: await json('/api/v1/turn/credentials'),
    };
    const counts = {};
    for (const [name, iceServers] of Object.entries(servers)) {
      const connection = new RTCPeerConnection({ iceServers });
      const known = connection.getConfiguration().iceServers;
      counts[name] = known.flatMap(({ urls }) => urls).length;
      connection.close();
    }
    // what /ice answers is a whole configuration
    new RTCPeerConnection(await json('/ice')).close();
    return counts;
  }, server.url, key);
  assert.deepEqual(read, {
    all: 2, draft: 2, matrix: 2, ice: 2, cloudflare: 3, cloudflareOld: 3, twilio: 3, metered: 3,
  });
  await page.close();
}

const cases = [
  ['the example page calls itself with a credential of the endpoint', exampleCalls],
  ['the example page calls itself with a pasted credential', pastedCredentialCalls],
  ['a wrong key is told to the page', wrongKeyIsTold],
  ['an RTCPeerConnection reads every shape', shapesAreRead],
];

const folder = await mkdtemp(join(tmpdir(), 'throughway-endpoint-'));
const example = await readFile(new URL('../../examples/ice-servers.html', import.meta.url));
const pages = createServer((_, answer) => answer.writeHead(200, { 'Content-Type': 'text/html' }).end(example));
pages.listen(pagePort, '127.0.0.1');
await once(pages, 'listening');
const server = await startServer(folder);
let passed = 0;
let failed = 0;
try {
  for (const name of ['chromium', 'firefox']) {
    const running = await launch(name);
    for (const [what, test] of cases) {
      try {
        await test(running, server);
        passed += 1;
        console.log(`ok    ${name}: ${what}`);
      } catch (error) {
        failed += 1;
        console.log(`FAIL  ${name}: ${what}: ${error.stack}`);
      }
    }
    await running.close();
  }
} finally {
  server.child.kill('SIGTERM');
  pages.closeAllConnections();
  pages.close();
  await rm(folder, { recursive: true, force: true });
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
