// The page: ties picture, signalling, call, files and numbers together, and shows them.

import { Call } from './call.js';
import { Files } from './files.js';
import { cameraPicture, clock, testPicture } from './picture.js';
import { Signalling } from './signalling.js';
import { Meter, endText } from './stats.js';

const LOG_LINES_MAX = 200;
const TRANSFERS_SHOWN = 6;
const $ = (id) => document.getElementById(id);

// ---- who we are: the room is in the fragment, the tab is new with each load

const wish = new URLSearchParams(location.hash.slice(1));
const room = (() => {
  const named = wish.get('room');
  if (named && /^[A-Za-z0-9_-]{1,64}$/.test(named)) return named;
  const fresh = randomName(8);
  history.replaceState(null, '', `#room=${fresh}`);
  return fresh;
})();
const user = `tab-${randomName(8)}`;

/** The second tab starts with our choice of transport. */
function secondTab() {
  return `${location.origin}${location.pathname}#room=${room}${transport === 'tcp' ? '&transport=tcp' : ''}`;
}

function randomName(length) {
  const letters = 'abcdefghijkmnpqrstuvwxyz23456789';
  return Array.from(crypto.getRandomValues(new Uint8Array(length)), (byte) => letters[byte % 32]).join('');
}

// ---- parts

const signalling = new Signalling(room, user);
const call = new Call(signalling, fetchConfig);
const files = new Files();
const meter = new Meter();
const label = `Tab ${user.slice(4, 7).toUpperCase()}`;
const HUES = [172, 208, 252, 292, 334];
const hue = HUES[user.charCodeAt(4) % HUES.length];
let picture = testPicture(label, hue);
let transport = wish.get('transport') === 'tcp' ? 'tcp' : 'udp';
let config = null;
let numbers = null;
let usage = null;
let refused = '';
const log = [];

/** For the browser tests, and for the curious in the console. */
window.throughway = {
  user,
  room,
  get phase() { return call.phase; },
  get stage() { return call.stage; },
  get reason() { return call.reason; },
  get counters() { return { ...call.counters }; },
  get transport() { return transport; },
  get numbers() { return numbers; },
  get usage() { return usage; },
  get signalling() { return { up: signalling.up, peer: signalling.peer, caller: signalling.caller }; },
  get transfers() { return files.transfers.map(({ file, url, ...rest }) => rest); },
  log,
  restart: () => call.restart('you asked'),
  /** Sends no picture, so that nothing but connection checks is on its way. */
  silence: () => call.show(null),
  unsilence: () => usePicture(),
  sendFile: (name, bytes) => files.send(new File([bytes], name)),
};

async function fetchConfig() {
  const answer = await fetch(`/config?user=${user}&transport=${transport}`);
  if (!answer.ok) throw new Error(`the server gave no credentials: ${answer.status} ${await answer.text()}`);
  config = await answer.json();
  showNotes(config.notes);
  return config;
}

// ---- events to the screen

call.addEventListener('phase', show);
call.addEventListener('stage', show);
call.addEventListener('log', ({ detail }) => write(detail.level, detail.text));
call.addEventListener('connection', ({ detail }) => {
  meter.newConnection();
  if (detail) return;
  $('remote').srcObject = null;
  files.detach();
});
call.addEventListener('channel', ({ detail }) => {
  files.attach(detail);
  detail.addEventListener('open', showDrop);
  detail.addEventListener('close', showDrop);
});
call.addEventListener('stream', ({ detail }) => {
  $('remote').srcObject = detail;
});
signalling.addEventListener('up', () => {
  if (call.phase === 'idle') write('info', `Reached the server; waiting for a second tab in room ${room}.`);
  show();
});
signalling.addEventListener('down', show);
signalling.addEventListener('peer-left', show);
signalling.addEventListener('paired', show);
signalling.addEventListener('refused', ({ detail }) => {
  refused = detail.reason;
  write('bad', detail.reason);
  show();
});
files.addEventListener('change', ({ detail }) => showTransfer(detail));

