// The connectivity test in real browsers, on the status page, on the page for users and in the demo: against a server whose
// every transport is reached, one whose UDP loses a tenth and whose TLS is rejected, and one whose UDP gets no answer.
//
//   node connectivity.mjs [BINARY] [part of a case's name, which begins with the browser's]
//
// Needs root: it makes a network namespace of its own, where ports and packet filter are this test's. Like run.mjs otherwise:
// the binary may also come from THROUGHWAY_BIN, screenshots go to THROUGHWAY_SCREENSHOTS, the last line is
// `N passed, M failed`.

import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { launch } from './browsers.mjs';
import { checkReadable } from './readable.mjs';
import { until as untilWithin } from './until.mjs';

const WAIT_MS = 30_000;
const TEST_MS = 60_000;
const NAME = 'turn.example.org';
const ADDRESS = '192.0.2.1';
/** Its loss is one way, so that what is counted is this and nothing else. */
const LOST_PERCENT = 10;

const inside = process.argv.at(-1) === '--inside';
const [named, filter = ''] = process.argv.slice(2).filter((argument) => argument !== '--inside');
const binary = resolve(named || process.env.THROUGHWAY_BIN || '../../target/release/throughway');
if (!inside) {
  const arguments_ = ['--net', '--mount', '--propagation', 'private', process.execPath, fileURLToPath(import.meta.url), binary, filter, '--inside'];
  const { status, error } = spawnSync('unshare', arguments_, { stdio: 'inherit' });
  if (error) console.error(`unshare: ${error.message}`);
  process.exit(status ?? 1);
}

const token = randomBytes(24).toString('hex');
const secret = randomBytes(24).toString('hex');

/** Fixed ports: no other program is in this namespace. `admin` is http.listen, `users` is http.public. */
const SERVERS = {
  good: { udp: 3478, tcp: 3478, tls: 5349, admin: 8081, users: 8441, range: '20000-20999' },
  poor: { udp: 3479, tcp: null, tls: 5350, admin: 8082, users: 8442, range: '21000-21999' },
  blocked: { udp: 3480, tcp: 3480, tls: null, admin: 8083, users: 8443, range: '22000-22999' },
};
const DEMO = { port: 3490, http: 8084 };

const run = (program, ...arguments_) => execFileSync(program, arguments_, { stdio: ['ignore', 'pipe', 'inherit'] });

/** An interface with a default route that leads nowhere: without one, Firefox thinks that it is offline. */
async function makeNetwork(folder) {
  run('ip', 'link', 'set', 'lo', 'up');
  run('ip', 'link', 'add', 'there', 'type', 'veth', 'peer', 'name', 'nowhere');
  // An address that comes later ends what Chromium is loading: ERR_NETWORK_CHANGED.
  for (const device of ['there', 'nowhere']) run('ip', 'link', 'set', device, 'addrgenmode', 'none');
  run('ip', 'link', 'set', 'nowhere', 'up');
  run('ip', 'address', 'add', `${ADDRESS}/24`, 'dev', 'there');
  run('ip', 'link', 'set', 'there', 'up');
  run('ip', 'route', 'add', 'default', 'via', '192.0.2.254');
  const hosts = join(folder, 'hosts');
  await writeFile(hosts, `127.0.0.1 localhost\n${ADDRESS} ${NAME}\n`);
  run('mount', '--bind', hosts, '/etc/hosts');
  run('mount', '--bind', '/dev/null', '/etc/resolv.conf');
  const rules = join(folder, 'rules.nft');
  await writeFile(rules, `table inet firewall {
    chain input {
      type filter hook input priority 0;
      udp dport ${SERVERS.poor.udp} numgen random mod 100 < ${LOST_PERCENT} counter drop
      tcp dport ${SERVERS.poor.tls} counter reject with tcp reset
      udp dport ${SERVERS.blocked.udp} counter drop
    }
  }`);
  run('nft', '-f', rules);
}

