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
  // F-C1
  { name: 'Chromium: the second tab is closed and opened again', run: (env) => secondTabCloses(env, 'chromium') },
  { name: 'Firefox: the second tab is closed and opened again', run: (env) => secondTabCloses(env, 'firefox') },
  { name: 'Chromium: the second tab crashes', run: secondTabCrashes },
  { name: 'Chromium: the page says that the server has stopped, and comes back', run: (env) => serverStops(env, 'chromium') },
  { name: 'Firefox: the page says that the server has stopped, and comes back', run: (env) => serverStops(env, 'firefox') },
  { name: 'Chromium: the page says that the server has stopped before a call', run: serverStopsBeforeACall },
  // F-C2
  { name: 'Chromium: a link and its QR code for a phone', run: phoneLink },
  // F-C3
  { name: 'Chromium: relay and direct, and the round trips of both', run: relayAndDirect },
  { name: 'Chromium: the code for an own page works, and nothing is cut', run: ownPageAndLayout },
  { name: 'Chromium: the page says why there is a relay, in one voice', run: reasonAndVoice },
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
  const [pairA, pairB] = await mirroredPairs(a, b);
  for (const [tab, pair, transport] of [[a, pairA, transportA], [b, pairB, transportB]]) {
    assert.equal(pair.local.type, 'relay', `${tab.name}: local candidate`);
    assert.equal(pair.relayProtocol, transport, `${tab.name}: way to the relay`);
    const { sessions } = await server.usage(tab.user);
    const relayed = sessions.map((session) => session.relayed);
    assert.ok(relayed.includes(`${pair.local.address}:${pair.local.port}`), `${tab.name}: ${pair.local.port} is among the server's sessions ${relayed}`);
  }
}

/**
 * The pairs of both tabs, once each one's remote end is the other's relayed port: Chromium changes the selected pair
 * while checks go on, and each tab reads its own once a second.
 */
async function mirroredPairs(a, b) {
  const end = Date.now() + 15_000;
  for (;;) {
    const [pairA, pairB] = [await a.pair(), await b.pair()];
    if (pairA.remote.port === pairB.local.port && pairB.remote.port === pairA.local.port) return [pairA, pairB];
    if (Date.now() > end) throw new Error(`the selected pairs never mirror each other: ${JSON.stringify([pairA, pairB])}`);
    await sleep(100);
  }
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

/** Stage 1: the server stands still for a moment, and there is nothing to do. */
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
  // It may be over before it is looked at.
  await caller.until('stage 3', () => window.throughway.phase === 'rebuilding' || window.throughway.counters.rebuilt > 0, 12_000);
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
  assert.equal(await third.page.$eval('#cover-text', (text) => text.textContent), 'This room already has two members; open another room.');

  await b.click('#hang-up');
  for (const tab of [a, b]) await tab.until('the call is over', () => window.throughway.phase === 'ended', 5_000);
  for (const tab of [a, b]) await allocationsEnd(env.server, tab);

  await b.click('#again');
  await Promise.all([a.connected(), b.connected()]);
  await Promise.all([a.framesGrow(), b.framesGrow()]);
}

/** What lies over the picture, or null while the picture is seen. */
const coverOf = (tab) => tab.page.evaluate(() => {
  const seen = (id) => document.getElementById(id).checkVisibility();
  return seen('cover') ? { title: document.getElementById('cover-title').textContent, second: seen('second'), again: seen('again') } : null;
});

/** Opens what the button offers, in a tab of its own. */
async function openAgain(env, a, browser) {
  const offered = new URL(await a.page.$eval('#second', (link) => link.href));
  assert.equal(offered.hash.slice(1).split('&')[0], `room=${env.room}`);
  const again = await env.open(browser, 'B again');
  await Promise.all([a.connected(), again.connected()]);
  await Promise.all([a.framesGrow(), again.framesGrow()]);
}

/** A tab that is closed says so; ICE would take five seconds to notice. */
const CLOSE_MS = 3_000;

