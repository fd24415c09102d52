// Asks the admin API of this very server every two seconds and shows what it says. Changes nothing; the connectivity test and
// the link for a user ask for a credential when a person wants that.

import { copyButton, entriesOf, mountTest } from './test.js';

const EVERY_MS = 2000;
const SESSIONS = 100;
const REFUSALS = 20;
/** A server that hangs is told as one that is gone. */
const ANSWER_MS = 5000;
/** What happened in a minute needs the counters of a minute ago. */
const MINUTE_MS = 60_000;
const TOKEN = 'throughway-token';

const at = (id) => document.getElementById(id);

/** What was seen in the past minute, oldest first. */
let past = [];
/** When the server answered last, by this browser's clock. */
let seenAt = null;

class Refused extends Error {
  constructor(reason, sentence) {
    super(sentence);
    this.reason = reason;
  }
}

async function ask(path, wanted) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const post = wanted && { method: 'POST', body: JSON.stringify(wanted) };
  if (wanted) headers['Content-Type'] = 'application/json';
  const answer = await fetch(path, { ...post, headers, cache: 'no-store', signal: AbortSignal.timeout(ANSWER_MS) });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(body.reason, body.error ?? `status ${answer.status}`);
  return body;
}

function pill(tone, text) {
  at('pill').dataset.tone = tone;
  at('pill-text').textContent = text;
}

/** While the server does not answer, what is shown is old: it says so, and pales. */
function showStale(isStale) {
  document.body.classList.toggle('stale', isStale);
  at('stale').hidden = !isStale;
  const since = seenAt ? ` The numbers below are from ${seenAt.toLocaleTimeString([], { hour12: false })}.` : '';
  at('stale').textContent = `The server does not answer.${since} This page keeps trying.`;
}