const PILLS = {
  idle: ['idle', 'Waiting for a second tab'],
  connecting: ['wait', 'Connecting'],
  connected: ['good', 'Relayed'],
  disconnected: ['wait', 'Disconnected, may heal'],
  restarting: ['wait', 'ICE restart'],
  rebuilding: ['wait', 'New connection'],
  failed: ['bad', 'Not connected'],
  ended: ['idle', 'Call ended'],
};

const COVERS = {
  idle: ['Call yourself through the relay', 'Open this page in a second tab. The two tabs call each other, and every packet between them passes through this server.'],
  connecting: ['Connecting', 'Both tabs ask the relay for an address and try the way between them.'],
  disconnected: ['Connection interrupted', 'Short gaps heal by themselves.'],
  restarting: ['ICE restart', 'Same call, new addresses from the relay.'],
  rebuilding: ['New connection', 'The last resort: everything from the start.'],
};

function show() {
  const { phase, stage } = call;
  call.transport = transport;
  let [tone, text] = PILLS[phase];
  if (phase === 'connected') text += ` over ${transport.toUpperCase()}`;
  if (!signalling.up && phase === 'idle') [tone, text] = refused ? ['bad', 'No room'] : ['wait', 'Reaching the server'];
  $('pill').dataset.tone = tone;
  $('pill-text').textContent = text;
  document.title = `${phase === 'connected' ? '● ' : ''}${label} · throughway demo`;

  // a restart of a call that stands is no reason to hide it
  const covered = phase !== 'connected' && !(phase === 'restarting' && call.connection?.connectionState === 'connected');
  $('cover').hidden = !covered;
  document.body.dataset.phase = phase;
  const [title, words] = COVERS[phase] ?? ['', ''];
  if (refused) {
    $('cover-title').textContent = 'No place in this room';
    $('cover-text').textContent = refused;
  } else if (phase === 'failed') {
    $('cover-title').textContent = 'No connection';
    $('cover-text').textContent = call.reason;
  } else if (phase === 'ended') {
    $('cover-title').textContent = call.reason;
    $('cover-text').textContent = signalling.peer ? 'The other tab is still here.' : 'Open a second tab to call again.';
  } else {
    $('cover-title').textContent = title;
    $('cover-text').textContent = stage && !signalling.peer ? 'Waiting for the server and the other tab to come back.' : words;
  }
  $('spinner').hidden = !['connecting', 'disconnected', 'restarting', 'rebuilding'].includes(phase);
  $('ladder').hidden = stage === 0;
  for (const step of $('ladder').children) {
    const number = Number(step.dataset.stage);
    step.dataset.state = number < stage ? 'past' : number === stage ? 'now' : 'next';
  }
  const alone = !signalling.peer && ['idle', 'ended'].includes(phase) && !refused;
  $('second').hidden = !alone && !refused;
  $('second').textContent = refused ? 'Open a room of our own' : 'Open the second tab';
  $('second').href = refused ? location.pathname : secondTab();
  $('copy').hidden = !alone;
  $('again').hidden = !(signalling.peer && ['failed', 'ended'].includes(phase));
  $('remote-label').hidden = covered;
  $('restart').disabled = phase !== 'connected';
  $('hang-up').disabled = ['idle', 'ended'].includes(phase);
  showDrop();
}

function showDrop() {
  $('drop').classList.toggle('ready', files.open);
}

function showNotes(notes) {
  $('notes').hidden = notes.length === 0;
  $('notes').textContent = notes.map((note) => note[0].toUpperCase() + note.slice(1)).join(' ');
}

function write(level, text) {
  const at = new Date().toLocaleTimeString([], { hour12: false });
  log.push({ at, level, text });
  if (log.length > LOG_LINES_MAX) log.shift();
  const line = document.createElement('li');
  line.dataset.level = level;
  const time = document.createElement('time');
  time.textContent = at;
  const words = document.createElement('span');
  words.textContent = text;
  line.append(time, words);
  $('log').prepend(line);
  while ($('log').children.length > LOG_LINES_MAX) $('log').lastChild.remove();
}

// ---- transfers