async function makeCertificate(folder) {
  const at = (name) => join(folder, name);
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  const quiet = { stdio: 'ignore' };
  execFileSync('openssl', ['req', '-x509', ...newKey, '-days', '30', '-subj', '/CN=authority of the test', '-keyout', at('authority.key'), '-out', at('authority.pem')], quiet);
  execFileSync('openssl', ['req', ...newKey, '-subj', `/CN=${NAME}`, '-keyout', at('key.pem'), '-out', at('request.pem')], quiet);
  await writeFile(at('extensions'), `subjectAltName=DNS:${NAME}\nextendedKeyUsage=serverAuth\n`);
  execFileSync('openssl', ['x509', '-req', '-in', at('request.pem'), '-CA', at('authority.pem'), '-CAkey', at('authority.key'), '-days', '30', '-extfile', at('extensions'), '-out', at('certificate.pem')], quiet);
}

/** What a child writes, as objects; lines that are no JSON as their text. */
function eventsOf(stream) {
  const events = [];
  createInterface({ input: stream }).on('line', (line) => {
    try {
      events.push(JSON.parse(line));
    } catch {
      events.push({ message: line });
    }
  });
  return events;
}

const until = (what, question, milliseconds = WAIT_MS) => untilWithin(what, question, milliseconds);

async function startServer(folder, name) {
  const { udp, tcp, tls, admin, users, range } = SERVERS[name];
  const listen = (port) => (port ? `["${ADDRESS}:${port}"]` : '[]');
  const lines = [
    `listen.udp = ${listen(udp)}`,
    `listen.tcp = ${listen(tcp)}`,
    `listen.tls = ${listen(tls)}`,
    `tls.certificate = "${folder}/certificate.pem"`,
    `tls.private_key = "${folder}/key.pem"`,
    `relay.addresses = ["${ADDRESS}"]`,
    `relay.ports = "${range}"`,
    'log.format = "json"',
    '[http]',
    `listen = "127.0.0.1:${admin}"`,
    `public = ["https://${ADDRESS}:${users}"]`,
    // TLS goes by the name in the certificate, the others by this.
    `public_name = "${ADDRESS}"`,
    'admin_token_file = "token"',
    '[[http.keys]]',
    'name = "application"',
    `sha256 = "${createHash('sha256').update(randomBytes(24)).digest('hex')}"`,
    '[[auth.secrets]]',
    'id = "main"',
    `value = "${secret}"`,
    'claims = true',
  ];
  const config = join(folder, `${name}.toml`);
  await writeFile(config, lines.join('\n'), { mode: 0o600 });
  const child = spawn(binary, ['serve', '--config', config], { stdio: ['ignore', 'ignore', 'pipe'], env: {} });
  const events = eventsOf(child.stderr);
  await until(`the server ${name} to be ready`, () => {
    if (child.exitCode !== null) throw new Error(`it ended: ${JSON.stringify(events)}`);
    return events.some(({ message }) => message === 'ready');
  });
  return { child, events, status: `http://127.0.0.1:${admin}/status`, users: `https://${NAME}:${users}/connectivity` };
}

async function startDemo() {
  const child = spawn(binary, ['demo', '--port', String(DEMO.port), '--http', `127.0.0.1:${DEMO.http}`], { stdio: ['ignore', 'pipe', 'inherit'], env: {} });
  eventsOf(child.stdout);
  const url = `http://127.0.0.1:${DEMO.http}/`;
  await until('the page of the demo', async () => (await fetch(url).catch(() => null))?.ok);
  return { child, url };
}

/** A page in a window of its own, so that none is hidden behind another. */
async function open(running, url) {
  const context = await running.browser.createBrowserContext();
  const page = await context.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(String(error)));
  page.on('console', (message) => {
    if (message.type() === 'error' && !/40[13]|Failed to load resource/.test(message.text())) errors.push(message.text());
  });
  page.setDefaultNavigationTimeout(TEST_MS);
  await page.setViewport({ width: 1280, height: 800 });
  await page.goto(url);
  return { page, errors, close: () => context.close() };
}

