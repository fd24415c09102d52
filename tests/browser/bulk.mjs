// One end of a call that carries one large file by data channel, in Chromium, in a process of its own, so that it lives in
// one network namespace.
//
//   node bulk.mjs
//
// The runner speaks with it in lines of JSON, call after call: a task makes it one end; it says its description, hears the
// other's, says `opened`; on `go` the offerer sends; both say what came of it; on `over` they close and say `closed`.

import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

import { launch } from './browsers.mjs';

const CLOSE_MS = 5_000;

const input = createInterface({ input: process.stdin });
const lines = input[Symbol.asyncIterator]();

async function hear() {
  const { value, done } = await lines.next();
  return done ? new Promise(() => {}) : JSON.parse(value);
}

function say(what) {
  process.stdout.write(`${JSON.stringify(what)}\n`);
}

/**
 * One end, in the page. `task` is `{ role, iceServers, policy, bytes, piece }`. It must stand alone: puppeteer carries its
 * text into the page. The answerer sends one byte when it has everything, so the offerer's clock measures the whole way.
 */
function bulkIn(task) {
  const { role, iceServers, policy, bytes, piece } = task;
  const connection = new RTCPeerConnection({ iceServers, iceTransportPolicy: policy });
  const end = { connection, received: 0, began: 0, ended: 0 };
  let channel = null;
  let opened;
  let finished;
  end.opened = new Promise((resolve) => { opened = resolve; });
  end.finished = new Promise((resolve) => { finished = resolve; });
  const finish = () => {
    end.ended = performance.now();
    finished(true);
  };
  const use = (one) => {
    channel = one;
    channel.binaryType = 'arraybuffer';
    channel.onmessage = ({ data }) => {
      end.received += data.byteLength;
      if (role === 'offer') {
        finish();
      } else if (end.received >= bytes) {
        channel.send(new Uint8Array(1));
        finish();
      }
    };
    if (channel.readyState === 'open') opened();
    else channel.onopen = () => opened();
  };
  const gathered = () => new Promise((resolve) => {
    const look = () => {
      if (connection.iceGatheringState === 'complete') resolve(connection.localDescription.sdp);
    };
    connection.onicegatheringstatechange = look;
    look();
  });
  end.offer = async () => {
    use(connection.createDataChannel('bulk'));
    await connection.setLocalDescription(await connection.createOffer());
    return gathered();
  };
  end.answer = async (sdp) => {
    connection.ondatachannel = (event) => use(event.channel);
    await connection.setRemoteDescription({ type: 'offer', sdp });
    await connection.setLocalDescription(await connection.createAnswer());
    return gathered();
  };
  end.accept = (sdp) => connection.setRemoteDescription({ type: 'answer', sdp });
  end.send = () => {
    end.began = performance.now();
    for (let sent = 0; sent < bytes; sent += piece) channel.send(new Uint8Array(piece));
  };
  /** What arrived, how long it took, and how many packets the browser threw away before its socket had them. */
  end.facts = async () => {
    let discarded = 0;
    (await connection.getStats()).forEach((entry) => {
      if (entry.type === 'candidate-pair') discarded += entry.packetsDiscardedOnSend ?? 0;
    });
    return { received: end.received, ms: end.ended - end.began, discarded };
  };
  return end;
}

async function call(running, task) {
  const page = await running.browser.newPage();
  await page.evaluate(`window.bulkIn = ${bulkIn}`);
  await page.evaluate((what) => { window.end = window.bulkIn(what); }, task);
  if (task.role === 'offer') {
    say({ sdp: await page.evaluate(() => window.end.offer()) });
    await page.evaluate((sdp) => window.end.accept(sdp), (await hear()).sdp);
  } else {
    const { sdp } = await hear();
    say({ sdp: await page.evaluate((text) => window.end.answer(text), sdp) });
  }
  await page.evaluate(() => window.end.opened);
  say({ opened: true });
  await hear();
  if (task.role === 'offer') await page.evaluate(() => window.end.send());
  const done = page.evaluate(() => window.end.finished);
  const complete = await Promise.race([done, sleep(task.seconds * 1000, false)]);
  say({ complete, ...(await page.evaluate(() => window.end.facts())) });
  await hear();
  await page.evaluate(() => window.end.connection.close());
  await page.close();
  say({ closed: true });
}

// without a relay the ends must find each other: addresses as they are, for nothing here resolves mDNS names
const running = await launch('chromium', { flags: ['--disable-features=WebRtcHideLocalIpsWithMdns'] });
// the runner closes our input when it wants us gone, whatever we are at
input.once('close', async () => {
  await Promise.race([running.close().catch(() => {}), sleep(CLOSE_MS)]);
  process.exit(0);
});
say({ ready: true });
for (;;) {
  await call(running, await hear());
}