function showTransfer(transfer) {
  let row = transfer.row;
  if (!row) {
    row = document.createElement('li');
    row.innerHTML = '<div class="what"><b></b><span></span></div><div class="progress"><i></i></div><code></code>';
    // not enumerable: `window.throughway` copies transfers out of the page
    Object.defineProperty(transfer, 'row', { value: row });
    $('transfers').prepend(row);
    while ($('transfers').children.length > TRANSFERS_SHOWN) $('transfers').lastChild.remove();
  }
  row.dataset.state = transfer.state;
  const name = row.querySelector('b');
  if (transfer.url && !name.querySelector('a')) {
    const anchor = document.createElement('a');
    anchor.href = transfer.url;
    anchor.download = transfer.name;
    anchor.textContent = transfer.name;
    name.replaceChildren(anchor);
  } else if (!transfer.url) name.textContent = transfer.name;
  const way = transfer.way === 'sent' ? '↑' : '↓';
  const rate = transfer.seconds > 0 ? `, ${bytesText(transfer.size / transfer.seconds)}/s` : '';
  const states = {
    queued: 'waiting for the channel',
    sending: `${bytesText(transfer.bytes)} of ${bytesText(transfer.size)}`,
    receiving: `${bytesText(transfer.bytes)} of ${bytesText(transfer.size)}`,
    checking: 'comparing checksums',
    done: `${bytesText(transfer.size)}${rate} · ✓ checksums agree`,
  };
  row.querySelector('.what span').textContent = `${way} ${states[transfer.state] ?? transfer.problem}`;
  row.querySelector('.progress i').style.width = `${transfer.size ? (100 * transfer.bytes) / transfer.size : 100}%`;
  row.querySelector('code').textContent = transfer.sha256 ? `SHA-256 ${transfer.sha256}` : '';
  if (transfer.state === 'done' && !transfer.told) {
    Object.defineProperty(transfer, 'told', { value: true });
    write('good', `${transfer.name} ${transfer.way}: ${bytesText(transfer.size)}, the checksums of both tabs agree.`);
  }
}

function sendAll(list) {
  for (const file of list) files.send(file);
}

// ---- numbers, once a second

const upLine = sparkline($('up-line'));
const downLine = sparkline($('down-line'));

clock.every(1000, async () => {
  const connection = call.connection;
  numbers = connection ? await meter.read(connection).catch(() => null) : null;
  usage = await fetch(`/usage?user=${user}`).then((answer) => (answer.ok ? answer.json() : null), () => null);
  showNumbers();
});

function showNumbers() {
  const live = numbers && call.phase === 'connected';
  text('up', live ? rateText(numbers.sendingRate) : '–');
  text('down', live ? rateText(numbers.receivingRate) : '–');
  upLine(live ? numbers.sendingRate : 0);
  downLine(live ? numbers.receivingRate : 0);
  text('rtt', live && numbers.roundTrip !== null ? roundTripText(numbers.roundTrip) : '–');
  text('frames', live ? `${Math.round(numbers.framesPerSecond)} fps` : '–');
  if (numbers) {
    text('browser-sent', bytesText(numbers.sent));
    text('browser-received', bytesText(numbers.received));
  }
  if (usage) {
    text('server-sent', countText(usage.user.from_client));
    text('server-received', countText(usage.user.to_client));
    text('all-in', countText(usage.server.from_client));
    text('all-out', countText(usage.server.to_client));
  }
  const session = numbers && usage?.sessions.find(({ relayed }) => relayed === endText(numbers.pair.local));
  const over = (numbers?.pair.relayProtocol || transport).toUpperCase();
  text('hop-client', session?.client ?? '–');
  text('hop-transport', over);
  text('hop-theirs', (call.peerTransport || '?').toUpperCase());
  text('hop-local', numbers ? endText(numbers.pair.local) : '–');
  text('hop-remote', numbers ? endText(numbers.pair.remote) : '–');
  text('hop-peer', numbers ? 'encrypted to here' : '–');
  document.body.classList.toggle('flowing', Boolean(live));
  if (!numbers) return;
  if (session) sentence('lesson-stun', 'asked the server under which address it sees your browser: ', session.client, '.');
  const until = config ? new Date(1000 * config.expiresAt).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', hour12: false }) : '';
  sentence('lesson-turn', 'rented the address ', endText(numbers.pair.local), ` on the server for your browser over ${over}, with a password valid until ${until}.`);
  const passed = usage && usage.user.to_peers.packets + usage.user.to_client.packets;
  sentence('lesson-relay', 'means that the server has passed on ', passed ? `${passed.toLocaleString('en')} packets` : bytesText(numbers.sent + numbers.received), ' for this tab, encrypted between the tabs: it can not read them.');
}