async function openStatus(running, server) {
  const opened = await open(running, server.status);
  await until('the question for the token', () => opened.page.$eval('#token', (field) => field.checkVisibility()));
  assert.equal(await opened.page.$eval('#test', (card) => card.checkVisibility()), false, 'no test before the token');
  await opened.page.$eval('#token', (field, value) => { field.value = value; }, token);
  await opened.page.click('#login .button');
  await until('the test', () => opened.page.$eval('#test', (card) => card.checkVisibility()));
  return opened;
}

/** Starts the test by the keyboard, as somebody without a mouse does. */
async function startTest(page) {
  await page.evaluate(() => document.activeElement?.blur());
  const isAtButton = () => page.evaluate(() => document.activeElement?.matches('#test .test-button.primary') ?? false);
  for (let tabs = 0; !(await isAtButton()); tabs += 1) {
    assert.ok(tabs < 40, 'the button is reached by Tab');
    await page.keyboard.press('Tab');
  }
  await page.keyboard.press('Enter');
  // One that is refused at once may have ended before it is looked at.
  await until('the test to run', () => page.$eval('#test', (card) => ['running', 'done'].includes(card.dataset.state)));
}

/** The rows by transport, the verdict, what to do, and the text that is copied. */
async function resultOf(page) {
  await until('the end of the test', () => page.$eval('#test', (card) => card.dataset.state === 'done'), TEST_MS);
  return page.evaluate(() => {
    const text = (selector) => document.querySelector(selector)?.innerText ?? '';
    const rows = [...document.querySelectorAll('#test tbody tr')].map((row) => [
      row.dataset.transport,
      { outcome: row.dataset.outcome, place: row.querySelector('small').textContent, cells: [...row.querySelectorAll('td')].map((cell) => cell.textContent) },
    ]);
    return {
      rows: Object.fromEntries(rows),
      verdict: text('.test-verdict'),
      advice: [...document.querySelectorAll('.test-advice li')].map((line) => line.textContent),
      report: document.querySelector('.test-report').textContent,
    };
  });
}

const isMeasured = ([reached, relayed, roundTrip]) =>
  /^yes, (\d+|< 1) ms$/.test(reached) && /^yes, \d+ ms$/.test(relayed) && /^(\d+|< 1) ms, at most (\d+|< 1) ms$/.test(roundTrip);
const lostOf = ({ cells }) => {
  const found = /^([\d.]+) % of 250$/.exec(cells[3]);
  assert.ok(found, cells[3]);
  return Number(found[1]);
};

/** Every transport is reached, and the server has relayed what the page says: as sessions of a user of this test. */
async function everythingIsReached(running, server) {
  const { page, errors, close } = await openStatus(running, server);
  const before = server.events.length;
  await startTest(page);
  const { rows, verdict, advice, report } = await resultOf(page);
  const shown = JSON.stringify({ rows, verdict, advice }, null, 1);
  for (const name of ['UDP', 'TCP', 'TLS']) {
    assert.ok(isMeasured(rows[name].cells), `${name}: ${shown}`);
    // A browser without CPU to spare loses some itself.
    assert.ok(lostOf(rows[name]) <= 8, `${name}: ${shown}`);
    assert.equal(rows[name].place, `${name === 'TLS' ? NAME : ADDRESS} port ${SERVERS.good[name.toLowerCase()]}`);
  }
  assert.match(rows.STUN.cells[0], /^yes/, shown);
  assert.match(verdict, /^Calls work from this network, over UDP/);
  const own = () => server.events.slice(before).filter(({ message, user }) => message === 'session ended' && user?.startsWith('connectivity-test-'));
  const users = new Set(server.events.slice(before).filter(({ message }) => message === 'credential for a connectivity test issued').map(({ user }) => user));
  assert.ok(users.size >= 1 && report.split('\n').length >= 6);
  for (const transport of ['udp', 'tcp', 'tls']) {
    const both = await until(`two sessions over ${transport}`, () => {
      const ended = own().filter((session) => session.transport === transport);
      return ended.length >= 2 && ended;
    });
    // 250 messages of 160 bytes went from one client to the other, in packets with what DTLS and SCTP add.
    const most = Math.max(...both.map(({ bytes_to_client: bytes }) => bytes));
    assert.ok(most > 0.9 * 250 * 160, `${transport}: ${JSON.stringify(both)}`);
  }
  await checkReadable(running, page, 'status-test');
  await close();
  assert.deepEqual(errors, []);
}

