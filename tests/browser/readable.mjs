// What holds for every page of ours, in light and in dark, wide and narrow: texts have contrast, controls have names, and
// nothing is wider than the screen.

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';

export const SCREENS = [[1280, 800], [390, 844]];
const THEMES = ['light', 'dark'];
const screenshots = process.env.THROUGHWAY_SCREENSHOTS;

/** Runs in the page: texts whose contrast is too small (WCAG 2.2, 1.4.3), and how many were looked at. */
function poorContrasts() {
  // A colour on its way from one theme to the other is seen for a moment only: judge the one it ends at.
  for (const each of document.getAnimations()) if (each instanceof CSSTransition) each.finish();
  // Any notation of a colour becomes four numbers by being painted.
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 1;
  const painter = canvas.getContext('2d', { willReadFrequently: true });
  const known = new Map();
  const channels = (colour) => {
    if (!known.has(colour)) {
      painter.clearRect(0, 0, 1, 1);
      painter.fillStyle = colour;
      painter.fillRect(0, 0, 1, 1);
      const [red, green, blue, alpha] = painter.getImageData(0, 0, 1, 1).data;
      known.set(colour, [red, green, blue, alpha / 255]);
    }
    return known.get(colour);
  };
  const over = ([r, g, b, alpha], below) => [r, g, b].map((value, at) => value * alpha + below[at] * (1 - alpha));
  const luminance = (colour) => {
    const [red, green, blue] = colour.map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (a, b) => {
    const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (light + 0.05) / (dark + 0.05);
  };
  const poor = [];
  let looked = 0;
  for (const element of document.body.querySelectorAll('*')) {
    const words = [...element.childNodes].filter(({ nodeType }) => nodeType === Node.TEXT_NODE).map(({ data }) => data.trim()).join(' ').trim();
    const isField = element.matches('input:not([type=radio], [type=file]), select') && element.value;
    if ((!words && !isField) || !element.checkVisibility({ visibilityProperty: true, opacityProperty: true }) || element.matches(':disabled')) continue;
    const parents = [];
    for (let each = element; each; each = each.parentElement) parents.unshift(each);
    const styles = parents.map((each) => getComputedStyle(each));
    // What lies over a picture has no one colour behind it.
    if (styles.some((style, at) => style.backgroundImage !== 'none' || parents[at].matches('.screen'))) continue;
    let ground = [255, 255, 255];
    let opacity = 1;
    for (const style of styles) {
      opacity *= Number(style.opacity);
      ground = over(channels(style.backgroundColor), ground);
    }
    const style = styles.at(-1);
    const [r, g, b, alpha] = channels(style.color);
    const size = Number.parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const found = contrast(over([r, g, b, alpha * opacity], ground), ground);
    looked += 1;
    if (found < (isLarge ? 3 : 4.5)) poor.push(`${found.toFixed(2)} for "${(words || element.value).slice(0, 40)}" (${element.tagName} ${element.className} ${style.color})`);
  }
  return { looked, poor };
}

/** Runs in the page: controls that a screen reader has no name for. */
function namelessControls() {
  const isShown = (element) => element.checkVisibility({ visibilityProperty: true });
  const hasName = (element) => element.getAttribute('aria-label') || element.ariaLabel || element.labels?.length || element.textContent.trim() || element.title;
  return [...document.querySelectorAll('button, input, select, textarea, a[href], progress, video[controls]')]
    .filter((element) => isShown(element) && !hasName(element))
    .map((element) => element.outerHTML.slice(0, 120));
}

/** Checks a page in both themes and sizes, and takes a screenshot of each: NAME-light-1280.png. */
export async function checkReadable(running, page, name) {
  // Firefox can't be told a theme from outside; its colours are the same style sheet's.
  const themes = running.name === 'chromium' ? THEMES : ['light'];
  assert.deepEqual(await page.evaluate(namelessControls), [], `${name}: controls without a name`);
  for (const theme of themes) {
    if (running.name === 'chromium') await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: theme }]);
    for (const [width, height] of SCREENS) {
      await page.setViewport({ width, height });
      const widest = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(widest <= width, `${name}: ${widest} of ${width} pixels`);
      const { looked, poor } = await page.evaluate(poorContrasts);
      assert.ok(looked > 2, `${name}: only ${looked} texts`);
      assert.deepEqual(poor, [], `${name}, ${theme}, ${width}: contrast`);
      if (!screenshots) continue;
      await mkdir(screenshots, { recursive: true });
      await page.screenshot({ path: join(screenshots, `${name}-${running.name}-${theme}-${width}.png`), fullPage: true });
    }
  }
  await page.setViewport({ width: SCREENS[0][0], height: SCREENS[0][1] });
}
