// The WebSocket to the server, through which the two tabs agree on a call. It opens itself again whenever it ends.

import { clock } from './picture.js';

const PAUSE_FIRST = 250;
const PAUSE_MAX = 2000;

/**
 * Events: `up` (detail: {boot}), `paired` ({peer, caller}), `peer-left` ({goodbye}), `message` (what the other tab sent),
 * `refused` ({reason}), `down` (with each attempt that fails, too: {wasUp}).
 */
export class Signalling extends EventTarget {
  #socket = null;
  #ended = false;

  constructor(room, member) {
    super();
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    this.url = `${scheme}://${location.host}/signal?room=${encodeURIComponent(room)}&member=${encodeURIComponent(member)}`;
    this.goodbyeUrl = `/leave?room=${encodeURIComponent(room)}&member=${encodeURIComponent(member)}`;
    this.up = false;
    /** The server does not answer. Not yet known at the start. */
    this.lost = false;
    this.peer = null;
    this.caller = false;
  }

  async run() {
    let pause = PAUSE_FIRST;
    while (!this.#ended) {
      const wasUp = await this.#once();
      this.up = false;
      this.peer = null;
      if (this.#ended) return;
      this.lost = true;
      this.#tell('down', { wasUp });
      pause = wasUp ? PAUSE_FIRST : Math.min(PAUSE_MAX, pause * 1.6);
      await clock.sleep(pause);
    }
  }

  /** True if it went out; what can't go out now is not kept, because it would be stale later. */
  send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /** While the page closes: the other tab need not wait for us. A beacon leaves even when nothing else does any more. */
  sayGoodbye() {
    this.#ended = true;
    navigator.sendBeacon(this.goodbyeUrl);
  }

  /** One connection from start to end; true if it was up at all. */
  #once() {
    return new Promise((ended) => {
      const socket = new WebSocket(this.url);
      this.#socket = socket;
      let wasUp = false;
      socket.onclose = () => ended(wasUp);
      socket.onmessage = ({ data }) => {
        const notice = JSON.parse(data);
        if (notice.type === 'welcome') {
          wasUp = true;
          this.up = true;
          this.lost = false;
          this.#tell('up', notice);
        } else if (notice.type === 'paired') {
          this.peer = notice.peer;
          this.caller = notice.caller;
          this.#tell('paired', notice);
        } else if (notice.type === 'peer-left') {
          this.peer = null;
          this.#tell('peer-left', notice);
        } else if (notice.type === 'message') {
          this.#tell('message', notice.data);
        } else if (notice.type === 'refused') {
          this.#ended = true;
          this.#tell('refused', notice);
        }
      };
    });
  }

  #tell(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
