// What must hold when two tabs call each other through the relay.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { Tab } from './tab.mjs';

const FILE_BYTES = 3_000_017;

export const cases = [
  {
    name: 'Chromium calls Chromium over UDP',
    run: (env) => wholeCall(env, ['chromium', 'chromium'], ['udp', 'udp']),
  },
  {
    name: 'Chromium calls Chromium over TCP',
    run: (env) => wholeCall(env, ['chromium', 'chromium'], ['tcp', 'tcp']),
  },
  {
    name: 'Firefox calls Firefox over UDP',
    run: (env) => wholeCall(env, ['firefox', 'firefox'], ['udp', 'udp']),
  },
  {
    name: 'Firefox calls Firefox over TCP',
    run: (env) => wholeCall(env, ['firefox', 'firefox'], ['tcp', 'tcp']),
  },
  {
    name: 'Chromium over UDP calls Firefox over TCP',
    run: (env) => wholeCall(env, ['chromium', 'firefox'], ['udp', 'tcp']),
  },
  { name: 'Chromium: a gap heals by itself', run: gapHeals },
  { name: 'Chromium: the call survives a restart of the server', run: (env) => serverRestarts(env, 'chromium', 'udp') },
  { name: 'Chromium over TCP: the call survives a restart of the server', run: (env) => serverRestarts(env, 'chromium', 'tcp') },
  { name: 'Firefox: the call survives a restart of the server', run: (env) => serverRestarts(env, 'firefox', 'udp') },
  { name: 'Chromium: a new connection when the ICE restart fails', run: newConnectionAsLastResort },
  { name: 'Chromium: changing to TCP during the call', run: changeToTcp },
  { name: 'Chromium: a wrong password is refused, and the page says so', run: wrongPassword },
  { name: 'Chromium: hanging up and calling again; a third tab is told why not', run: hangUpAndThirdTab },
];

/** Call, video, file with checksum, ICE restart, counts. */
async function wholeCall(env, [left, right], transports) {
  const { server } = env;
  const a = await env.open(left, 'A', { transport: transports[0] });
  const b = await env.open(right, 'B', { transport: transports[1] });
  await Promise.all([a.connected(), b.connected()]);

  await checkPairs(server, [a, b], transports);
  await Promise.all([a.framesGrow(), b.framesGrow()]);

  // counts, over a stretch of video between two silences: what left A's relayed address arrived at B's
  const before = await quietCounts(server, a, b);
  await Promise.all([a.speak(), b.speak()]);
  await Promise.all([a.framesGrow(30), b.framesGrow(30)]);
  const after = await quietCounts(server, a, b);
  checkStretch(before, after, 'a', 'b');
  checkStretch(before, after, 'b', 'a');
  checkSums(after);
  await Promise.all([a.speak(), b.speak()]);

  await fileArrives(a, b, 'from-a.bin');
  await fileArrives(b, a, 'from-b.bin');

  const [pairA, pairB] = await Promise.all([a.pair(), b.pair()]);
  await a.click('#restart');
  for (const tab of [a, b]) {
    await tab.until('an ICE restart is done', () => window.throughway.counters.restarted === 1, 12_000);
    await tab.connected();
  }
  await Promise.all([a.framesGrow(), b.framesGrow()]);
  for (const [tab, was] of [[a, pairA], [b, pairB]]) {
    const counters = await tab.get('counters');
    assert.equal(counters.rebuilds, 0, 'the ICE restart sufficed');
    const now = await tab.pair();
    assert.notDeepEqual([now.local.port, now.remote.port], [was.local.port, was.remote.port], `${tab.name}: another pair`);
  }
  await fileArrives(a, b, 'after-the-restart.bin');
  await checkPairs(server, [a, b], transports);
}

/** Both ends are relayed addresses of this server, mirrored, over the transport that was chosen. */
async function checkPairs(server, [a, b], [transportA, transportB]) {
  const [pairA, pairB] = [await a.pair(), await b.pair()];
  for (const [tab, pair, transport] of [[a, pairA, transportA], [b, pairB, transportB]]) {
    assert.equal(pair.local.type, 'relay', `${tab.name}: local candidate`);
    assert.equal(pair.relayProtocol, transport, `${tab.name}: way to the relay`);
    const { sessions } = await server.usage(tab.user);
    const relayed = sessions.map((session) => session.relayed);
    assert.ok(relayed.includes(`${pair.local.address}:${pair.local.port}`), `${tab.name}: ${pair.local.port} is among the server's sessions ${relayed}`);
  }
  assert.equal(pairA.remote.port, pairB.local.port, "A's remote end is B's relayed port");
  assert.equal(pairB.remote.port, pairA.local.port, "B's remote end is A's relayed port");
}