function text(id, value) {
  if ($(id).textContent !== value) $(id).textContent = value;
}

function sentence(id, before, fact, after) {
  const strong = document.createElement('code');
  strong.textContent = fact;
  $(id).replaceChildren(before, strong, after);
}

function sparkline(svg) {
  const values = new Array(40).fill(0);
  return (value) => {
    values.push(value);
    values.shift();
    const top = Math.max(1, ...values) * 1.15;
    const points = values.map((each, at) => `${((120 * at) / 39).toFixed(1)} ${(27 - (25 * each) / top).toFixed(1)}`);
    svg.querySelector('.line').setAttribute('d', `M${points.join('L')}`);
    svg.querySelector('.area').setAttribute('d', `M0 28L${points.join('L')}L120 28Z`);
  };
}

function bytesText(bytes) {
  if (bytes < 1000) return `${Math.round(bytes)} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  if (bytes < 1e9) return `${(bytes / 1e6).toFixed(2)} MB`;
  return `${(bytes / 1e9).toFixed(2)} GB`;
}

function countText({ bytes }) {
  return bytesText(bytes);
}

function rateText(bits) {
  return bits < 1e6 ? `${Math.round(bits / 1e3)} kbit/s` : `${(bits / 1e6).toFixed(1)} Mbit/s`;
}

function roundTripText(seconds) {
  // Firefox gives whole milliseconds, and on one machine that is 0
  return seconds < 0.001 ? '< 1 ms' : `${Math.round(seconds * 1000)} ms`;
}

// ---- controls

$('again').onclick = () => call.start();
$('hang-up').onclick = () => call.hangUp();
$('restart').onclick = () => call.restart('you asked');
$('copy').onclick = async () => {
  try {
    await navigator.clipboard.writeText(secondTab());
    $('copy').textContent = 'Copied';
  } catch {
    $('copy').textContent = 'Copy it from the address bar';
  }
  await clock.sleep(1600);
  $('copy').textContent = 'Copy link';
};
$('theme').onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
};
for (const choice of document.querySelectorAll('input[name=transport]')) {
  choice.checked = choice.value === transport;
  choice.onchange = () => {
    transport = choice.value;
    show();
    if (call.phase === 'connected') call.renew(transport.toUpperCase());
  };
}
for (const choice of document.querySelectorAll('input[name=picture]')) {
  choice.checked = choice.value === 'test';
  choice.onchange = () => setPicture(choice.value);
}
$('file').onchange = () => {
  sendAll($('file').files);
  $('file').value = '';
};
$('drop').ondragover = (event) => {
  event.preventDefault();
  $('drop').classList.add('over');
};
$('drop').ondragleave = () => $('drop').classList.remove('over');
$('drop').ondrop = (event) => {
  event.preventDefault();
  $('drop').classList.remove('over');
  sendAll(event.dataTransfer.files);
};
window.addEventListener('hashchange', () => location.reload());

async function setPicture(which) {
  let next;
  try {
    next = which === 'camera' ? await cameraPicture() : testPicture(label, hue);
  } catch (error) {
    write('warn', `No camera: ${error.message} The test picture stays.`);
    document.querySelector('input[name=picture][value=test]').checked = true;
    return;
  }
  const old = picture;
  picture = next;
  usePicture();
  old.stop();
}

function usePicture() {
  $('local').srcObject = picture.stream;
  call.show(picture.stream.getVideoTracks()[0]);
}

// ---- go

usePicture();
show();
signalling.run();
