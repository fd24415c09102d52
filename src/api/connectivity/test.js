// The connectivity test: whether this browser reaches the TURN server by each transport, how well, and what to ask of the
// network's administrator. Two connections of this very page talk to each other, both relayed by the server. So each
// message goes to the server and comes back, and one clock sees both ends.

/** An allocation takes one or two round trips; browsers repeat what is lost for about this long. */
const ALLOCATE_MS = 10_000;
const CONNECT_MS = 8_000;
/** Fifty messages a second for five seconds, each as large as a packet of voice. */
const MESSAGES = 250;
const EVERY_MS = 20;
const MESSAGE_BYTES = 160;
/** A message that comes later than this is lost for a call. */
const LATE_MS = 1_500;

/** From here on a person hears it. */
const LOSS_NOTICED = 0.02;
const ROUND_TRIP_NOTICED_MS = 300;

const NAMES = { 'turn:udp': 'UDP', 'turn:tcp': 'TCP', 'turns:tcp': 'TLS', 'stun:udp': 'STUN' };
const URL_FORM = /^(stun|turns?):(\[[0-9a-f:.]+\]|[^:?[\]]+)(?::(\d+))?(?:\?transport=(udp|tcp))?$/i;

// ---- what is tested

/**
 * One entry for each transport and place in `iceServers`, and one for STUN at the first place that UDP has. With
 * `isOneServer` the URLs of a transport are ways to one and the same server, and any of them will do.
 */
export function entriesOf(iceServers, { isOneServer = false } = {}) {
  const entries = new Map();
  for (const { urls, username, credential } of iceServers) {
    for (const url of [urls].flat()) {
      const found = URL_FORM.exec(url);
      if (!found) continue;
      const scheme = found[1].toLowerCase();
      const name = NAMES[`${scheme}:${found[4]?.toLowerCase() ?? (scheme === 'turns' ? 'tcp' : 'udp')}`];
      const [host, port] = [found[2], Number(found[3] ?? (scheme === 'turns' ? 5349 : 3478))];
      if (!name || name === 'STUN') continue;
      const key = isOneServer ? name : `${name} ${host} ${port}`;
      if (!entries.has(key)) entries.set(key, { name, host, port, urls: [], username, credential });
      entries.get(key).urls.push(url);
    }
  }
  const all = [...entries.values()];
  const udp = all.find(({ name }) => name === 'UDP');
  if (udp) {
    const urls = udp.urls.map((url) => url.replace(/^turn:/i, 'stun:').replace(/\?.*$/, ''));
    all.push({ name: 'STUN', host: udp.host, port: udp.port, urls });
  }
  return all;
}

const placeOf = ({ host, port }) => `${host} port ${port}`;

// ---- measuring

/** Waits whose end the worker tells. */
const waits = new Map();
let lastWait = 0;
let worker = null;

/** Timers of a page that is not in front come once a second or later, those of a worker in time: this file is the worker too. */
if (typeof document === 'undefined') {
  globalThis.onmessage = ({ data: { wait, ms } }) => setTimeout(() => postMessage(wait), ms);
}

function startWorker() {
  const end = (wait) => {
    waits.get(wait)?.();
    waits.delete(wait);
  };
  worker = new Worker(import.meta.url, { type: 'module' });
  worker.onmessage = ({ data }) => end(data);
  // Without one the page's own timers must do.
  worker.onerror = () => {
    worker = { postMessage: ({ wait, ms }) => setTimeout(() => end(wait), ms) };
    for (const wait of waits.keys()) end(wait);
  };
}

function sleep(ms) {
  if (!worker) startWorker();
  lastWait += 1;
  const wait = lastWait;
  return new Promise((resolve) => {
    waits.set(wait, resolve);
    worker.postMessage({ wait, ms });
  });
}

/** Waits for a promise at most so long; null is "it did not come". */
function within(ms, promise) {
  return Promise.race([promise, sleep(ms).then(() => null)]);
}

/** Milliseconds until the first candidate that `isWanted`, or null. What the browser reports meanwhile goes into `errors`. */
function firstCandidate(connection, isWanted, errors) {
  const began = performance.now();
  return within(ALLOCATE_MS, new Promise((resolve) => {
    connection.addEventListener('icecandidate', ({ candidate }) => {
      if (candidate?.candidate && isWanted(candidate)) resolve(performance.now() - began);
    });
    connection.addEventListener('icecandidateerror', ({ errorCode, errorText }) => {
      errors.push({ code: errorCode, text: errorText ?? '' });
    });
    connection.addEventListener('icegatheringstatechange', () => {
      // The last report may come with it, or just behind.
      if (connection.iceGatheringState === 'complete') sleep(100).then(() => resolve(null));
    });
  }));
}