async function secondTabCloses(env, browser) {
  const [a, b] = await env.call(browser);
  // as a person closes it: the page hears of it
  await b.page.close({ runBeforeUnload: true });
  await a.until('the call is over', () => window.throughway.phase === 'ended', CLOSE_MS);
  assert.deepEqual(await coverOf(a), { title: 'The other tab was closed', second: true, again: false });
  assert.equal(await a.page.$eval('#remote', (video) => video.srcObject), null, 'no frozen picture');
  assert.equal(await a.page.$eval('#pill', (pill) => pill.dataset.tone), 'idle');
  await openAgain(env, a, browser);
  // Nothing of the calls is in the terminal: the address is still the last line.
  assert.match(env.server.output().trim().split('\n').pop(), /Open in Chromium or Firefox: {2}http:\/\/127\.0\.0\.1:\d+\/$/);
}

/** A tab that says nothing at its end: first the picture is covered, then the call is over. */
async function secondTabCrashes(env) {
  const [a, b] = await env.call('chromium');
  const session = await b.page.createCDPSession();
  session.send('Page.crash').catch(() => {});
  await a.until('the still picture is covered', () => document.getElementById('cover').checkVisibility(), 12_000);
  assert.notEqual(await a.page.$eval('#pill', (pill) => pill.dataset.tone), 'good');
  await a.until('the call is over', () => window.throughway.phase === 'ended', 30_000);
  // Of a tab that crashed the browser may close the connection in good order, which looks like a goodbye.
  const { title, ...buttons } = await coverOf(a);
  assert(['The other tab is gone', 'The other tab was closed'].includes(title), title);
  assert.deepEqual(buttons, { second: true, again: false });
  await openAgain(env, a, 'chromium');
}

async function serverStops(env, browser) {
  const { server } = env;
  const [a, b] = await env.call(browser);
  await server.stop('SIGKILL');
  for (const tab of [a, b]) {
    await tab.until('the main place says so', () => document.getElementById('cover').checkVisibility()
      && document.getElementById('cover-title').textContent === 'The server does not answer', 12_000);
    assert.equal(await tab.page.$eval('#pill-text', (text) => text.textContent), 'No answer from the server');
    assert.equal((await coverOf(tab)).second, false, 'there is nothing to open');
  }
  await server.start();
  for (const tab of [a, b]) {
    await tab.until('the call is back', () => window.throughway.phase === 'connected' && window.throughway.counters.restarts > 0, 40_000);
    await tab.until('the picture is seen', () => !document.getElementById('cover').checkVisibility(), 8_000);
  }
  await Promise.all([a.framesGrow(), b.framesGrow()]);
}

async function serverStopsBeforeACall(env) {
  const { server } = env;
  const a = await env.open('chromium', 'A');
  await a.until('it waits for a second tab', () => window.throughway.signalling.up, 5_000);
  await server.stop();
  await a.until('the main place says so', () => document.getElementById('cover-title').textContent === 'The server does not answer', 5_000);
  assert.deepEqual(await coverOf(a), { title: 'The server does not answer', second: false, again: false });
  await server.start();
  await a.until('the page is as before', () => document.getElementById('cover-title').textContent === 'Call yourself through the relay', 8_000);
  assert.equal((await coverOf(a)).second, true);
}

/** An address of the host of a container, for example: this machine does not have it, and needs no network for it. */
const PHONE_ADDRESS = '203.0.113.7';

/** Presses a button that copies, and returns the clipboard's text. */
async function copied(tab, selector) {
  await tab.page.browserContext().overridePermissions(new URL(tab.page.url()).origin, ['clipboard-read', 'clipboard-sanitized-write']);
  await tab.page.bringToFront();
  await tab.page.evaluate(() => navigator.clipboard.writeText('nothing yet'));
  await tab.page.click(selector);
  await tab.until(`${selector} says that it did`, (name) => document.querySelector(name).textContent === 'Copied', 5_000, selector);
  return tab.page.evaluate(() => navigator.clipboard.readText());
}