/** An operator makes a link, and who opens it learns of the loss and of the firewall; the text to send has no password. */
async function aLinkTellsOfLoss(running, server) {
  const operator = await openStatus(running, server);
  await operator.page.select('#link-ttl', '3600');
  await operator.page.click('#link-form button[type=submit]');
  const link = await until('the link', () => operator.page.$eval('#link-url', (field) => field.value));
  assert.ok(link.startsWith(`${server.users}#username=`), link);
  assert.match(await operator.page.$eval('#link-note', (note) => note.textContent), /^For the user connectivity-test-[0-9a-f]{8}, until .*It relays nothing but the test\./);
  await checkReadable(running, operator.page, 'status-link');
  await operator.close();

  const { page, errors, close } = await open(running, link);
  await startTest(page);
  const { rows, verdict, advice, report } = await resultOf(page);
  const shown = JSON.stringify({ rows, verdict, advice }, null, 1);
  assert.ok(isMeasured(rows.UDP.cells) && rows.UDP.outcome === 'poor', shown);
  // Of 250 messages a tenth, give or take what chance does.
  assert.ok(lostOf(rows.UDP) >= 3 && lostOf(rows.UDP) <= 30, shown);
  assert.equal(rows.TLS.outcome, 'unreachable', shown);
  assert.match(verdict, /^Calls work from this network, over UDP, but not well\.$/);
  assert.ok(advice.some((sentence) => /^UDP: [\d.]+ % of the messages were lost/.test(sentence)), shown);
  assert.ok(advice.some((sentence) => sentence.startsWith(`TLS to ${NAME} port ${SERVERS.poor.tls} fails.`)), shown);
  const credential = new URLSearchParams(new URL(link).hash.slice(1)).get('credential');
  assert.ok(credential.length > 20 && !report.includes(credential), 'the text has no password');
  for (const part of [verdict, `UDP, ${ADDRESS} port ${SERVERS.poor.udp}: reached: yes`, 'Browser: Mozilla/', ...advice]) assert.ok(report.includes(part), `${part} in ${report}`);
  await page.evaluate(() => { document.querySelector('#test details').open = true; });
  await checkReadable(running, page, 'user-poor');
  await page.click('.test-after .test-button');
  await until('the text to be copied', () => page.$eval('.test-after .test-button', (button) => button.textContent === 'Copied'));
  await close();
  assert.deepEqual(errors, []);
}

/** Where UDP gets no answer the page says so, what to ask for, and what calls use meanwhile. */
async function blockedUdpIsTold(running, server) {
  const { page, errors, close } = await openStatus(running, server);
  await startTest(page);
  const { rows, verdict, advice } = await resultOf(page);
  const shown = JSON.stringify({ rows, verdict, advice }, null, 1);
  assert.equal(rows.UDP.outcome, 'unreachable', shown);
  assert.deepEqual(rows.UDP.cells.slice(0, 2), ['no answer', '–']);
  assert.equal(rows.STUN.outcome, 'unreachable', shown);
  assert.ok(isMeasured(rows.TCP.cells), shown);
  assert.equal(verdict, 'Calls work from this network, but only over TCP: UDP does not get through.');
  const place = `${ADDRESS} port ${SERVERS.blocked.udp}`;
  assert.ok(advice[0].startsWith(`UDP to ${place} gets no answer. Ask the administrator to allow UDP from this network to ${place}`), shown);
  assert.ok(advice[0].includes('Until then calls use TCP.'), shown);
  await checkReadable(running, page, 'status-blocked');
  await close();
  assert.deepEqual(errors, []);
}

