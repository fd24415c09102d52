// The status page in real browsers: it asks for the token, shows sessions that these browsers hold themselves, follows them,
// fits a wide and a narrow screen, and takes nothing that a user chose for markup.
//
//   node status.mjs [BINARY]
//
// Like run.mjs: the binary may also come from THROUGHWAY_BIN; the last line is `N passed, M failed`. Screenshots go to the
// directory in THROUGHWAY_SCREENSHOTS, if it is set.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { createHmac, randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { networkInterfaces, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';

import { launch } from './browsers.mjs';
import { until as untilWithin } from './until.mjs';

const WAIT_MS = 20_000;
const WIDTHS = [[1280, 900], [390, 844]];

const binary = resolve(process.argv[2] || process.env.THROUGHWAY_BIN || '../../target/release/throughway');
const screenshots = process.env.THROUGHWAY_SCREENSHOTS;
const token = randomBytes(24).toString('hex');
const secret = randomBytes(24).toString('hex');

// Firefox gathers on no loopback address; where there is no other, it can't call.
const addresses = Object.values(networkInterfaces()).flat().filter(({ family, internal }) => family === 'IPv4' && !internal);
const address = addresses[0]?.address ?? '127.0.0.1';

async function startServer(folder, hasToken = true) {
  const [certificate, key] = [join(folder, 'certificate.pem'), join(folder, 'key.pem')];
  execFileSync('openssl', [
    'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '9', '-subj', '/CN=turn.example.org',
    '-addext', 'subjectAltName=DNS:turn.example.org', '-keyout', key, '-out', certificate,
  ], { stdio: 'ignore' });
  await writeFile(join(folder, 'token'), `${token}\n`, { mode: 0o600 });
  const lines = [
    `listen.udp = ["${address}:0"]`,
    `listen.tcp = ["${address}:0"]`,
    `listen.tls = ["${address}:0"]`,
    `tls.certificate = "${certificate}"`,
    `tls.private_key = "${key}"`,
    // An authority that does not answer: the page says so.
    `tls.acme = { domains = ["own.example.org"], directory = "https://127.0.0.1:9/directory", state = "${folder}/acme", http_listen = "127.0.0.1:0" }`,
    `relay.addresses = ["${address}"]`,
    'peers.allow = ["127.0.0.0/8"]',
    'log.format = "json"',
    '[http]',
    'listen = "127.0.0.1:0"',
    ...(hasToken ? ['admin_token_file = "token"'] : []),
    '[[auth.secrets]]',
    'id = "main"',
    `value = "${secret}"`,
  ];
  const config = join(folder, 'config.toml');
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
  await until('the server to be ready', () => {
    if (child.exitCode !== null) throw new Error(`it ended: ${JSON.stringify(events)}`);
    return events.some(({ message }) => message === 'ready');
  });
  const url = events.find(({ message }) => message === 'metrics and health').address;
  const turn = events.find(({ message, transport }) => message === 'listening' && transport === 'udp').address;
  return { child, url, turn: `turn:${turn}?transport=udp` };
}

const until = (what, question) => untilWithin(what, question, WAIT_MS);

function credential(user) {
  const username = `${Math.floor(Date.now() / 1000) + 3600}:${user}`;
  return { username, credential: createHmac('sha1', secret).update(username).digest('base64') };
}

async function api(server, path, body) {
  const head = { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' };
  const answer = await fetch(server.url + path, body ? { method: 'POST', headers: head, body: JSON.stringify(body) } : { headers: head });
  assert.equal(answer.status, 200, await answer.clone().text());
  return answer.json();
}

/** A page that calls itself through the relay as a user, and goes on sending until it is closed. */
async function call(running, server, user) {
  const page = await running.browser.newPage();
  await page.goto(`${server.url}/healthz`);
  await page.evaluate(async (iceServers) => {
    const make = () => new RTCPeerConnection({ iceServers, iceTransportPolicy: 'relay' });
    const [a, b] = [make(), make()];
    a.onicecandidate = ({ candidate }) => candidate && b.addIceCandidate(candidate);
    b.onicecandidate = ({ candidate }) => candidate && a.addIceCandidate(candidate);
    const channel = a.createDataChannel('x', { ordered: false, maxRetransmits: 0 });
    await a.setLocalDescription();
    await b.setRemoteDescription(a.localDescription);
    await b.setLocalDescription();
    await a.setRemoteDescription(b.localDescription);
    await new Promise((open) => { channel.onopen = open; });
    window.hangUp = () => [a, b].forEach((connection) => connection.close());
    const packet = new Uint8Array(1000);
    window.sending = setInterval(() => { if (channel.readyState === 'open') channel.send(packet); }, 20);
  }, [{ urls: server.turn, ...credential(user) }]);
  return page;
}

/** A page that is refused: it has a wrong password. */
async function refusedCall(running, server, user) {
  const page = await running.browser.newPage();
  await page.goto(`${server.url}/healthz`);
  await page.evaluate(async (iceServers) => {
    const connection = new RTCPeerConnection({ iceServers, iceTransportPolicy: 'relay' });
    connection.createDataChannel('x');
    await connection.setLocalDescription();
    await new Promise((over) => {
      connection.onicegatheringstatechange = () => connection.iceGatheringState === 'complete' && over();
    });
    connection.close();
  }, [{ urls: server.turn, username: credential(user).username, credential: 'mistyped' }]);
  await page.close();
}

async function open(running, server) {
  const page = await running.browser.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(String(error)));
  page.on('console', (message) => {
    // A refused call is in the browser's own log; what the page says or breaks is not.
    if (message.type() === 'error' && !/40[13]|Failed to load resource|ERR_CONNECTION/.test(message.text())) errors.push(message.text());
  });
  await page.setViewport({ width: 1280, height: 900 });
  await page.goto(`${server.url}/status`);
  return { page, errors };
}

