// The page: ties picture, signalling, call, files and numbers together, and shows them.

import { Call } from './call.js';
import { copies, showCards } from './cards.js';
import { Files } from './files.js';
import { bytesText, clockText, rateText, roundTripText, sparkline } from './format.js';
import { cameraPicture, clock, testPicture } from './picture.js';
import { Signalling } from './signalling.js';
import { Meter, endText } from './stats.js';
import { entriesOf, mountTest } from './test.js';

const LOG_LINES_MAX = 200;
const TRANSFERS_SHOWN = 6;
/** A server on this machine or in this network answers within milliseconds. */
const ANSWER_MS = 3000;
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

/** The second tab starts with our choices. */
function secondTab() {
  const choices = `${transport === 'tcp' ? '&transport=tcp' : ''}${call.way === 'direct' ? '&way=direct' : ''}`;
  return `${location.origin}${location.pathname}#room=${room}${choices}`;
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
/** The server answers, but not to us: the link with its token is of a former run. */
let locked = false;
/** The server's counts did not come; a server that hangs, or a network that is gone, closes no connection. */
let isSilent = false;
/** Nothing arrives any more, and there is a reason to say so before ICE does. */
let stalled = false;
const roundTrips = { relay: null, direct: null };
const log = [];
if (wish.get('way') === 'direct') call.way = 'direct';

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
  get way() { return call.way; },
  get carrier() { return carrier(); },
  get roundTrips() { return { ...roundTrips }; },
  get signalling() { return { up: signalling.up, peer: signalling.peer, caller: signalling.caller }; },
  get transfers() { return files.transfers.map(({ file, url, ...rest }) => rest); },
  log,
  restart: () => call.restart('the button was pressed'),
  /** Sends no picture, so that nothing but connection checks is on its way. */
  silence: () => call.show(null),
  unsilence: () => usePicture(),
  sendFile: (name, bytes) => files.send(new File([bytes], name)),
};

async function fetchConfig() {
  const answer = await fetch(`/config?user=${user}&transport=${transport}`);
  if (!answer.ok) throw new Error(`The server gave no credentials: ${answer.status} ${await answer.text()}`);
  config = await answer.json();
  showNotes(config.notes);
  showCards(config, room);
  return config;
}

/** The test has a user of its own, so that its traffic is not counted for this tab. */
mountTest($('test'), async () => {
  const tester = `test-${randomName(8)}`;
  const answers = await Promise.all(['udp', 'tcp'].map((each) => fetch(`/config?user=${tester}&transport=${each}`)));
  const refused = answers.find(({ ok }) => !ok);
  if (refused) throw new Error(`The server gave no credentials: ${refused.status} ${await refused.text()}`);
  const servers = await Promise.all(answers.map((answer) => answer.json()));
  return entriesOf(servers.flatMap(({ iceServers }) => iceServers), { isOneServer: true });
});

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
  locked = false;
  if (call.phase === 'idle') write('info', 'Connected to the server. Waiting for a second tab.');
  // for the cards; a call asks for credentials of its own
  fetchConfig().catch((error) => write('warn', error.message));
  show();
});
signalling.addEventListener('down', async () => {
  show();
  locked = await fetch(`/usage?user=${user}`).then(({ status }) => status === 403, () => false);
  show();
});
signalling.addEventListener('peer-left', show);
call.addEventListener('way', () => {
  tick('way', call.way);
  show();
});
signalling.addEventListener('paired', show);
signalling.addEventListener('refused', ({ detail }) => {
  refused = sentenceOf(detail.reason);
  write('bad', refused);
  show();
});
files.addEventListener('change', ({ detail }) => showTransfer(detail));

const PILLS = {
  idle: ['idle', 'No second tab yet'],
  connecting: ['wait', 'Connecting'],
  connected: ['good', 'Connected'],
  disconnected: ['wait', 'Interrupted'],
  restarting: ['wait', 'ICE restart'],
  rebuilding: ['wait', 'New connection'],
  failed: ['bad', 'Not connected'],
  ended: ['idle', 'Call ended'],
};

const COVERS = {
  idle: ['Call yourself through the relay', 'Most computers are behind a router (NAT) that blocks calls from outside. A relay that both sides can reach forwards the packets, so the call still works. Open a second tab and watch it.'],
  connecting: ['Connecting', 'Both tabs get addresses and try the paths between them.'],
  connected: ['The other tab is silent', 'No packets arrive from it.'],
  disconnected: ['Connection interrupted', 'Short gaps recover on their own.'],
  restarting: ['ICE restart', 'Same call, new addresses from the relay.'],
  rebuilding: ['New connection', 'Last resort: start from scratch.'],
  failed: ['No connection', ''],
};