/** A number in the unit that leaves it below 1000. */
function scaled(number, units) {
  let unit = 0;
  let value = number;
  while (value >= 999.5 && unit + 1 < units.length) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 99.95 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

const bytes = (count) => scaled(count, ['B', 'kB', 'MB', 'GB', 'TB', 'PB']);
const bits = (perSecond) => scaled(perSecond, ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s']);
const whole = (count) => count.toLocaleString('en');
const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);

function age(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
  return `${Math.floor(seconds / 86_400)} days`;
}

const day = (unix) => new Date(1000 * unix).toISOString().slice(0, 10);
const moment = (unix) => `${day(unix)} ${new Date(1000 * unix).toISOString().slice(11, 16)} UTC`;

/** Rows of texts; a cell may be [text, class]. What users choose is text and never markup. */
function fill(table, rows, empty, heads = []) {
  const cell = (text, kind) => Object.assign(document.createElement('td'), { textContent: text, className: kind });
  const lines = rows.map((cells) => {
    const line = document.createElement('tr');
    cells.forEach((content, column) => {
      const place = Array.isArray(content) ? cell(...content) : cell(content, '');
      if (heads[column]) place.dataset.head = heads[column];
      line.append(place);
    });
    return line;
  });
  if (!lines.length) {
    const line = document.createElement('tr');
    line.append(Object.assign(cell(empty, 'none'), { colSpan: at(table).tHead.rows[0].cells.length }));
    lines.push(line);
  }
  at(table).tBodies[0].replaceChildren(...lines);
}

/** Name, rise within the minute, and count, those that rose most first. */
function byReason(now, before, kind = '') {
  return Object.entries(now)
    .map(([name, count]) => [kind + name, count - (before[name] ?? 0), count])
    .sort((a, b) => b[1] - a[1] || b[2] - a[2])
    .map(([name, minute, all]) => [name, [whole(minute), 'number'], [whole(all), 'number']]);
}

/** Each client's first request is refused so that it learns the realm: to people that is no refusal. */
function refusals({ refused: { challenge, ...others } }) {
  return others;
}

function showNumbers(now) {
  // A server that was restarted counts from 0 again.
  if (past.length && now.uptime_s < past.at(-1).uptime_s) past = [];
  past.push(now);
  while (past.length > 2 && now.time_ms - past[1].time_ms >= MINUTE_MS) past.shift();
  const before = past.at(-2) ?? now;
  const minute = past[0];
  const seconds = (now.time_ms - before.time_ms) / 1000;
  const rate = (of) => bits(seconds > 0 ? (8 * (of(now) - of(before))) / seconds : 0);
  const inAll = (text) => `${text} in all`;

  at('version').textContent = `status, ${now.version}`;
  pill(now.phase === 'ready' ? 'good' : 'wait', now.phase);
  at('sessions').textContent = whole(now.sessions);
  const by = Object.entries(now.sessions_by_transport).map(([name, count]) => `${name} ${whole(count)}`);
  at('sessions-by').textContent = by.join(', ');
  at('rate-in').textContent = rate((of) => of.from_clients.bytes);
  at('total-in').textContent = inAll(bytes(now.from_clients.bytes));
  at('rate-out').textContent = rate((of) => of.to_clients.bytes);
  at('total-out').textContent = inAll(bytes(now.to_clients.bytes));
  at('rate-refused').textContent = `${whole(sum(refusals(now)) - sum(refusals(minute)))} / min`;
  at('total-refused').textContent = inAll(whole(sum(refusals(now))));
  at('rate-dropped').textContent = `${whole(sum(now.dropped) - sum(minute.dropped))} / min`;
  at('total-dropped').textContent = inAll(whole(sum(now.dropped)));
  at('uptime').textContent = age(now.uptime_s);
  at('workers').textContent = `${now.workers} ${now.workers === 1 ? 'worker' : 'workers'}, ${whole(now.revocations)} revoked`;

  fill('refused-table', byReason(refusals(now), refusals(minute)), 'nothing was refused');
  const ends = byReason(now.sessions_ended, minute.sessions_ended, 'session ');
  const dropped = byReason(now.dropped, minute.dropped, 'packet ');
  fill('ended-table', [...byReason(now.lost, minute.lost, 'lost: '), ...ends, ...dropped], 'nothing yet');
  fill(
    'certificate-table',
    now.certificates.map(({ names, days, valid_until: until }) => {
      const tone = days < 0 ? 'bad' : days < 14 ? 'wait' : '';
      return [names.join(', ') || 'no name', until === null ? 'stand-in' : day(until), [whole(days), `number ${tone}`]];
    }),
    'no listener has TLS',
  );
  showAcme(now);
  showShared(now);
  for (const id of ['numbers', 'why', 'ends', 'certs']) at(id).hidden = false;
}

/** Who has the port of listen.shared too, and how much is passed on. */
function showShared({ shared }) {
  at('shared').hidden = !shared;
  if (!shared) return;
  const state = ({ up, error }) => (up ? ['reachable', ''] : [`not reachable: ${error}`, 'bad']);
  fill('shared-table', shared.backends.map((of) => [of.address, state(of), [whole(of.failures), 'number']]), 'none');
  const carried = bytes(shared.bytes_to_backend + shared.bytes_to_client);
  at('shared-note').textContent = `${whole(shared.passed_on)} connections passed on now, ${carried} in all`;
}

/** What becomes of the certificate that the server gets itself. */
function showAcme({ acme, certificates }) {
  at('acme').hidden = !acme;
  if (!acme) return;
  const own = certificates.find(({ names, valid_until: until }) => until !== null && acme.domains.every((domain) => names.includes(domain)));
  at('acme-domains').textContent = acme.domains.join(', ');
  at('acme-until').textContent = own ? day(own.valid_until) : 'no certificate yet';
  at('acme-until').className = own ? '' : 'wait';
  at('acme-next-label').textContent = acme.error ? 'Next try' : 'Next order';
  at('acme-next').textContent = acme.next_order === null ? 'under way' : moment(acme.next_order);
  at('acme-error').textContent = acme.error ?? 'none';
  at('acme-error').className = acme.error ? 'bad' : '';
}

function showSessions({ sessions, more }) {
  at('sessions-note').textContent = more ? `the first ${sessions.length}; all of them: throughway sessions` : '';
  fill(
    'session-table',
    sessions.map((session) => [
      session.tenant ? `${session.user} (${session.tenant})` : session.user,
      [session.client, 'mono'],
      session.transport,
      [session.relayed, 'mono'],
      age(session.duration_s),
      [bytes(session.bytes_from_client), 'number'],
      [bytes(session.bytes_to_client), 'number'],
      [session.session, 'mono'],
    ]),
    'no live sessions',
    ['', 'Client', 'By', 'Relayed', 'Age', 'From client', 'To client', 'Session'],
  );
  at('people').hidden = false;
}

function showRefusals({ refusals: all }) {
  const element = (name, text) => Object.assign(document.createElement(name), { textContent: text });
  const lines = all.map((refusal) => {
    const line = document.createElement('li');
    const times = refusal.times > 1 ? `, ${whole(refusal.times)} times` : '';
    line.append(
      element('b', `${refusal.reason} (${refusal.code})${times} `),
      element('code', `${refusal.client} ${refusal.username ?? ''} `),
      element('time', refusal.time),
      element('p', refusal.remedy),
    );
    return line;
  });
  at('refusals').replaceChildren(...(lines.length ? lines : [element('li', 'none')]));
  at('who').hidden = false;
}

/** Names need the token; numbers need it too once the server has one. */
function askForToken({ reason, message }) {
  const isWrong = reason === 'wrong_token';
  sessionStorage.removeItem(TOKEN);
  for (const id of ['people', 'who', 'test', 'link']) at(id).hidden = true;
  at('login').classList.toggle('wrong', isWrong);
  at('login-text').textContent =
    reason === 'no_token' ? "Enter the token in the server's http.admin_token_file. It stays in this tab." : `The server says: ${message}.`;
  at('token').parentElement.hidden = reason === 'not_set_up';
  at('login').hidden = false;
}

/** Looks once; tells whether to look again. */
async function look() {
  try {
    showNumbers(await ask('/v1/status'));
    seenAt = new Date();
    showStale(false);
    const [sessions, latest] = await Promise.all([
      ask(`/v1/sessions?limit=${SESSIONS}`),
      ask(`/v1/refusals?limit=${REFUSALS}`),
    ]);
    showSessions(sessions);
    showRefusals(latest);
    for (const id of ['test', 'link']) at(id).hidden = false;
    at('login').hidden = true;
  } catch (error) {
    const isRefused = error instanceof Refused;
    if (isRefused && ['no_token', 'wrong_token', 'not_set_up', 'wrong_user'].includes(error.reason)) {
      if (at('numbers').hidden) pill('idle', 'Token needed');
      askForToken(error);
      // Without a token there is nothing to come back for, unless the numbers are free.
      return error.reason === 'not_set_up';
    }
    pill('bad', isRefused ? error.message : 'No answer from the server');
    showStale(!isRefused);
  }
  return true;
}

let timer;

async function turn() {
  clearTimeout(timer);
  if (await look()) timer = setTimeout(turn, EVERY_MS);
}

mountTest(at('test'), async () => entriesOf((await ask('/v1/test-credential', {})).iceServers));

const copyLink = copyButton('Copy link', () => at('link-url').value);
copyLink.hidden = true;
at('link-form').append(copyLink);
at('link-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  let note;
  let made = {};
  try {
    made = await ask('/v1/test-credential', { ttl: Number(at('link-ttl').value) });
    const until = moment(made.expires_at);
    const limits = made.is_limited ? 'It relays nothing but the test.' : 'Its password relays like that of any user: set claims = true for the secret in auth.secrets to limit it.';
    note = made.link
      ? `For the user ${made.user}, until ${until}. ${limits} If a proxy is in front of http.public, put its address in place of the first part.`
      : 'There is no page for users: set http.public, where the page of the test is served, and make the link again.';
  } catch (error) {
    note = error.message;
  }
  at('link-url').value = made.link ?? '';
  at('link-url').hidden = !made.link;
  copyLink.hidden = !made.link;
  at('link-note').textContent = note;
});

at('login').addEventListener('submit', (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at('token').value.trim());
  at('token').value = '';
  turn();
});

turn();
