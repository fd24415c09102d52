// One tab of the demo page, as a test sees it.

import { setTimeout as sleep } from 'node:timers/promises';

import { until } from './until.mjs';

const POLL_MS = 100;

export class Tab {
  constructor(name, page) {
    this.name = name;
    this.page = page;
    this.errors = [];
  }

  /** Opens `url` in `running` (see `launch`); `before` runs in the page ahead of its own scripts. */
  static async open(running, name, url, room, { before = null, transport = 'udp' } = {}) {
    const page = await running.browser.newPage();
    const tab = new Tab(`${name} (${running.name})`, page);
    page.on('pageerror', (error) => tab.note(error.message));
    if (before) await page.evaluateOnNewDocument(before);
    await page.goto(`${url}#room=${room}&transport=${transport}`);
    await tab.until('its script runs', () => window.throughway !== undefined, 10_000);
    tab.user = await page.evaluate(() => window.throughway.user);
    return tab;
  }

  /** Firefox reports a WebSocket that finds no server as an error of the page; the page itself deals with it. */
  note(error) {
    if (!/can.t establish a connection to the server at ws:/.test(error)) this.errors.push(error);
  }

  get(what) {
    return this.page.evaluate((name) => window.throughway[name], what);
  }

  /** Waits for `condition` in the page. */
  until(what, condition, milliseconds, ...args) {
    return until(`${this.name}: ${what}`, () => this.page.evaluate(condition, ...args), milliseconds);
  }

  async story() {
    const told = await this.page
      .evaluate(() => {
        const page = window.throughway;
        return {
          phase: page?.phase,
          reason: page?.reason,
          pair: page?.numbers?.pair,
          video: page?.numbers?.video,
          counters: page?.counters,
          transfers: page?.transfers,
          log: page?.log.map(({ at, text }) => `${at} ${text}`),
        };
      })
      .catch((error) => ({ gone: error.message }));
    return `--- ${this.name}: ${JSON.stringify({ ...told, errors: this.errors }, null, 1)}`;
  }

  connected(milliseconds = 10_000) {
    return this.until('the call is connected', () => window.throughway.phase === 'connected', milliseconds);
  }

  /** Waits until getStats names a pair, and gives it. */
  pair(milliseconds = 5_000) {
    return this.until('a selected candidate pair', () => window.throughway.numbers?.pair ?? null, milliseconds);
  }

  /** Waits until `more` further frames of video have arrived; a new connection counts from zero again. */
  async framesGrow(more = 15, milliseconds = 12_000) {
    const end = Date.now() + milliseconds;
    const received = () => this.page.evaluate(() => window.throughway.numbers?.video.received ?? 0);
    let last = await received();
    let grown = 0;
    while (grown < more) {
      if (Date.now() > end) throw new Error(`${this.name}: only ${grown} of ${more} frames of video within ${milliseconds} ms`);
      await sleep(POLL_MS);
      const now = await received();
      grown += now >= last ? now - last : now;
      last = now;
    }
  }

  /** Sends a file as a person would. */
  async chooseFile(path) {
    const input = await this.page.$('#file');
    await input.uploadFile(path);
  }

  transfer(name, milliseconds = 20_000) {
    return this.until(
      `${name} is transferred`,
      (wanted) => window.throughway.transfers.find((each) => each.name === wanted && ['done', 'failed', 'refused'].includes(each.state)),
      milliseconds,
      name,
    );
  }

  /** Sends no more video: what remains are the browsers' connection checks. */
  silence() {
    return this.page.evaluate(() => window.throughway.silence());
  }

  /** Sends video again. */
  speak() {
    return this.page.evaluate(() => window.throughway.unsilence());
  }

  click(selector) {
    return this.page.$eval(selector, (element) => element.click());
  }
}
