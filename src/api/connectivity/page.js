// The test for somebody who was given a link. The credential is behind the link's #, which browsers send to no server; the
// URLs come from this server, so a link can't make a browser test another one.

import { entriesOf, mountTest } from './test.js';

const at = (id) => document.getElementById(id);
const link = new URLSearchParams(location.hash.slice(1));
const [username, credential] = [link.get('username'), link.get('credential')];
const endsAt = Number.parseInt(username ?? '', 10);

async function load() {
  const answer = await fetch('/.well-known/turn', { cache: 'no-store' }).catch(() => null);
  if (!answer?.ok) throw new Error(`The server does not say where it is reached (${answer ? answer.status : 'no answer'}).`);
  const { uris } = await answer.json();
  return entriesOf([{ urls: uris, username, credential }]);
}

if (!username || !credential) {
  at('no-link').hidden = false;
} else if (endsAt * 1000 < Date.now()) {
  at('no-link-text').textContent = `The link ended on ${new Date(endsAt * 1000).toLocaleString()}. Ask the server's operator for a new one.`;
  at('no-link').hidden = false;
} else {
  at('test').hidden = false;
  mountTest(at('test'), load);
}
window.addEventListener('hashchange', () => location.reload());