/** Each end gets what the other one says; a candidate must not come before the description that it belongs to. */
async function introduce([offerer, answerer]) {
  let isKnown;
  const known = new Promise((resolve) => { isKnown = resolve; });
  for (const [from, to] of [[offerer, answerer], [answerer, offerer]]) {
    from.addEventListener('icecandidate', ({ candidate }) => {
      if (candidate) known.then(() => to.addIceCandidate(candidate)).catch(() => {});
    });
  }
  await offerer.setLocalDescription();
  await answerer.setRemoteDescription(offerer.localDescription);
  await answerer.setLocalDescription();
  await offerer.setRemoteDescription(answerer.localDescription);
  isKnown();
}

/** Sends numbered messages at a steady pace; tells how many were sent, and how long each was on its way. */
async function measure(from, to, onShare) {
  const sentAt = [];
  const trips = new Map();
  const message = new DataView(new ArrayBuffer(MESSAGE_BYTES));
  to.binaryType = 'arraybuffer';
  to.onmessage = ({ data }) => {
    const number = new DataView(data).getUint32(0);
    if (!trips.has(number)) trips.set(number, performance.now() - sentAt[number]);
  };
  const began = performance.now();
  while (sentAt.length < MESSAGES && from.readyState === 'open') {
    // A timer that comes late is made up for, so that five seconds stay five seconds.
    const due = Math.min(MESSAGES, 1 + Math.floor((performance.now() - began) / EVERY_MS));
    while (sentAt.length < due) {
      message.setUint32(0, sentAt.length);
      sentAt.push(performance.now());
      from.send(message.buffer);
    }
    onShare(sentAt.length / MESSAGES);
    await sleep(EVERY_MS);
  }
  const until = performance.now() + LATE_MS;
  while (trips.size < sentAt.length && performance.now() < until) await sleep(EVERY_MS);
  const sorted = [...trips.values()].sort((a, b) => a - b);
  return {
    sent: MESSAGES,
    received: sorted.length,
    median: sorted[Math.floor(sorted.length / 2)] ?? null,
    longest: sorted.at(-1) ?? null,
    isBroken: sentAt.length < MESSAGES,
  };
}

/** Why no candidate came: the server's own refusal has a code of STUN, 701 is the browser's word for "not reached". */
function failure(errors) {
  const refusal = errors.find(({ code }) => code >= 300 && code < 700);
  if (refusal) return { outcome: 'refused', code: refusal.code, text: refusal.text };
  const isNameUnknown = errors.length > 0 && errors.every(({ text }) => /lookup/i.test(text));
  return { outcome: 'unreachable', isNameUnknown, text: errors.at(-1)?.text ?? '' };
}

async function testRelay(entry, onShare) {
  const { urls, username, credential } = entry;
  const configuration = { iceServers: [{ urls, username, credential }], iceTransportPolicy: 'relay' };
  const ends = [];
  try {
    for (let end = 0; end < 2; end += 1) ends.push(new RTCPeerConnection(configuration));
    const channel = { negotiated: true, id: 0, ordered: false, maxRetransmits: 0 };
    const channels = ends.map((end) => end.createDataChannel('test', channel));
    const opened = Promise.all(channels.map((each) => new Promise((resolve) => { each.onopen = resolve; })));
    const began = performance.now();
    const errors = [];
    const allocations = ends.map((end) => firstCandidate(end, () => true, errors));
    await introduce(ends);
    const times = await Promise.all(allocations);
    if (times.includes(null)) return failure(errors);
    const allocatedMs = Math.max(...times);
    const isOpen = await within(CONNECT_MS, opened);
    if (!isOpen) return { outcome: 'not_relayed', allocatedMs };
    const connectedMs = performance.now() - began;
    const measured = await measure(...channels, onShare);
    const isPoor = measured.isBroken || lossOf(measured) >= LOSS_NOTICED || measured.median >= ROUND_TRIP_NOTICED_MS;
    const outcome = measured.received === 0 ? 'not_relayed' : isPoor ? 'poor' : 'good';
    return { outcome, allocatedMs, connectedMs, ...measured };
  } catch (error) {
    return { outcome: 'refused', code: 0, text: error.message };
  } finally {
    for (const end of ends) end.close();
  }
}