async function phoneLink(env) {
  const { server } = env;
  const a = await env.open('chromium', 'A');
  await a.until('without --lan the card names it', () => document.getElementById('phone-none').checkVisibility(), 5_000);
  assert.match(await a.page.$eval('#phone-none', (text) => text.textContent), /throughway demo --lan/);
  assert.equal(await a.page.$eval('#phone-link', (card) => card.checkVisibility()), false);
  await server.stop();
  await server.start({ lan: PHONE_ADDRESS });
  await a.until('with --lan it has a link', () => document.getElementById('phone-link').checkVisibility(), 10_000);
  const link = await a.page.$eval('#phone-url', ({ href }) => href);
  const [address, room] = link.split('#');
  assert.match(address, new RegExp(`^http://${PHONE_ADDRESS}:${server.httpPort}/\\?token=[0-9a-f]{32}$`));
  assert.equal(room, `room=${env.room}`, 'the phone comes into this room');
  const terminal = server.output().slice(server.output().lastIndexOf('STUN and TURN on'));
  assert.ok(terminal.includes(address), 'the terminal has the same link');
  assert.doesNotMatch(terminal, /only this machine can/i);
  await a.until('the QR code is seen', () => document.getElementById('phone-code').naturalWidth > 200, 5_000);
  assert.equal(await copied(a, '#phone-copy'), link);
}

async function relayAndDirect(env) {
  const [a, b] = await env.call('chromium');
  await a.until('a round trip over the relay', () => window.throughway.roundTrips.relay !== null, 8_000);
  await a.click('input[name=way][value=direct]');
  for (const tab of [a, b]) {
    await tab.until('a direct call', () => window.throughway.phase === 'connected' && window.throughway.carrier === 'direct'
      && window.throughway.numbers?.pair.local.type !== 'relay' && window.throughway.roundTrips.direct !== null, 15_000);
    assert.equal(await tab.page.$eval('input[name=way][value=direct]', (choice) => choice.checked), true, `${tab.name} follows`);
    assert.equal(await tab.page.$eval('#pill-text', (text) => text.textContent), 'Direct');
  }
  const shown = await a.page.evaluate(() => ['relay', 'direct'].map((way) => document.getElementById(`rtt-${way}`).textContent));
  for (const text of shown) assert.match(text, /^(< )?\d+ ms$/, 'both round trips are shown');
  // A direct call does not need the server: it goes on, and the page says that the server is gone.
  await env.server.stop('SIGKILL');
  await a.until('the banner over the picture', () => document.getElementById('banner').checkVisibility(), 10_000);
  await a.framesGrow();
  await env.server.start();
  await a.until('the server is back', () => window.throughway.signalling.up && window.throughway.signalling.peer !== null, 10_000);
  await Promise.all([a.connected(40_000), b.connected(40_000)]);
  // Changed twice in a row: the last one holds, although the first is still on its way.
  await b.click('input[name=way][value=relay]');
  await b.click('input[name=way][value=direct]');
  await b.click('input[name=way][value=relay]');
  await sleep(2_000);
  for (const tab of [a, b]) {
    await tab.until('a relayed call', () => window.throughway.phase === 'connected' && window.throughway.numbers?.pair.local.type === 'relay', 20_000);
  }
  await Promise.all([a.framesGrow(), b.framesGrow()]);
}

const LOG_LINE_PIXELS = 20;
const BLANK_PIXELS_MAX = 150;

