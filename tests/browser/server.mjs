// Runs `throughway demo` as a child process: starts it, knows when it is ready, reads its counters, ends it.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';

const READY_MS = 15_000;
const END_MS = 5_000;
const OUTPUT_LINES_MAX = 60;

export class DemoServer {
  #child = null;
  #output = [];

  constructor(binary, port, httpPort) {
    this.binary = binary;
    this.port = port;
    this.httpPort = httpPort;
    this.url = `http://127.0.0.1:${httpPort}/`;
  }

  /** Starts the process and waits until its page answers; with `lan` other machines can open it at this address. */
  async start({ lan } = {}) {
    const page = lan ? ['--http', `0.0.0.0:${this.httpPort}`, '--lan', lan] : ['--http', `127.0.0.1:${this.httpPort}`];
    const child = spawn(this.binary, ['demo', '--port', String(this.port), ...page], { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child = child;
    let problem = null;
    child.on('error', (error) => {
      problem = error;
    });
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => {
        this.#output.push(...text.split('\n').filter(Boolean));
        this.#output.splice(0, this.#output.length - OUTPUT_LINES_MAX);
      });
    }
    const end = Date.now() + READY_MS;
    for (;;) {
      if (problem) throw problem;
      if (child.exitCode !== null || child.signalCode !== null) {
        throw new Error(`the demo ended at its start:\n${this.output()}`);
      }
      const answer = await fetch(this.url, { signal: AbortSignal.timeout(1000) }).catch(() => null);
      if (answer?.ok) return;
      if (Date.now() > end) throw new Error(`no page at ${this.url} after ${READY_MS} ms:\n${this.output()}`);
      await sleep(50);
    }
  }

  /** Ends the process; `SIGKILL` leaves it no time to close anything. */
  async stop(signal = 'SIGTERM') {
    const child = this.#child;
    this.#child = null;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill(signal);
    const late = deadline(END_MS, () => child.kill('SIGKILL'));
    await ended;
    late.cancel();
    if (late.fired()) throw new Error(`the demo did not end within ${END_MS} ms of ${signal}`);
  }

  /** Stops the process's clockwork without ending it: a gap in the network, as the browsers see it. */
  pause() {
    this.#child.kill('SIGSTOP');
  }

  resume() {
    this.#child?.kill('SIGCONT');
  }

  async usage(user) {
    return this.#json(`usage?user=${user}`);
  }

  /** All samples of `/metrics` as [{name, labels, value}]. */
  async metrics() {
    const answer = await fetch(`${this.url}metrics`);
    if (!answer.ok) throw new Error(`/metrics: ${answer.status} ${await answer.text()}`);
    const samples = [];
    for (const line of (await answer.text()).split('\n')) {
      const found = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
      if (!found) continue;
      const labels = Object.fromEntries([...(found[2] ?? '').matchAll(/(\w+)="([^"]*)"/g)].map(([, key, value]) => [key, value]));
      samples.push({ name: found[1], labels, value: Number(found[3]) });
    }
    return samples;
  }

  output() {
    return this.#output.join('\n');
  }

  async #json(path) {
    const answer = await fetch(this.url + path);
    if (!answer.ok) throw new Error(`/${path}: ${answer.status} ${await answer.text()}`);
    return answer.json();
  }
}

function deadline(milliseconds, act) {
  let fired = false;
  const timer = setTimeout(() => {
    fired = true;
    act();
  }, milliseconds);
  return { cancel: () => clearTimeout(timer), fired: () => fired };
}