async function fileArrives(from, to, name) {
  const folder = await mkdtemp(join(tmpdir(), 'throughway-file-'));
  try {
    const content = randomBytes(FILE_BYTES);
    const path = join(folder, name);
    await writeFile(path, content);
    await from.chooseFile(path);
    const expected = createHash('sha256').update(content).digest('hex');
    for (const tab of [from, to]) {
      const transfer = await tab.transfer(name);
      assert.equal(transfer.state, 'done', `${tab.name}: ${name}: ${transfer.problem}`);
      assert.equal(transfer.bytes, FILE_BYTES, tab.name);
      assert.equal(transfer.sha256, expected, `${tab.name}: checksum of ${name}`);
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** The server's counts for both tabs and as a whole, at a moment when nothing is on its way. */
async function quietCounts(server, a, b) {
  await Promise.all([a.silence(), b.silence()]);
  const end = Date.now() + 15_000;
  let last = '';
  for (;;) {
    const [{ user: ofA, server: whole }, { user: ofB }] = [await server.usage(a.user), await server.usage(b.user)];
    const counts = { a: ofA, b: ofB, whole, metrics: payloadOf(await server.metrics()) };
    const now = JSON.stringify(counts);
    if (now === last) return counts;
    last = now;
    if (Date.now() > end) throw new Error(`the counts never rest: ${now}`);
    await sleep(60);
  }
}

const WAYS = { from_client: ['received', 'clients'], to_peers: ['sent', 'peers'], from_peers: ['received', 'peers'], to_client: ['sent', 'clients'] };

/** The four ways out of /metrics, in the shape of /usage. */
function payloadOf(samples) {
  const counts = {};
  for (const [name, [way, side]] of Object.entries(WAYS)) {
    counts[name] = {};
    for (const unit of ['packets', 'bytes']) {
      const found = samples.find((each) => each.name === `throughway_payload_${unit}_total` && each.labels.way === way && each.labels.side === side);
      assert.ok(found, `/metrics has throughway_payload_${unit}_total for ${way} ${side}`);
      counts[name][unit] = found.value;
    }
  }
  return counts;
}

function checkStretch(before, after, from, to) {
  for (const unit of ['packets', 'bytes']) {
    const grown = (tab, way) => after[tab][way][unit] - before[tab][way][unit];
    assert.equal(grown(from, 'to_peers'), grown(from, 'from_client'), `${unit} of ${from}: passed on = taken`);
    assert.equal(grown(to, 'from_peers'), grown(from, 'to_peers'), `${unit} from ${from} to ${to}: arrived = sent`);
    assert.equal(grown(to, 'to_client'), grown(to, 'from_peers'), `${unit} to ${to}: delivered = arrived`);
    assert.ok(grown(from, 'to_peers') > 0, `${unit} of ${from}: the video was counted`);
  }
}

/** Three ways of counting agree: the sum of both tabs' sessions, the workers' own counters, /metrics. */
function checkSums({ a, b, whole, metrics }) {
  for (const way of Object.keys(WAYS)) {
    for (const unit of ['packets', 'bytes']) {
      assert.equal(a[way][unit] + b[way][unit], whole[way][unit], `${way} ${unit}: the sum of the sessions = the server`);
      assert.equal(metrics[way][unit], whole[way][unit], `${way} ${unit}: /metrics = the server`);
    }
  }
}

/** Stage 1: the server stands still for a moment, and nobody needs to do anything. */
async function gapHeals(env) {
  const [a, b] = await env.call('chromium');
  env.server.pause();
  try {
    await a.until('stage 1', () => window.throughway.phase === 'disconnected', 12_000);
  } finally {
    env.server.resume();
  }
  await Promise.all([a.connected(), b.connected()]);
  const counters = await a.get('counters');
  assert.equal(counters.healed, 1);
  assert.equal(counters.restarts, 0, 'no ICE restart was needed');
  await Promise.all([a.framesGrow(), b.framesGrow()]);
}

/** Stage 2, with fresh credentials: the secret of the old process is gone. */
async function serverRestarts(env, browser, transport) {
  const { server } = env;
  const [a, b] = await env.call(browser, transport);
  const [pairA] = [await a.pair()];
  await server.stop('SIGKILL');
  await server.start();
  for (const tab of [a, b]) {
    await tab.until('signalling is back', () => window.throughway.signalling.up && window.throughway.signalling.peer !== null, 10_000);
    await tab.until('the call is back', () => window.throughway.phase === 'connected' && window.throughway.counters.restarts > 0, 30_000);
  }
  await Promise.all([a.framesGrow(), b.framesGrow()]);
  await fileArrives(a, b, 'after-the-server.bin');
  await checkPairs(server, [a, b], [transport, transport]);
  assert.notEqual((await a.pair()).local.port, pairA.local.port, 'a relayed address of the new process');
}

/** Stage 3: the ICE restart can not work, because the page is kept from making one. */
async function newConnectionAsLastResort(env) {
  const before = () => {
    RTCPeerConnection.prototype.setConfiguration = () => {
      throw new Error('not in this test');
    };
  };
  const [a, b] = await env.call('chromium', 'udp', { before });
  await a.click('#restart');
  // the other tab may still wait for the restart when the new connection comes
  const caller = (await a.get('signalling')).caller ? a : b;
  await caller.until('stage 3', () => window.throughway.phase === 'rebuilding', 12_000);
  await caller.until('a new connection', () => window.throughway.counters.rebuilt === 1, 12_000);
  await Promise.all([a.connected(), b.connected()]);
  await Promise.all([a.framesGrow(), b.framesGrow()]);
  await fileArrives(b, a, 'on-the-new-channel.bin');
}

async function changeToTcp(env) {
  const [a, b] = await env.call('chromium');
  await checkPairs(env.server, [a, b], ['udp', 'udp']);
  await a.click('input[name=transport][value=tcp]');
  await a.until('the relay is reached over TCP', () => window.throughway.numbers?.pair.relayProtocol === 'tcp', 12_000);
  await Promise.all([a.connected(), b.connected()]);
  await Promise.all([a.framesGrow(), b.framesGrow()]);
  await checkPairs(env.server, [a, b], ['tcp', 'udp']);
}

/** So that a call can fail at all: without the right password nothing passes, and the reason is shown. */
async function wrongPassword(env) {
  const before = () => {
    const real = window.fetch;
    window.fetch = async (...args) => {
      const answer = await real(...args);
      if (!String(args[0]).startsWith('/config')) return answer;
      const config = await answer.json();
      for (const entry of config.iceServers) entry.credential = 'wrong';
      return new Response(JSON.stringify(config), { status: 200 });
    };
  };
  const a = await env.open('chromium', 'A', { before });
  const b = await env.open('chromium', 'B', { before });
  for (const tab of [a, b]) {
    await tab.until('the page gives up and says why', () => window.throughway.phase === 'failed', 12_000);
    assert.match(await tab.get('reason'), /401/, tab.name);
    assert.deepEqual((await env.server.usage(tab.user)).sessions, [], `${tab.name}: no allocation`);
  }
}

async function hangUpAndThirdTab(env) {
  const [a, b] = await env.call('chromium');
  const third = await env.open('chromium', 'C');
  await third.until('it is told that the room is full', () => document.getElementById('cover-text').textContent.includes('two members'), 5_000);

  await b.click('#hang-up');
  for (const tab of [a, b]) await tab.until('the call is over', () => window.throughway.phase === 'ended', 5_000);
  for (const tab of [a, b]) await allocationsEnd(env.server, tab);

  await b.click('#again');
  await Promise.all([a.connected(), b.connected()]);
  await Promise.all([a.framesGrow(), b.framesGrow()]);
}

/** A browser that closes a connection gives its allocations back at once, with a Refresh of lifetime 0. */
async function allocationsEnd(server, tab) {
  const end = Date.now() + 5_000;
  for (;;) {
    const { sessions } = await server.usage(tab.user);
    if (sessions.length === 0) return;
    if (Date.now() > end) throw new Error(`${tab.name}: allocations are left: ${JSON.stringify(sessions)}`);
    await sleep(100);
  }
}