async function ownPageAndLayout(env) {
  const a = await env.open('chromium', 'A');
  await a.until('the credentials are shown', () => document.getElementById('use-code').textContent.includes('iceServers'), 8_000);
  const code = await a.page.$eval('#use-code', (text) => text.textContent);
  const candidates = await a.page.evaluate(`(async () => {
    ${code.replace('new RTCPeerConnection(', "((own) => new RTCPeerConnection({ ...own, iceTransportPolicy: 'relay' }))(")}
    const found = [];
    connection.onicecandidate = ({ candidate }) => { if (candidate?.candidate) found.push(candidate.type); };
    connection.createDataChannel('own');
    await connection.setLocalDescription(await connection.createOffer());
    for (let wait = 0; wait < 100 && found.length === 0; wait += 1) await new Promise((resolve) => { setTimeout(resolve, 100); });
    connection.close();
    return found;
  })()`);
  assert.ok(candidates.length > 0 && candidates.every((type) => type === 'relay'), `candidates: ${candidates}`);
  const layout = async (when) => {
    for (const [width, height] of [[1280, 800], [390, 844]]) {
      await a.page.setViewport({ width, height });
      const seen = await a.page.evaluate(() => {
        const bottom = (column) => Math.max(...[...column.children].map((card) => card.getBoundingClientRect().bottom));
        /** How many pixels a column is longer than the lines of text in it need: what its cards leave blank below the last. */
        const blankIn = (column) => [...column.children].filter((card) => card.checkVisibility()).reduce((sum, card) => {
          const range = document.createRange();
          const ends = [];
          for (const walker = document.createTreeWalker(card, NodeFilter.SHOW_TEXT); walker.nextNode();) {
            range.selectNodeContents(walker.currentNode);
            ends.push(range.getBoundingClientRect().bottom);
          }
          return sum + card.getBoundingClientRect().bottom - Math.max(...ends);
        }, 0);
        return {
          wide: document.documentElement.scrollWidth,
          ends: [...document.querySelectorAll('.column')].map((column) => Math.round(bottom(column))),
          blank: blankIn(document.querySelectorAll('.column')[1]),
          log: document.getElementById('log').clientHeight,
          lines: [...document.querySelectorAll('#log li')].map((line) => line.getBoundingClientRect().height),
        };
      });
      assert.ok(seen.wide <= width, `${when}: ${seen.wide} of ${width} pixels`);
      if (width === 1280) assert.equal(seen.ends[0], seen.ends[1], `${when}: the columns end together`);
      assert.ok(seen.blank < BLANK_PIXELS_MAX, `${when}: ${seen.blank} pixels of the right column are blank`);
      for (const pixels of [seen.log, ...seen.lines]) assert.equal(pixels % LOG_LINE_PIXELS, 0, `${when}: whole lines of the log`);
    }
  };
  await layout('before the call');
  const b = await env.open('chromium', 'B');
  await Promise.all([a.connected(), b.connected()]);
  await a.pair();
  await layout('during the call');
}

async function reasonAndVoice(env) {
  const a = await env.open('chromium', 'A');
  await a.until('the credentials are shown', () => !document.getElementById('use-copy').disabled, 8_000);
  const seen = await a.page.evaluate(() => {
    const shown = [...document.querySelectorAll('p')].filter((text) => text.checkVisibility()).map((text) => text.innerText);
    const titles = document.querySelectorAll('h1, h2, button, .button, legend, .segment span, .tile span, thead th, tbody th, .node b');
    return { shown, titles: [...titles].map((title) => title.textContent.trim()).filter(Boolean) };
  });
  const says = (...words) => seen.shown.some((text) => words.every((word) => text.includes(word)));
  assert.ok(says('NAT', 'blocks calls', 'relay'), 'why there is a relay');
  assert.ok(says('NAT', 'direct path', 'round trips'), 'what to compare');
  assert.ok(says('TLS', 'certificate'), 'why TLS is not offered');
  assert.equal(await copied(a, '#use-copy'), await a.page.$eval('#use-code', (code) => code.textContent));
  assert.ok(seen.titles.length > 20);
  for (const title of seen.titles) assert.match(title, /^[A-Z](?!.* [A-Z][a-z])/, 'only the first word has a capital letter');
  // The page says "you" and "your browser", never "we" or "I".
  const sources = await a.page.evaluate(async () => {
    const paths = performance.getEntriesByType('resource').map(({ name }) => new URL(name).pathname).filter((path) => path.endsWith('.js'));
    return Promise.all(['/', ...paths].map(async (path) => [path, await (await fetch(path)).text()]));
  });
  assert.ok(sources.length > 10, `${sources.length} files`);
  for (const [path, source] of sources) {
    for (const line of source.split('\n').filter((each) => !/^\s*(\/\/|\/?\*)/.test(each))) {
      assert.doesNotMatch(line, /\b(we|our|ours|us|my|me|mine)\b/i, path);
    }
  }
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
