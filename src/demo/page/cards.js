// The cards that lead out of the page: to a phone, and into somebody's own page.

import { clockText } from './format.js';
import { clock } from './picture.js';
import { copyText } from './test.js';

const $ = (id) => document.getElementById(id);

/** A button that copies what `text` gives at that moment, and says that it did. */
export function copies(button, text) {
  const label = button.textContent;
  button.onclick = async () => {
    button.textContent = (await copyText(text())) ? 'Copied' : 'Select and copy it';
    await clock.sleep(1600);
    button.textContent = label;
  };
}

/** What somebody pastes into a page: the servers that this very tab uses. */
export function snippet({ iceServers }) {
  const servers = iceServers.map(({ urls, username, credential }) => {
    const list = urls.map((url) => JSON.stringify(url)).join(',\n      ');
    return `{\n    urls: [\n      ${list},\n    ],\n    username: ${JSON.stringify(username)},\n    credential: ${JSON.stringify(credential)},\n  }`;
  });
  return `const connection = new RTCPeerConnection({\n  iceServers: [${servers.join(', ')}],\n});`;
}

export function showCards(config, room) {
  $('use-code').textContent = snippet(config);
  $('use-until').textContent = `The password works until ${clockText(config.expiresAt)}. Your own page gets a fresh one from its server.`;
  $('use-copy').disabled = false;
  $('phone-none').hidden = Boolean(config.lan);
  $('phone-link').hidden = !config.lan;
  if (!config.lan) return;
  const link = `${config.lan}#room=${room}`;
  $('phone-url').textContent = link;
  $('phone-url').href = link;
  const image = `/qr.svg?room=${room}`;
  if ($('phone-code').getAttribute('src') !== image) $('phone-code').src = image;
}

copies($('use-copy'), () => $('use-code').textContent);
copies($('phone-copy'), () => $('phone-url').href);