const text = (page, selector) => page.$eval(selector, (element) => element.innerText);
const isShown = (page, selector) => page.$eval(selector, (element) => element.checkVisibility());

async function logIn(page, given = token) {
  await until('the question for the token', () => isShown(page, '#token'));
  await page.$eval('#token', (field, value) => { field.value = value; }, given);
  await page.click('#login .button');
}

async function picture(page, name) {
  if (!screenshots) return;
  await mkdir(screenshots, { recursive: true });
  await page.screenshot({ path: join(screenshots, `${name}.png`), fullPage: true });
}

/** Without the token the page shows nothing, with a wrong one it says so, and the right one stays in this tab alone. */
async function asksForTheToken(running, server) {
  const { page, errors } = await open(running, server);
  await until('the question for the token', () => isShown(page, '#login'));
  assert.equal(await isShown(page, '#numbers'), false);
  assert.equal(await isShown(page, '#people'), false);
  await picture(page, `${running.name}-login`);
  await logIn(page, 'another-token-altogether');
  await until('the refusal', async () => /not the token in http\.admin_token_file/.test(await text(page, '#login')));
  assert.equal(await isShown(page, '#numbers'), false);
  await logIn(page);
  await until('the numbers', () => isShown(page, '#people'));
  assert.equal(await isShown(page, '#login'), false);
  await page.reload();
  await until('the numbers again', () => isShown(page, '#people'));
  assert.ok(!(await page.content()).includes(token), 'the token is in no text of the page');
  const { page: other } = await open(running, server);
  await until('the other tab to ask', () => isShown(other, '#login'));
  await other.close();
  await page.close();
  assert.deepEqual(errors, []);
}

/** The page shows what the API says, follows it, and takes names for text. */
async function showsWhatHappens(running, server) {
  const eve = `<img src=x onerror="document.title='eve'">`;
  const { page, errors } = await open(running, server);
  await logIn(page);
  const [alice, mallory] = [await call(running, server, 'alice'), await call(running, server, eve)];
  await refusedCall(running, server, 'bob');
  const rows = () => page.$$eval('#session-table tbody tr', (lines) => lines.map((line) => line.innerText));
  await until('the four sessions', async () => {
    const shown = await rows();
    return shown.filter((row) => row.includes('alice')).length === 2 && shown.filter((row) => row.includes(eve)).length === 2;
  });
  const { sessions } = await api(server, '/v1/sessions');
  for (const session of sessions) {
    const row = (await rows()).find((shown) => shown.includes(session.session));
    for (const part of [session.user, session.client, session.relayed, session.transport]) assert.ok(row?.includes(part), `${row} ${part}`);
  }
  assert.equal(await text(page, '#sessions'), String(sessions.length));
  assert.equal(await page.title(), 'throughway status', 'a name is no markup');
  // 50 packets a second of 1,000 bytes in each of two calls: what comes from one client goes to another.
  for (const id of ['#rate-in', '#rate-out']) {
    await until(`a rate in ${id}`, async () => /^(\d{3}|\d\.\d) (k|M)bit\/s$/.test(await text(page, id)));
  }
  await until('the refusal', async () => /bad_integrity \(401\)/.test(await text(page, '#refusals')));
  assert.match(await text(page, '#refusals'), /bob[\s\S]*throughway credentials verify/);
  await until('its count', async () => /bad_integrity/.test(await text(page, '#refused-table')));
  assert.ok(!/challenge/.test(await text(page, '#refused-table')), 'a first request is no refusal');
  const validUntil = new Date(Date.now() + 9 * 86_400_000).toISOString().slice(0, 10);
  assert.match(await text(page, '#certificate-table'), new RegExp(`turn\\.example\\.org\\s+${validUntil}\\s+[89]$`, 'm'));
  // The certificate that the server should get itself: for what, and why it has none yet.
  await until('the error of the authority', async () => /127\.0\.0\.1:9/.test(await text(page, '#acme-error')));
  assert.equal(await text(page, '#acme-domains'), 'own.example.org');
  assert.equal(await text(page, '#acme-until'), 'no certificate yet');
  assert.equal(await text(page, '#acme-next-label'), 'Next try');
  assert.match(await text(page, '#acme-next'), /^\d{4}-\d\d-\d\d \d\d:\d\d UTC$/);
  assert.ok(await page.$('#certificate-table td.wait'), 'nine days are few');
  assert.equal(await text(page, '#pill'), 'ready');
  for (const [width, height] of WIDTHS) {
    await page.setViewport({ width, height });
    const widest = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(widest <= width, `${widest} of ${width} pixels`);
    for (const part of ['#numbers', '#people', '#why', '#certs', '#who', '#test', '#link']) assert.ok(await isShown(page, part), part);
    await picture(page, `${running.name}-${width}`);
  }
  await page.setViewport({ width: 1280, height: 900 });
  // An operator ends sessions, and they vanish.
  assert.equal((await api(server, '/v1/kick', { user: eve })).ended, 2);
  await until('the kicked sessions to vanish', async () => !(await rows()).some((row) => row.includes(eve)));
  await until('the reason', async () => /session kicked\s+2/.test(await text(page, '#ended-table')));
  await alice.evaluate(() => window.hangUp());
  await until('no session to be left', async () => /no live sessions/.test(await text(page, '#session-table')));
  for (const each of [alice, mallory, page]) await each.close();
  assert.deepEqual(errors, []);
}