/** What carries the call: ICE decides, whatever we asked for. */
function carrier() {
  const pair = numbers?.pair;
  if (!pair) return call.way;
  return pair.local.type === 'relay' || pair.remote.type === 'relay' ? 'relay' : 'direct';
}

function pill() {
  const { phase } = call;
  if (refused) return ['bad', 'No room'];
  if (locked) return ['bad', 'Link expired'];
  if (isServerGone()) return ['bad', 'No answer from the server'];
  if (!signalling.up && phase === 'idle') return ['wait', 'Reaching the server'];
  if (phase !== 'connected') return PILLS[phase];
  if (!signalling.peer) return ['wait', 'The other tab left'];
  return ['good', carrier() === 'relay' ? `Relayed over ${transport.toUpperCase()}` : 'Direct'];
}

/** Title and text of what lies over the picture. */
function cover() {
  const { phase } = call;
  if (refused) return ['No place in this room', refused];
  if (locked) return ['This link is no longer valid', 'The demo was started again. Scan its new QR code, or open the link that it printed.'];
  if (isServerGone()) return ['The server does not answer', 'It has stopped, or this device has lost its network. Start the demo again: this page then continues on its own.'];
  const [title, words] = COVERS[phase] ?? ['', ''];
  if (phase === 'failed') return [title, call.reason];
  if (phase === 'ended') return [call.reason, signalling.peer ? 'The other tab is still here.' : 'Open a second tab to call again.'];
  const isAlone = !signalling.peer && phase !== 'idle' && phase !== 'connected';
  return [title, isAlone ? 'The other tab is not connected to the server. Is it still open?' : words];
}

function show() {
  const { phase, stage } = call;
  call.transport = transport;
  const [tone, text] = pill();
  $('pill').dataset.tone = tone;
  $('pill-text').textContent = text;
  document.title = `${tone === 'good' ? '● ' : ''}${label} · throughway demo`;

  // a restart of a call that stands is no reason to hide it
  const stands = phase === 'connected' || (phase === 'restarting' && call.connection?.connectionState === 'connected');
  const covered = !stands || stalled;
  $('cover').hidden = !covered;
  document.body.dataset.phase = phase;
  document.body.dataset.carrier = carrier();
  const [title, words] = cover();
  $('cover-title').textContent = title;
  $('cover-text').textContent = words;
  $('banner').hidden = covered || !isServerGone();
  const isWaiting = ['connecting', 'disconnected', 'restarting', 'rebuilding'].includes(phase);
  $('spinner').hidden = !isWaiting && !isServerGone();
  $('ladder').hidden = stage === 0 || isServerGone();
  for (const step of $('ladder').children) {
    const number = Number(step.dataset.stage);
    step.dataset.state = number < stage ? 'past' : number === stage ? 'now' : 'next';
  }
  const isAlone = signalling.up && !isSilent && !signalling.peer && phase !== 'connecting' && !refused;
  $('second').hidden = !isAlone && !refused;
  $('second').textContent = refused ? 'Open another room' : phase === 'idle' ? 'Open the second tab' : 'Open the second tab again';
  $('second').href = refused ? location.pathname : secondTab();
  $('copy').hidden = !isAlone;
  $('again').hidden = !(signalling.up && signalling.peer && ['failed', 'ended'].includes(phase));
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
  $('notes').textContent = notes.map(sentenceOf).join(' ');
}

/** The server's messages begin in lower case, as those of programs do. */
function sentenceOf(message) {
  return `${message[0].toUpperCase()}${message.slice(1).replace(/\.$/, '')}.`;
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
    write('good', `File ${transfer.way}: ${transfer.name}, ${bytesText(transfer.size)}. The checksums of both tabs agree.`);
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
  // ICE takes seconds to notice; a picture that stands still must not look alive so long
  const isDoubtful = isServerGone() || !signalling.peer;
  stalled = isDoubtful && call.phase === 'connected' && numbers?.framesPerSecond === 0 && numbers.receivingRate < 2000;
  if (numbers && call.phase === 'connected' && numbers.roundTrip !== null) roundTrips[carrier()] = numbers.roundTrip;
  show();
  showNumbers();
});