/** A browser names no address from STUN that it has itself, so an answer without an address is one too. */
async function testStun({ urls }) {
  const connection = new RTCPeerConnection({ iceServers: [{ urls }] });
  try {
    connection.createDataChannel('test');
    const errors = [];
    let [address, hasHost] = [null, false];
    const found = firstCandidate(connection, (candidate) => {
      hasHost ||= candidate.type === 'host';
      if (candidate.type === 'srflx') address = candidate.address;
      return candidate.type === 'srflx';
    }, errors);
    await connection.setLocalDescription();
    const ms = await found;
    const isComplete = connection.iceGatheringState === 'complete';
    const isAnswered = ms !== null || (isComplete && hasHost && errors.length === 0);
    return isAnswered ? { outcome: 'good', allocatedMs: ms, address } : failure(errors);
  } catch (error) {
    return { outcome: 'refused', code: 0, text: error.message };
  } finally {
    connection.close();
  }
}

/** Tests one entry after the other, so that none disturbs another's figures; STUN costs nothing and goes along. */
async function testAll(entries, onResult, onShare) {
  const results = entries.map((entry) => ({ ...entry, outcome: 'waiting' }));
  const stun = results.filter(({ name }) => name === 'STUN').map(async (result) => {
    Object.assign(result, await testStun(result));
    onResult(result);
  });
  const relayed = results.filter(({ name }) => name !== 'STUN');
  for (const [number, result] of relayed.entries()) {
    result.outcome = 'testing';
    onResult(result);
    Object.assign(result, await testRelay(result, (share) => onShare((number + share) / relayed.length)));
    onResult(result);
    onShare((number + 1) / relayed.length);
  }
  await Promise.all(stun);
  return results;
}

// ---- words

const lossOf = ({ sent, received }) => (sent - received) / sent;
const isWorking = ({ outcome }) => outcome === 'good' || outcome === 'poor';
const ms = (value) => (value < 1 ? '< 1 ms' : `${Math.round(value)} ms`);
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

function reachedText({ outcome, allocatedMs, code, name, isNameUnknown }) {
  if (outcome === 'waiting') return 'waiting';
  if (outcome === 'testing') return 'testing';
  if (outcome === 'unreachable') return isNameUnknown ? 'name not found' : 'no answer';
  if (outcome === 'refused') return code ? `refused (${code})` : 'refused';
  return name === 'STUN' && allocatedMs === null ? 'yes' : `yes, ${ms(allocatedMs)}`;
}

function relayedText({ outcome, connectedMs, name, address }) {
  if (name === 'STUN') return outcome === 'good' ? (address ? `your address: ${address}` : 'no NAT in between') : '–';
  if (outcome === 'not_relayed') return 'no data came through';
  return isWorking({ outcome }) ? `yes, ${ms(connectedMs)}` : '–';
}

function roundTripText({ median, longest }) {
  return median === undefined || median === null ? '–' : `${ms(median)}, at most ${ms(longest)}`;
}

function lossText(result) {
  if (result.sent === undefined) return '–';
  return `${percent(lossOf(result))} of ${result.sent}`;
}

/** Whether calls work, in one sentence, and how good that is. */
function verdictOf(results) {
  const relayed = results.filter(({ name }) => name !== 'STUN');
  const working = relayed.filter(isWorking);
  if (!navigator.onLine && !working.length) return { tone: 'bad', text: 'This device is offline.' };
  if (!relayed.length) return { tone: 'bad', text: 'The server named no TURN URL to test.' };
  if (!working.length) {
    const isRefused = relayed.some(({ outcome }) => outcome === 'refused');
    return { tone: 'bad', text: isRefused ? 'The server refused the test.' : 'Calls through this server do not work from this network.' };
  }
  const best = working[0];
  if (relayed.some(({ name }) => name === 'UDP') && !working.some(({ name }) => name === 'UDP')) {
    return { tone: 'wait', text: `Calls work from this network, but only over ${best.name}: UDP does not get through.` };
  }
  const over = `over ${best.name}`;
  if (best.outcome === 'good') return { tone: 'good', text: `Calls work from this network, ${over}.` };
  return { tone: 'wait', text: `Calls work from this network, ${over}, but not well.` };
}