/** Where no token is configured the numbers are free, as /metrics is, and the page tells how names could be seen. */
async function showsNumbersWithoutToken(running) {
  const server = await startServer(folder, false);
  try {
    const { page, errors } = await open(running, server);
    await until('the numbers', () => isShown(page, '#numbers'));
    await until('the way to names', async () => /set http\.admin_token_file/.test(await text(page, '#login')));
    assert.equal(await isShown(page, '#token'), false);
    assert.equal(await isShown(page, '#people'), false);
    await until('it to go on', async () => Number.parseInt(await text(page, '#uptime'), 10) >= 3);
    await page.close();
    assert.deepEqual(errors, []);
  } finally {
    server.child.kill('SIGKILL');
  }
}

/** A server that drains or is gone is told as such. Comes last: the server ends with it. */
async function tellsOfTheEnd(running, server) {
  const { page, errors } = await open(running, server);
  await logIn(page);
  await until('the numbers', () => isShown(page, '#people'));
  // The server ends by itself as soon as no session is left.
  const alice = await call(running, server, 'alice');
  await page.bringToFront();
  await api(server, '/v1/drain', {});
  await until('draining', async () => (await text(page, '#pill')) === 'draining');
  server.child.kill('SIGKILL');
  await until('the end', async () => (await text(page, '#pill')) === 'No answer from the server');
  // F-C1, its sibling: what is old does not look alive, and the main place says since when.
  const told = /^The server does not answer\. The numbers below are from (\d\d):(\d\d):\d\d\./.exec(await text(page, '#stale'));
  assert.ok(told, await text(page, '#stale'));
  const minuteOf = ([hours, minutes]) => 60 * Number(hours) + Number(minutes);
  const now = await page.evaluate(() => [new Date().getHours(), new Date().getMinutes()]);
  assert.ok((minuteOf(now) - minuteOf(told.slice(1)) + 1440) % 1440 <= 5, `${told[0]} at ${now}`);
  const looks = (selector) => page.$eval(selector, (part) => [getComputedStyle(part).color, getComputedStyle(part.closest('.card')).borderTopStyle]);
  assert.deepEqual(await looks('#sessions'), await looks('#sessions-by'), 'the old numbers have lost their colour');
  assert.equal((await looks('#sessions'))[1], 'dashed', 'and their edge is broken');
  for (const [width, height] of WIDTHS) {
    await page.setViewport({ width, height });
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= width);
    await picture(page, `${running.name}-gone-${width}`);
  }
  for (const each of [alice, page]) await each.close();
  assert.deepEqual(errors, []);
}

const cases = [
  ['the page asks for the token', asksForTheToken],
  ['the page shows what happens', showsWhatHappens],
  ['the page shows numbers where no token is configured', showsNumbersWithoutToken],
  ['the page tells of the end', tellsOfTheEnd],
];

let folder;
let passed = 0;
let failed = 0;
for (const name of ['chromium', 'firefox']) {
  folder = await mkdtemp(join(tmpdir(), 'throughway-status-'));
  const server = await startServer(folder);
  const running = await launch(name);
  try {
    for (const [what, run] of cases) {
      try {
        await run(running, server);
        passed += 1;
        console.log(`ok    ${name}: ${what}`);
      } catch (error) {
        failed += 1;
        console.log(`FAIL  ${name}: ${what}: ${error.stack}`);
      }
    }
  } finally {
    await running.close();
    server.child.kill('SIGKILL');
    await rm(folder, { recursive: true, force: true });
  }
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
