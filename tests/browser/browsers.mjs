// Starts the browsers.

import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { existsSync } from 'node:fs';
import { promisify } from 'node:util';
import puppeteer from 'puppeteer-core';

const run = promisify(execFile);

const EXECUTABLES = {
  chromium: process.env.CHROMIUM_BIN ?? '/usr/bin/chromium',
  firefox: process.env.FIREFOX_BIN ?? '/usr/bin/firefox-esr',
};

/**
 * Lets a browser trust a certificate authority: NSS keeps Firefox's in the profile, and on Linux Chromium takes what a
 * person has added from the NSS database of the home. Both hold for `turns:` as they do for `https:`.
 */
async function trust(directory, authority) {
  await mkdir(directory, { recursive: true });
  const database = ['-d', `sql:${directory}`];
  await run('certutil', ['-N', '--empty-password', ...database]);
  await run('certutil', ['-A', '-n', 'authority of the test', '-t', 'C,,', '-i', authority, ...database]);
}

/**
 * A browser with a profile of its own; `close` ends it and removes the profile. `authority` is the PEM file of a
 * certificate authority that it is to trust; `flags` are further switches of Chromium.
 */
export async function launch(name, { authority, flags = [] } = {}) {
  const executablePath = EXECUTABLES[name];
  if (!existsSync(executablePath)) {
    throw new Error(`${executablePath} is missing: install Debian's package ${name === 'firefox' ? 'firefox-esr' : 'chromium'}`);
  }
  const profile = await mkdtemp(join(tmpdir(), `throughway-${name}-`));
  if (authority) await trust(name === 'firefox' ? profile : join(profile, '.pki', 'nssdb'), authority);
  const options =
    name === 'firefox'
      ? {
          browser: 'firefox',
          ...(authority ? { userDataDir: profile } : {}),
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
          ...(authority ? { env: { ...process.env, HOME: profile } } : {}),
          args: [
            '--no-sandbox',
            '--disable-gpu',
            '--disable-quic',
            '--no-first-run',
            '--disable-background-networking',
            '--disable-component-update',
            '--disable-sync',
            ...flags,
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