function adviceOnFailure(result, others) {
  const { name, host, port, outcome, code, text } = result;
  const other = others.find(isWorking);
  const meanwhile = other ? ` Until then calls use ${other.name}.` : '';
  if (outcome === 'not_relayed') {
    return `${name}: the server at ${placeOf(result)} gave an address, but no data came through it. Tell the server's operator.`;
  }
  if (outcome === 'refused' && code === 401) {
    return `${name}: the server refused the password. It may have expired: ask for a new link, or load the page again.`;
  }
  if (outcome === 'refused' && code === 486) {
    return `${name}: too many connections of this user at a time. Wait a minute and test again.`;
  }
  if (outcome === 'refused') return `${name}: the server refused (${[code || '', text].join(' ').trim()}). Tell the server's operator.`;
  if (result.isNameUnknown) {
    return `${name}: this network finds no address for the name ${host}. Ask the administrator about DNS. If the name fails everywhere, the server's operator must correct it.${meanwhile}`;
  }
  if (name === 'UDP') {
    const cost = other ? ' They work, but voice and video stop for a moment whenever a packet is lost.' : '';
    return `UDP to ${placeOf(result)} gets no answer. Ask the administrator to allow UDP from this network to ${host} port ${port}, and the answers.${meanwhile}${cost}`;
  }
  if (name === 'TLS') {
    return `TLS to ${placeOf(result)} fails. Ask the administrator to allow TCP to ${host} port ${port}, and not to decrypt it: a browser accepts only the server's own certificate. If TLS fails from every network, the server's operator must renew that certificate.${meanwhile}`;
  }
  return `TCP to ${placeOf(result)} gets no answer. Ask the administrator to allow TCP from this network to ${host} port ${port}.${meanwhile}`;
}

/** Sentences for the administrator of the network, or for the server's operator. */
function adviceOf(results) {
  const relayed = results.filter(({ name }) => name !== 'STUN');
  const sentences = relayed.filter((result) => !isWorking(result)).map((result) => adviceOnFailure(result, relayed));
  for (const result of relayed.filter(isWorking)) {
    if (result.isBroken) sentences.push(`${result.name}: the connection broke during the test.`);
    if (lossOf(result) >= LOSS_NOTICED) {
      sentences.push(`${result.name}: ${percent(lossOf(result))} of the messages were lost, which people hear and see. Common causes are weak Wi-Fi, a full uplink, and a firewall that limits UDP.`);
    }
    if (result.median >= ROUND_TRIP_NOTICED_MS) {
      sentences.push(`${result.name}: the way to the server and back takes ${ms(result.median)}, which people notice. A server that is nearer helps, or a network without a VPN.`);
    }
  }
  const udp = relayed.find(({ name }) => name === 'UDP');
  if (udp && isWorking(udp) && results.some(({ name, outcome }) => name === 'STUN' && outcome !== 'good')) {
    sentences.push('STUN gets no answer. Calls work, but never take a direct way.');
  }
  return sentences;
}

/** What a person sends to somebody else: without a password. */
function reportOf(results, at) {
  const lines = results.map((result) => {
    const words = [`reached: ${reachedText(result)}`];
    if (result.name === 'STUN') words.push(relayedText(result));
    else words.push(`relayed: ${relayedText(result)}`, `round trip: ${roundTripText(result)}`, `lost: ${lossText(result)}`);
    if (result.text) words.push(`the browser reports: ${result.text}`);
    return `${result.name}, ${placeOf(result)}: ${words.filter((word) => !word.endsWith('–')).join('; ')}`;
  });
  const advice = adviceOf(results);
  return [
    `Connectivity test, ${at.toISOString().slice(0, 16).replace('T', ' ')} UTC`,
    verdictOf(results).text,
    ...lines,
    ...(advice.length ? ['What to do:', ...advice.map((sentence) => `- ${sentence}`)] : []),
    `Browser: ${navigator.userAgent}`,
  ].join('\n');
}

// ---- on the page

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** The clipboard is for secure contexts alone; a selected text is copied everywhere. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element('textarea', { value: text, className: 'test-clipboard' });
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand('copy');
    field.remove();
    return isCopied;
  }
}

/** A button that copies what `text` gives at that moment, and says that it did. */
export function copyButton(label, text) {
  const button = element('button', { type: 'button', className: 'test-button', textContent: label });
  button.onclick = async () => {
    button.textContent = (await copyText(text())) ? 'Copied' : 'Select and copy the text';
    await sleep(1600);
    button.textContent = label;
  };
  return button;
}