/** A credential that the server does not take is told as such: it is no firewall. A link without one says what it lacks. */
async function badLinksAreTold(running, server) {
  const { page, errors, close } = await open(running, server.users);
  await until('the word on the link', () => page.$eval('#no-link', (card) => card.checkVisibility()));
  await checkReadable(running, page, 'user-no-link');
  const old = new URLSearchParams({ username: '1700000000:connectivity-test-00000000', credential: 'x' });
  await page.goto(`${server.users}?old#${old}`);
  await until('the end of the link', () => page.$eval('#no-link-text', (text) => text.textContent.startsWith('The link ended on ')));
  const wrong = new URLSearchParams({ username: `${Math.floor(Date.now() / 1000) + 600}:connectivity-test-00000000`, credential: 'x' });
  await page.goto(`${server.users}?wrong#${wrong}`);
  await startTest(page);
  const { rows, verdict, advice } = await resultOf(page);
  const shown = JSON.stringify({ rows, verdict, advice }, null, 1);
  assert.equal(verdict, 'The server refused the test.', shown);
  assert.ok(Object.values(rows).every(({ cells }) => cells[0] === 'refused (401)' || /^yes/.test(cells[0])), shown);
  assert.ok(advice.length === 3 && advice.every((sentence) => /the server refused the password/.test(sentence)), shown);
  await close();
  assert.deepEqual(errors, []);
}

async function theDemoHasIt(running, demo) {
  const { page, errors, close } = await open(running, demo.url);
  await startTest(page);
  const { rows, verdict } = await resultOf(page);
  const shown = JSON.stringify({ rows, verdict }, null, 1);
  for (const name of ['UDP', 'TCP']) {
    assert.ok(isMeasured(rows[name].cells), shown);
    assert.ok(lostOf(rows[name]) <= 8, shown);
  }
  assert.match(verdict, /^Calls work from this network, over UDP/);
  await checkReadable(running, page, 'demo-test');
  await close();
  assert.deepEqual(errors, []);
}

const folder = await mkdtemp(join(tmpdir(), 'throughway-connectivity-'));
await makeNetwork(folder);
await makeCertificate(folder);
await writeFile(join(folder, 'token'), `${token}\n`, { mode: 0o600 });
const servers = {};
for (const name of Object.keys(SERVERS)) servers[name] = await startServer(folder, name);
const demo = await startDemo();
const cases = [
  ['every transport is reached', everythingIsReached, servers.good],
  ['a link tells a user of loss and of a firewall', aLinkTellsOfLoss, servers.poor],
  ['blocked UDP is told, with what to ask for', blockedUdpIsTold, servers.blocked],
  ['links that do not work are told', badLinksAreTold, servers.good],
  ['the demo has the test', theDemoHasIt, demo],
];
let passed = 0;
let failed = 0;
/** Mostly they wait for five seconds to pass, so all of Chromium's run at a time. Firefox gives keys to the page in front only. */
for (const name of ['chromium', 'firefox']) {
  const chosen = cases.filter(([what]) => `${name}: ${what}`.includes(filter));
  if (!chosen.length) continue;
  const running = await launch(name, { authority: join(folder, 'authority.pem') });
  const run = async ([what, test, server]) => {
    const began = Date.now();
    const seconds = () => `${((Date.now() - began) / 1000).toFixed(1)} s`;
    try {
      await test(running, server);
      passed += 1;
      console.log(`ok    ${name}: ${what} (${seconds()})`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL  ${name}: ${what} (${seconds()}): ${error.stack}`);
    }
  };
  if (name === 'chromium') {
    await Promise.all(chosen.map(run));
  } else {
    for (const one of chosen) await run(one);
  }
  await running.close();
}
for (const { child } of [...Object.values(servers), demo]) child.kill('SIGKILL');
await rm(folder, { recursive: true, force: true });
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed || passed === 0 ? 1 : 0);
