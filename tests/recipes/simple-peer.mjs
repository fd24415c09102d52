// Two simple-peers, made by the lines of `throughway recipe peerjs`, connect to each other through the relay alone.
//
//   node simple-peer.mjs SERVER PAGE NODE_MODULES
//
// SERVER is a module with the lines for the application's server, PAGE a file with those for the web page. werift stands
// for the browser's WebRTC. The last line is the candidates' types and the ICE servers that the library passed on, as JSON.

import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const CONNECT_MS = 30_000;
const [server, page, modules] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${modules}/`));
const [SimplePeer, werift] = [require('simple-peer'), require('werift')];
const { iceServers } = await import(pathToFileURL(server));

// werift takes one URL for each server and asks over UDP; its descriptions can't be changed, which simple-peer does.
let passedOn;
class RTCPeerConnection extends werift.RTCPeerConnection {
  constructor(config) {
    passedOn = config.iceServers;
    const overUdp = config.iceServers.flatMap((entry) => [entry.urls].flat().map((urls) => ({ ...entry, urls })));
    super({ ...config, iceServers: overUdp.filter(({ urls }) => urls.endsWith('=udp')) });
  }
  async createOffer() { return plain(await super.createOffer()); }
  async createAnswer() { return plain(await super.createAnswer()); }
  async getStats() { return []; }
}
const plain = ({ type, sdp }) => ({ type, sdp });
const wrtc = { RTCPeerConnection, RTCSessionDescription: Object, RTCIceCandidate: werift.RTCIceCandidate };

/** What the page's lines make, with the relay forced. */
async function peer(initiator) {
  const Forced = class extends SimplePeer {
    constructor(options) { super({ ...options, wrtc, config: { ...options.config, iceTransportPolicy: 'relay' } }); }
  };
  const fetch = async () => ({ json: async () => JSON.parse(JSON.stringify(iceServers('u-17'))) });
  const lines = `${await readFile(page, 'utf8')}\nreturn simple;`;
  const AsyncFunction = (async () => {}).constructor;
  return new AsyncFunction('fetch', 'Peer', 'SimplePeer', 'id', 'initiator', lines)(fetch, class {}, Forced, 'id', initiator);
}

const peers = [await peer(true), await peer(false)];
const types = new Set();
const connected = peers.map((one, at) => new Promise((resolve, reject) => {
  one.on('signal', (signal) => {
    const type = signal.candidate?.candidate?.match(/ typ (\w+)/)?.[1];
    if (type) types.add(type);
    peers[1 - at].signal(signal);
  });
  one.on('iceStateChange', (state) => state === 'connected' && resolve());
  one.on('error', reject);
}));
setTimeout(() => { console.error('no connection'); process.exit(1); }, CONNECT_MS).unref();
await Promise.all(connected);
console.log(JSON.stringify({ types: [...types], passedOn }));
process.exit(0);