const HEADS = ['Transport', 'Reached', 'Relayed', 'Round trip', 'Lost'];

/** The colours of a row's cells; words say the same. */
function tonesOf({ name, outcome, median, ...result }) {
  if (outcome === 'unreachable' || outcome === 'refused') return ['bad', '', '', ''];
  if (outcome === 'waiting' || outcome === 'testing') return ['', '', '', ''];
  if (name === 'STUN') return ['good', '', '', ''];
  if (outcome === 'not_relayed') return ['good', 'bad', '', ''];
  return ['good', result.isBroken ? 'wait' : 'good', median >= ROUND_TRIP_NOTICED_MS ? 'wait' : '', lossOf(result) >= LOSS_NOTICED ? 'wait' : ''];
}

function fillRow(row, result) {
  const cells = [reachedText(result), relayedText(result), roundTripText(result), lossText(result)];
  const tones = tonesOf(result);
  row.dataset.outcome = result.outcome;
  row.dataset.transport = result.name;
  row.replaceChildren(
    element('th', { scope: 'row' }, element('b', { textContent: result.name }), element('small', { textContent: placeOf(result) })),
    ...cells.map((text, at) => {
      const cell = element('td', { textContent: text, className: text === '–' ? 'none' : tones[at] });
      cell.dataset.head = result.name === 'STUN' && at === 1 ? 'Address' : HEADS[at + 1];
      return cell;
    }),
  );
}

/**
 * Puts the test into `root`. `load` gives the entries that are tested, with fresh credentials; what it throws is shown.
 */
export function mountTest(root, load) {
  const start = element('button', { type: 'button', className: 'test-button primary', textContent: 'Start the test' });
  const verdict = element('p', { className: 'test-verdict', role: 'status' });
  const progress = element('progress', { max: 1, value: 0, hidden: true, ariaLabel: 'Progress of the test' });
  const body = element('tbody');
  const heads = HEADS.map((head) => element('th', { scope: 'col', textContent: head }));
  const table = element('table', { className: 'test-table', hidden: true }, element('thead', {}, element('tr', {}, ...heads)), body);
  const advice = element('ul', { className: 'test-advice' });
  const report = element('pre', { className: 'test-report', tabIndex: 0, ariaLabel: 'The result as text' });
  const after = element('div', { className: 'test-after', hidden: true },
    element('div', { className: 'test-next' }, element('h3', { textContent: 'What to do' }), advice),
    element('div', { className: 'test-actions' }, copyButton('Copy the result as text', () => report.textContent)),
    element('details', {}, element('summary', { textContent: 'The result as text' }), report),
  );
  root.append(element('div', { className: 'test-actions' }, start, verdict), progress, table, after);
  root.dataset.state = 'idle';

  const say = (tone, text) => {
    verdict.dataset.tone = tone;
    verdict.textContent = text;
  };
  const run = async () => {
    const entries = await load();
    const rows = new Map(entries.map((entry) => [`${entry.name} ${placeOf(entry)}`, element('tr')]));
    const show = (result) => fillRow(rows.get(`${result.name} ${placeOf(result)}`), result);
    for (const entry of entries) show({ ...entry, outcome: 'waiting' });
    body.replaceChildren(...rows.values());
    table.hidden = false;
    const results = await testAll(entries, show, (share) => { progress.value = share; });
    const { tone, text } = verdictOf(results);
    say(tone, text);
    const sentences = adviceOf(results);
    advice.replaceChildren(...sentences.map((sentence) => element('li', { textContent: sentence })));
    advice.parentElement.hidden = !sentences.length;
    report.textContent = reportOf(results, new Date());
    after.hidden = false;
  };
  start.onclick = async () => {
    // Not `disabled`, which would take the focus from those who use a keyboard.
    if (root.dataset.state === 'running') return;
    root.dataset.state = 'running';
    start.setAttribute('aria-disabled', 'true');
    after.hidden = true;
    progress.hidden = false;
    progress.value = 0;
    say('', 'Testing.');
    try {
      await run();
    } catch (error) {
      table.hidden = true;
      say('bad', error.message);
    }
    progress.hidden = true;
    start.removeAttribute('aria-disabled');
    start.textContent = 'Test again';
    root.dataset.state = 'done';
  };
}
