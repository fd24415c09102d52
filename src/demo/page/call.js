// The call: one RTCPeerConnection at a time, relay-only, and the ladder that brings it back.
//
// One side, the caller, makes every offer; the other asks for what it wants. So offers never cross. Messages and our own
// steps run one after the other (`#turn`), because each awaits and none may see the other half-way.

import { diagnosis } from './diagnosis.js';
import { clock } from './picture.js';
import { selectedPairName } from './stats.js';

/** How long a connection may take before we say why it does not come: browsers wait much longer, or for ever. */
const CONNECT_MS = 8000;
/** How long `disconnected` may heal by itself. */
const HEAL_MS = 5000;
/** New connections tried in a row before asking the user. */
const REBUILDS_MAX = 4;
const REBUILD_PAUSE_MS = 1500;
/** A tab whose signalling broke off comes back within two seconds, if it comes. */
const PEER_GONE_MS = 6000;

export const STAGES = ['', 'Wait for recovery', 'ICE restart', 'New connection'];

/**
 * Events: `phase` (idle, connecting, connected, disconnected, restarting, rebuilding, failed, ended), `log`
 * ({level, text}), `connection` (a new RTCPeerConnection), `channel`, `stream` (the other tab's picture).
 */
export class Call extends EventTarget {
  #connection = null;
  #id = null;
  #caller = false;
  #peer = null;
  #boot = null;
  #candidates = [];
  #unsent = null;
  #remote = [];
  #errors = [];
  #relayed = 0;
  #turns = Promise.resolve();
  #epoch = 0;
  #recovering = 0;
  #wanted = 0;
  #helped = false;
  #track = null;