clock.every(1000, async () => {
  if (signalling.lost) return;
  const answer = await fetch(`/usage?user=${user}`, { signal: AbortSignal.timeout(ANSWER_MS) }).catch(() => null);
  isSilent = answer === null;
  usage = answer?.ok ? await answer.json().catch(() => null) : null;
});

function isServerGone() {
  return signalling.lost || isSilent;
}

function showNumbers() {
  const live = numbers && call.phase === 'connected';
  text('up', live ? rateText(numbers.sendingRate) : '–');
  text('down', live ? rateText(numbers.receivingRate) : '–');
  upLine(live ? numbers.sendingRate : 0);
  downLine(live ? numbers.receivingRate : 0);
  for (const [way, seconds] of Object.entries(roundTrips)) {
    text(`rtt-${way}`, seconds === null ? '–' : roundTripText(seconds));
    $(`rtt-${way}`).parentElement.classList.toggle('now', Boolean(live) && carrier() === way);
  }
  text('count-hint', carrier() === 'relay'
    ? 'The server\'s figures are about a second older. It also counts the browsers\' connection checks.'
    : 'This call does not pass through the server now, so its counts do not change.');
  const through = carrier() === 'relay' ? 'through the relay' : 'directly';
  text('remote-label', `Other tab, ${through}${live ? ` · ${Math.round(numbers.framesPerSecond)} fps` : ''}`);
  $('way-hint').hidden = !(live && call.way === 'direct' && carrier() === 'relay');
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
  const isRelayed = carrier() === 'relay';
  text('hop-client', session?.client ?? (numbers ? endText(numbers.pair.local) : '–'));
  text('hop-transport', isRelayed ? over : 'direct');
  text('hop-theirs', (call.peerTransport || '?').toUpperCase());
  text('hop-local', numbers && isRelayed ? endText(numbers.pair.local) : '–');
  text('hop-remote', numbers && isRelayed ? endText(numbers.pair.remote) : '–');
  text('hop-peer', numbers ? 'encrypted to here' : '–');
  document.body.classList.toggle('flowing', Boolean(live));
  if (!numbers) return;
  if (session) sentence('lesson-stun', 'The server sees your browser at ', session.client, ', and told it so.');
  if (session) {
    const until = config ? `, with a password that works until ${clockText(config.expiresAt)}` : '';
    sentence('lesson-turn', 'The server lent your browser the address ', session.relayed, ` over ${over}${until}.`);
  }
  const passed = usage && usage.user.to_peers.packets + usage.user.to_client.packets;
  if (passed) sentence('lesson-relay', 'The server has passed on ', `${passed.toLocaleString('en')} packets`, ' for this tab. They are encrypted between the tabs, so it can\'t read them.');
}

function text(id, value) {
  if ($(id).textContent !== value) $(id).textContent = value;
}

function sentence(id, before, fact, after) {
  const strong = document.createElement('code');
  strong.textContent = fact;
  $(id).replaceChildren(before, strong, after);
}

function countText({ bytes }) {
  return bytesText(bytes);
}

// ---- controls

$('again').onclick = () => call.start();
$('hang-up').onclick = () => call.hangUp();
$('restart').onclick = () => call.restart('the button was pressed');
copies($('copy'), secondTab);
$('theme').onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
};
/** Marks one of a group's choices, and says what happens when a person takes another. */
function tick(name, value) {
  for (const choice of document.querySelectorAll(`input[name=${name}]`)) choice.checked = choice.value === value;
}
function onChoice(name, value, act) {
  tick(name, value);
  for (const choice of document.querySelectorAll(`input[name=${name}]`)) choice.onchange = () => act(choice.value);
}
onChoice('way', call.way, (value) => {
  call.setWay(value);
  show();
});
onChoice('transport', transport, (value) => {
  transport = value;
  show();
  if (call.isCall) call.renew(`reaches the relay over ${transport.toUpperCase()} now`);
});
onChoice('picture', 'test', setPicture);
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
window.addEventListener('pagehide', () => signalling.sayGoodbye());
// back out of the browser's cache: the goodbye was taken at its word
window.addEventListener('pageshow', ({ persisted }) => {
  if (persisted) location.reload();
});

async function setPicture(which) {
  let next;
  try {
    next = which === 'camera' ? await cameraPicture() : testPicture(label, hue);
  } catch (error) {
    write('warn', `No camera: ${error.message} The test picture stays.`);
    tick('picture', 'test');
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

$('mark').src = document.querySelector('link[rel=icon]').href;
usePicture();
show();
signalling.run();
