// Files over the data channel: announced, sent in pieces no faster than they leave, checked by SHA-256 on both sides.

import { Sha256 } from './sha256.js';

/** Larger messages than this are not safe in every browser. */
const PIECE_BYTES = 64 * 1024;
/** Stop filling the channel above, go on below. */
const BUFFERED_HIGH = 4 * 1024 * 1024;
const BUFFERED_LOW = 1024 * 1024;
/** The receiver keeps the file in memory. */
export const FILE_BYTES_MAX = 256 * 1024 * 1024;

/** Events: `change` (detail: the transfer that changed), `message` (a line for the log). */
export class Files extends EventTarget {
  #channel = null;
  #queue = [];
  #sending = null;
  #receiving = null;
  #awaiting = new Map();
  #next = 1;

  constructor() {
    super();
    /** All transfers, newest first. */
    this.transfers = [];
  }

  get open() {
    return this.#channel?.readyState === 'open';
  }

  /** Takes a new channel; what was under way on the old one starts again. */
  attach(channel) {
    this.detach();
    this.#channel = channel;
    channel.binaryType = 'arraybuffer';
    channel.bufferedAmountLowThreshold = BUFFERED_LOW;
    channel.addEventListener('open', () => this.#work());
    channel.addEventListener('message', ({ data }) => {
      if (channel === this.#channel) this.#hear(data);
    });
  }

  detach() {
    this.#channel = null;
    const again = [...this.#awaiting.values(), ...(this.#sending ? [this.#sending] : [])];
    this.#awaiting.clear();
    this.#sending = null;
    for (const transfer of again.reverse()) {
      this.#queue.unshift(transfer);
      this.#set(transfer, { state: 'queued', bytes: 0, sha256: '' });
    }
    if (this.#receiving) {
      this.#set(this.#receiving.transfer, { state: 'interrupted', problem: 'the connection was replaced; the sender starts again' });
      this.#receiving = null;
    }
  }

  /** Queues a File for sending. */
  send(file) {
    const transfer = {
      id: this.#next,
      way: 'sent',
      name: file.name,
      size: file.size,
      type: file.type,
      bytes: 0,
      state: 'queued',
      sha256: '',
      file,
    };
    this.#next += 1;
    this.transfers.unshift(transfer);
    if (file.size > FILE_BYTES_MAX) {
      this.#set(transfer, { state: 'refused', problem: `larger than ${FILE_BYTES_MAX / 1048576} MiB, and the other tab keeps it in memory` });
      return transfer;
    }
    this.#queue.push(transfer);
    this.#set(transfer, {});
    this.#work();
    return transfer;
  }

  async #work() {
    if (this.#sending || !this.open) return;
    const transfer = this.#queue.shift();
    if (!transfer) return;
    const channel = this.#channel;
    this.#sending = transfer;
    try {
      await this.#sendOne(channel, transfer);
    } catch (error) {
      // a channel that ended is `detach`'s business; what remains is a file that can't be read
      if (this.#sending === transfer && channel === this.#channel && this.open) {
        this.#set(transfer, { state: 'failed', problem: String(error.message ?? error) });
        channel.send(JSON.stringify({ kind: 'cancel', id: transfer.id }));
      } else {
        return;
      }
    }
    if (this.#sending === transfer) this.#sending = null;
    if (channel === this.#channel) this.#work();
  }

  async #sendOne(channel, transfer) {
    const { file } = transfer;
    const started = performance.now();
    const digest = new Sha256();
    this.#set(transfer, { state: 'sending', bytes: 0 });
    channel.send(JSON.stringify({ kind: 'file', id: transfer.id, name: file.name, size: file.size, type: file.type }));
    for (let at = 0; at < file.size; at += PIECE_BYTES) {
      const piece = await file.slice(at, at + PIECE_BYTES).arrayBuffer();
      if (channel.bufferedAmount > BUFFERED_HIGH) await drained(channel);
      if (channel !== this.#channel) throw new Error('the channel was replaced');
      channel.send(piece);
      digest.update(new Uint8Array(piece));
      this.#set(transfer, { bytes: at + piece.byteLength });
    }
    const sha256 = digest.hex();
    this.#set(transfer, { state: 'checking', sha256, started });
    this.#awaiting.set(transfer.id, transfer);
    channel.send(JSON.stringify({ kind: 'end', id: transfer.id, sha256 }));
  }

  #hear(data) {
    if (typeof data !== 'string') {
      this.#piece(new Uint8Array(data));
      return;
    }
    const message = JSON.parse(data);
    if (message.kind === 'file') this.#begin(message);
    if (message.kind === 'end') this.#end(message);
    if (message.kind === 'cancel') this.#cancel();
    if (message.kind === 'checked') this.#checked(message);
  }

  #begin({ id, name, size, type }) {
    const transfer = {
      id,
      way: 'received',
      name: String(name),
      size: Number(size),
      type: String(type),
      bytes: 0,
      state: 'receiving',
      sha256: '',
      started: performance.now(),
    };
    this.#receiving = { transfer, pieces: [], digest: new Sha256() };
    this.transfers.unshift(transfer);
    this.#set(transfer, {});
  }

  #piece(bytes) {
    const now = this.#receiving;
    if (!now) return;
    if (now.transfer.bytes + bytes.length > Math.min(now.transfer.size, FILE_BYTES_MAX)) {
      this.#set(now.transfer, { state: 'failed', problem: 'more bytes arrived than announced' });
      this.#receiving = null;
      return;
    }
    now.pieces.push(bytes);
    now.digest.update(bytes);
    this.#set(now.transfer, { bytes: now.transfer.bytes + bytes.length });
  }

  #end({ id, sha256 }) {
    const now = this.#receiving;
    this.#receiving = null;
    if (!now) return;
    const { transfer, pieces, digest } = now;
    const computed = digest.hex();
    const fine = computed === sha256 && transfer.bytes === transfer.size;
    this.#set(transfer, {
      state: fine ? 'done' : 'failed',
      problem: fine ? '' : `the checksum differs: the sender has ${sha256}`,
      sha256: computed,
      seconds: (performance.now() - transfer.started) / 1000,
      // no type of the sender's choice that a browser would run
      url: URL.createObjectURL(new Blob(pieces, { type: /^image\/(png|jpeg|gif|webp)$/.test(transfer.type) ? transfer.type : 'application/octet-stream' })),
    });
    this.#channel?.send(JSON.stringify({ kind: 'checked', id, sha256: computed }));
  }

  #cancel() {
    if (!this.#receiving) return;
    this.#set(this.#receiving.transfer, { state: 'failed', problem: 'the sender could not read the rest of the file' });
    this.#receiving = null;
  }

  #checked({ id, sha256 }) {
    const transfer = this.#awaiting.get(id);
    this.#awaiting.delete(id);
    if (!transfer) return;
    const fine = sha256 === transfer.sha256;
    this.#set(transfer, {
      state: fine ? 'done' : 'failed',
      problem: fine ? '' : `the checksum differs: the receiver has ${sha256}`,
      seconds: (performance.now() - transfer.started) / 1000,
    });
  }

  #set(transfer, change) {
    Object.assign(transfer, change);
    this.dispatchEvent(new CustomEvent('change', { detail: transfer }));
  }
}

function drained(channel) {
  return new Promise((done, failed) => {
    const low = () => settle(done);
    const closed = () => settle(() => failed(new Error('the channel closed')));
    const settle = (how) => {
      channel.removeEventListener('bufferedamountlow', low);
      channel.removeEventListener('close', closed);
      how();
    };
    channel.addEventListener('bufferedamountlow', low);
    channel.addEventListener('close', closed);
  });
}