  /**
   * @param {Signalling} signalling
   * @param {() => Promise<object>} config asks the server for ICE servers with fresh credentials
   */
  constructor(signalling, config) {
    super();
    this.signalling = signalling;
    this.config = config;
    this.phase = 'idle';
    this.stage = 0;
    this.reason = '';
    /** How each tab reaches the relay, for show: it travels with the descriptions. */
    this.transport = '';
    this.peerTransport = '';
    /** `relay`, or `direct` where ICE may take any way it finds; both tabs follow the latest change. */
    this.way = 'relay';
    /** For people and tests: how often each stage was entered. */
    this.counters = { healed: 0, restarts: 0, rebuilds: 0, restarted: 0, rebuilt: 0 };

    signalling.addEventListener('up', ({ detail }) => this.#onUp(detail));
    signalling.addEventListener('paired', ({ detail }) => this.#onPaired(detail));
    signalling.addEventListener('peer-left', ({ detail }) => this.#onPeerLeft(detail));
    signalling.addEventListener('down', ({ detail }) => {
      if (detail.wasUp) this.#log('warn', 'The connection to the server is lost. Trying again.');
    });
    signalling.addEventListener('message', ({ detail }) => this.#onMessage(detail));
  }

  get connection() {
    return this.#connection;
  }

  /** A call stands, or is on its way: what is changed now needs a new connection. */
  get isCall() {
    return !['idle', 'ended', 'failed'].includes(this.phase);
  }

  /** What we send, or null for nothing on this connection; a change during the call needs no negotiation. */
  show(track) {
    if (track) this.#track = track;
    const [sender] = this.#connection?.getSenders() ?? [];
    sender?.replaceTrack(track).catch((error) => this.#log('bad', `The picture could not be changed: ${error.message}`));
  }

  /** Starts a call, or starts it again after a failure or a hang-up. */
  start() {
    if (this.#caller) this.#connect('');
    else this.#ask('call', 'the other tab called');
  }

  /**
   * A new connection on purpose. An ICE restart is not enough to change the way to the relay: Chromium keeps the old
   * allocation beside the new one, and prefers UDP.
   */
  renew(what) {
    if (this.#caller) this.#connect(`this tab ${what}`);
    else this.#ask('call', `the other tab ${what}`);
  }

  /** Changes the way for both tabs; a call that stands gets a new connection. */
  setWay(way) {
    this.way = way;
    this.signalling.send({ kind: 'way', way });
    if (this.isCall) this.renew(way === 'relay' ? 'wants every packet relayed' : 'wants a direct way');
  }

  hangUp() {
    this.signalling.send({ kind: 'hang-up' });
    this.#end('You hung up');
  }

  /** ICE restart on demand; `why` goes to the log of both tabs. */
  restart(why) {
    if (this.#connection) this.#recover(2, why);
  }

  // ---- signalling

  #onUp({ boot }) {
    const another = this.#boot !== null && this.#boot !== boot;
    this.#boot = boot;
    if (!another) return;
    this.#log('warn', 'The server was restarted: its relayed addresses and passwords are gone.');
    if (this.#connection && this.phase !== 'ended') this.#recover(2, 'the server was restarted, so waiting does not help');
  }

  #onPaired({ peer, caller }) {
    const same = peer === this.#peer;
    this.#caller = caller;
    this.#peer = peer;
    // signalling came back, and the call either stands or is being brought back
    if (same && this.#connection && (this.#recovering || this.phase === 'connected')) return;
    if (same && this.phase === 'ended') return;
    this.#log('info', `The other tab is here; ${caller ? 'this tab makes the offer' : 'it makes the offer'}.`);
    if (caller) this.#connect('');
    else this.#expect(this.#connection);
  }

  #onPeerLeft({ goodbye }) {
    if (this.phase === 'idle' || this.phase === 'ended') return;
    if (goodbye) this.#end('The other tab was closed');
    else if (this.phase === 'connecting') this.#end('The other tab left');
    else this.#log('info', 'The other tab disconnected from the server.');
  }

  #onMessage(message) {
    if (message.kind === 'hang-up') {
      this.#end('The other tab hung up');
      return;
    }
    if (message.kind === 'way') {
      this.#follow(message.way);
      return;
    }
    if (message.kind === 'ask') {
      this.#onAsk(message);
      return;
    }
    this.#turn(async () => {
      if (message.kind === 'offer') await this.#onOffer(message);
      if (message.kind === 'answer' && message.call === this.#id) await this.#onAnswer(message);
      if (message.kind === 'candidate' && message.call === this.#id) await this.#onCandidate(message.candidate);
    });
  }

  #follow(way) {
    if (way === this.way || !['relay', 'direct'].includes(way)) return;
    this.way = way;
    this.#tell('way', way);
  }

  #onAsk({ what, why }) {
    if (!this.#caller) return;
    if (what === 'call') this.#connect(why);
    if (what === 'restart' && this.#connection) this.#recover(2, why);
    if (what === 'rebuild') this.#recover(3, why);
  }

  #ask(what, why) {
    return this.signalling.send({ kind: 'ask', what, why });
  }

  async #onOffer({ call, description, restart, transport, way }) {
    this.peerTransport = transport;
    this.#follow(way);
    if (call !== this.#id || !this.#connection) {
      await this.#build(call);
      if (!this.#recovering) this.#expect(null);
    } else if (restart) {
      this.#connection.setConfiguration(await this.#configuration());
      if (this.#recovering === 1) this.#helped = true;
      if (!this.#recovering) this.#recover(2, 'the other tab began it', true);
    }
    const connection = this.#connection;
    this.#unsent = [];
    await connection.setRemoteDescription(description);
    await this.#flushRemote();
    await connection.setLocalDescription(await connection.createAnswer());
    this.#sendDescription('answer');
  }

  async #onAnswer({ description, transport }) {
    this.peerTransport = transport;
    if (this.#connection.signalingState !== 'have-local-offer') return;
    await this.#connection.setRemoteDescription(description);
    await this.#flushRemote();
  }

  async #onCandidate(candidate) {
    this.#remote.push(candidate);
    await this.#flushRemote();
  }

  async #flushRemote() {
    if (!this.#connection?.remoteDescription) return;
    for (const candidate of this.#remote.splice(0)) {
      // one from before the last ICE restart fits nothing any more
      await this.#connection.addIceCandidate(candidate).catch(() => {});
    }
  }

  #sendDescription(kind, more = {}) {
    this.signalling.send({ kind, call: this.#id, description: this.#connection.localDescription, transport: this.transport, way: this.way, ...more });
    for (const candidate of this.#unsent ?? []) this.signalling.send({ kind: 'candidate', call: this.#id, candidate });
    this.#unsent = null;
  }

  // ---- steps

  /** A first connection, or a fresh one after a failure. */
  #connect(why) {
    this.#epoch += 1;
    this.#recovering = 0;
    this.#setStage(0);
    this.#setPhase('connecting');
    if (why) this.#log('info', `New connection: ${why}.`);
    this.#turn(() => this.#offerNew());
    this.#awaitFirst(this.#connection);
  }

  /** The callee's side of `#connect`: the offer comes from the other tab. */
  #expect(old) {
    this.#epoch += 1;
    this.#recovering = 0;
    this.#setStage(0);
    this.#setPhase('connecting');
    this.#awaitFirst(old);
  }

  /** The old connection, which may still stand, is not the one that is waited for. */
  async #awaitFirst(old) {
    const epoch = this.#epoch;
    const isThere = () => this.#connection !== old && this.#connection?.connectionState === 'connected';
    const connected = await this.#until(CONNECT_MS, isThere);
    if (epoch !== this.#epoch || this.#recovering) return;
    if (connected) this.#connected(this.way === 'relay' ? 'Connected: every packet goes through the relay.' : 'Connected.');
    else this.#fail();
  }

  async #offerNew() {
    await this.#build(`${this.signalling.peer}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`);
    await this.#offer({ restart: false });
  }

  async #offerRestart() {
    const connection = this.#connection;
    connection.setConfiguration(await this.#configuration());
    await this.#offer({ restart: true });
  }

  async #offer({ restart }) {
    const connection = this.#connection;
    this.#unsent = [];
    await connection.setLocalDescription(await connection.createOffer({ iceRestart: restart }));
    this.#sendDescription('offer', { restart });
  }

  async #configuration() {
    const { iceServers } = await this.config();
    return { iceServers, iceTransportPolicy: this.way === 'relay' ? 'relay' : 'all', bundlePolicy: 'max-bundle', rtcpMuxPolicy: 'require' };
  }

  async #build(id) {
    const configuration = await this.#configuration();
    this.#drop();
    const connection = new RTCPeerConnection(configuration);
    this.#connection = connection;
    this.#id = id;
    this.#remote = [];
    this.#unsent = [];
    this.#errors = [];
    this.#relayed = 0;
    connection.onicecandidate = ({ candidate }) => {
      if (!candidate?.candidate) return;
      this.#relayed += 1;
      // a candidate must not overtake the description it belongs to
      if (this.#unsent) this.#unsent.push(candidate);
      else this.signalling.send({ kind: 'candidate', call: id, candidate });
    };
    connection.onicecandidateerror = ({ url, errorCode, errorText, address }) => {
      this.#errors.push({ url, errorCode, errorText, address });
    };
    connection.onconnectionstatechange = () => this.#onState(connection);
    connection.ontrack = ({ track, streams }) => this.#tell('stream', streams[0] ?? new MediaStream([track]));
    connection.addTrack(this.#track, new MediaStream([this.#track]));
    // the same id on both sides, so there is no "who opens it"
    const channel = connection.createDataChannel('files', { negotiated: true, id: 0 });
    this.#tell('connection', connection);
    this.#tell('channel', channel);
  }

  #drop() {
    const old = this.#connection;
    this.#connection = null;
    if (!old) return;
    old.onicecandidate = null;
    old.onicecandidateerror = null;
    old.onconnectionstatechange = null;
    old.ontrack = null;
    old.close();
  }

  #end(text) {
    this.#epoch += 1;
    this.#recovering = 0;
    this.#setStage(0);
    this.#drop();
    this.#tell('connection', null);
    this.#log('info', `${text}.`);
    this.reason = text;
    this.#setPhase('ended');
  }

  // ---- the ladder

  #onState(connection) {
    if (connection !== this.#connection) return;
    const state = connection.connectionState;
    if (state === 'connected' && this.phase === 'failed') {
      this.#connected('Connected in the end.');
      return;
    }
    if (this.#recovering || this.phase !== 'connected') {
      if (state === 'failed') this.#wanted = Math.max(this.#wanted, 2);
      return;
    }
    if (state === 'disconnected') this.#recover(1, 'no answer from the other side');
    if (state === 'failed') this.#recover(2, 'the browser gave up the connection');
  }

  /**
   * Stage 1 waits for `disconnected` to heal, stage 2 is an ICE restart, stage 3 a new RTCPeerConnection. Entered at
   * `from`; asking for a higher stage while a lower one is tried cuts that one short.
   */
  async #recover(from, why, offered = false) {
    if (this.#recovering) {
      this.#wanted = Math.max(this.#wanted, from);
      return;
    }
    this.#epoch += 1;
    const epoch = this.#epoch;
    const over = () => epoch !== this.#epoch;
    this.#recovering = from;
    this.#wanted = from;
    // the other tab may replace the connection while we still wait for this one
    let broken = this.#connection;
    const began = performance.now();
    const took = () => `${((performance.now() - began) / 1000).toFixed(1)} s`;
    const isConnected = () => this.#connection?.connectionState === 'connected';

    if (from <= 1) {
      this.#helped = false;
      this.#setStage(1);
      this.#setPhase('disconnected');
      this.#log('warn', `Stage 1 of 3: ${why}. Waiting up to ${HEAL_MS / 1000} s: short gaps recover on their own.`);
      const healed = await this.#until(HEAL_MS, isConnected, 1);
      if (over()) return;
      if (healed) {
        this.counters.healed += 1;
        this.#connected(this.#helped ? `The other tab's ICE restart brought it back after ${took()}.` : `It recovered on its own after ${took()}.`);
        return;
      }
      why = this.#wanted > 1 ? 'the browser gave up the connection' : 'it did not recover';
    }

    if (from <= 2) {
      this.#wanted = 2;
      const before = this.#connection ? await selectedPairName(this.#connection) : null;
      const wasConnected = isConnected();
      if (over()) return;
      this.#setStage(2);
      this.#setPhase('restarting');
      this.counters.restarts += 1;
      this.#log(wasConnected ? 'info' : 'warn', `Stage 2 of 3: ICE restart (${why}). Same call, new relayed addresses on both sides.`);
      await this.#signallingBack(over);
      if (over()) return;
      if (this.#caller) this.#turn(() => this.#offerRestart());
      else if (!offered) this.#ask('restart', `the other tab asked: ${why}`);
      const moved = async () => isConnected() && (await selectedPairName(this.#connection)) !== before;
      const restarted = await this.#until(CONNECT_MS, moved, 2);
      if (over()) return;
      if (restarted && this.#connection !== broken) {
        this.#connected(`The other tab made a new connection; it is up after ${took()}.`);
        return;
      }
      if (restarted) {
        this.counters.restarted += 1;
        const now = await selectedPairName(this.#connection);
        this.#connected(`ICE restart done after ${took()}: the call moved to ${now}.`);
        return;
      }
      why = 'the ICE restart did not help';
    }

    for (let attempt = 1; attempt <= REBUILDS_MAX; attempt += 1) {
      this.#wanted = 3;
      this.#setStage(3);
      this.#setPhase('rebuilding');
      this.counters.rebuilds += 1;
      this.#log('warn', `Stage 3 of 3: a new RTCPeerConnection (${why}), attempt ${attempt} of ${REBUILDS_MAX}.`);
      await this.#signallingBack(over);
      if (over()) return;
      if (this.#connection === broken) {
        if (this.#caller) this.#turn(() => this.#offerNew());
        else this.#ask('rebuild', `the other tab asked: ${why}`);
      }
      const rebuilt = await this.#until(CONNECT_MS, () => this.#connection !== broken && isConnected(), 3);
      if (over()) return;
      if (rebuilt) {
        this.counters.rebuilt += 1;
        this.#connected(`A new connection is up after ${took()}.`);
        return;
      }
      why = 'the last attempt did not connect';
      broken = this.#connection;
      await clock.sleep(REBUILD_PAUSE_MS * attempt);
      if (over()) return;
    }
    this.#fail();
  }

  /** Resolves when both tabs can talk about the call again. The server may take its time; a tab that is gone is told. */
  async #signallingBack(over) {
    if (this.signalling.peer) return;
    this.#log('info', 'Waiting for the server and the other tab to come back.');
    let absentSince = performance.now();
    while (!this.signalling.peer && !over()) {
      await clock.sleep(100);
      if (!this.signalling.up) absentSince = performance.now();
      else if (performance.now() - absentSince > PEER_GONE_MS && !over()) this.#end('The other tab is gone');
    }
  }

  #connected(text) {
    this.#recovering = 0;
    this.#setStage(0);
    this.reason = '';
    this.#log('good', text);
    this.#setPhase('connected');
    // a state that changed while we were busy has no second event
    if (this.#connection?.connectionState !== 'connected') this.#onState(this.#connection);
  }

  #fail() {
    this.#epoch += 1;
    this.#recovering = 0;
    this.#setStage(0);
    this.reason = diagnosis({
      seconds: CONNECT_MS / 1000,
      connection: this.#connection,
      errors: this.#errors,
      relayed: this.#relayed,
    });
    this.#log('bad', this.reason);
    this.#setPhase('failed');
  }

  // ---- small things

  /** True as soon as `condition` holds; false after `milliseconds`, or once more than `stage` is wanted. */
  async #until(milliseconds, condition, stage = 9) {
    const epoch = this.#epoch;
    const end = performance.now() + milliseconds;
    while (performance.now() < end && epoch === this.#epoch) {
      if (await condition()) return true;
      if (this.#wanted > stage && this.#recovering) return false;
      await clock.sleep(100);
    }
    return false;
  }

  #turn(step) {
    const epoch = this.#epoch;
    this.#turns = this.#turns
      .then(() => (epoch === this.#epoch || this.phase !== 'ended' ? step() : undefined))
      .catch((error) => this.#log('warn', `A step failed: ${error.message}`));
  }

  #setPhase(phase) {
    if (phase === this.phase) return;
    this.phase = phase;
    this.#tell('phase', phase);
  }

  #setStage(stage) {
    this.stage = stage;
    this.#tell('stage', stage);
  }

  #log(level, text) {
    this.#tell('log', { level, text });
  }

  #tell(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
