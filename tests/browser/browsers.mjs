// Starts the browsers and opens tabs of the demo page in them.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { existsSync } from 'node:fs';
import puppeteer from 'puppeteer-core';

const EXECUTABLES = {
  chromium: process.env.CHROMIUM_BIN ?? '/usr/bin/chromium',
  firefox: process.env.FIREFOX_BIN ?? '/usr/bin/firefox-esr',
};

/** A browser with a profile of its own; `close` ends it and removes the profile. */
export async function launch(name) {
  const executablePath = EXECUTABLES[name];
  if (!existsSync(executablePath)) {
    throw new Error(`${executablePath} is missing: install Debian's package ${name === 'firefox' ? 'firefox-esr' : 'chromium'}`);
  }
  const profile = await mkdtemp(join(tmpdir(), `throughway-${name}-`));
  const options =
    name === 'firefox'
      ? {
          browser: 'firefox',
          extraPrefsFirefox: {
            'app.update.enabled': false,
            'datareporting.policy.dataSubmissionEnabled': false,
            'media.gmp-manager.updateEnabled': false,
            'network.captive-portal-service.enabled': false,
            'network.connectivity-service.enabled': false,
          },
        }
      : {
          browser: 'chrome',
          userDataDir: profile,
          args: [
            '--no-sandbox',
            '--disable-gpu',
            '--disable-quic',
            '--no-first-run',
            '--disable-background-networking',
            '--disable-component-update',
            '--disable-sync',
          ],
          // a hidden tab is to be slowed down as it is for people
          ignoreDefaultArgs: [
            '--disable-background-timer-throttling',
            '--disable-backgrounding-occluded-windows',
            '--disable-renderer-backgrounding',
          ],
        };
  const browser = await puppeteer.launch({ headless: true, executablePath, ...options });
  return {
    name,
    browser,
    async close() {
      await browser.close();
      await rm(profile, { recursive: true, force: true, maxRetries: 3 });
    },
  };
}
