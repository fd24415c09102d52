// The clock of the page, and the two pictures a tab can send: a generated one and the camera's.

const WIDTH = 640;
const HEIGHT = 360;
const FRAMES_PER_SECOND = 20;

/** Timers that run on in a hidden tab, all driven by one Worker. */
export const clock = (() => {
  const worker = new Worker('/ticker.js');
  const listeners = new Set();
  let sleepers = [];
  worker.onmessage = () => {
    for (const listener of listeners) listener();
    const now = performance.now();
    const due = sleepers.filter((sleeper) => sleeper.at <= now);
    if (due.length) {
      sleepers = sleepers.filter((sleeper) => sleeper.at > now);
      for (const sleeper of due) sleeper.wake();
    }
  };
  return {
    /** Calls `listener` about twenty times a second; returns a function that stops it. */
    onTick(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    /** Resolves after `milliseconds`. */
    sleep(milliseconds) {
      return new Promise((wake) => sleepers.push({ at: performance.now() + milliseconds, wake }));
    },
    /** Calls `listener` every `milliseconds`, never twice at a time. */
    every(milliseconds, listener) {
      let next = 0;
      let running = false;
      return this.onTick(async () => {
        const now = performance.now();
        if (running || now < next) return;
        next = now + milliseconds;
        running = true;
        try {
          await listener();
        } finally {
          running = false;
        }
      });
    },
  };
})();

/** A picture that moves all the time and says whose it is: needs no camera and no permission. */
export function testPicture(label, hue) {
  const canvas = document.createElement('canvas');
  canvas.width = WIDTH;
  canvas.height = HEIGHT;
  const paint = canvas.getContext('2d', { alpha: false });
  let frame = 0;
  const draw = () => {
    frame += 1;
    drawFrame(paint, label, hue, frame);
  };
  draw();
  const stream = canvas.captureStream(FRAMES_PER_SECOND);
  const stopClock = clock.onTick(draw);
  return {
    stream,
    frames: () => frame,
    stop() {
      stopClock();
      for (const track of stream.getTracks()) track.stop();
    },
  };
}

/** The camera, without sound: two tabs of one machine would howl. */
export async function cameraPicture() {
  if (!navigator.mediaDevices) {
    throw new Error('The browser gives a camera only to a page at 127.0.0.1, localhost or https; open the 127.0.0.1 address.');
  }
  const stream = await navigator.mediaDevices.getUserMedia({
    video: { width: { ideal: WIDTH }, height: { ideal: HEIGHT }, frameRate: { ideal: FRAMES_PER_SECOND } },
  });
  return {
    stream,
    frames: () => 0,
    stop() {
      for (const track of stream.getTracks()) track.stop();
    },
  };
}

function drawFrame(paint, label, hue, frame) {
  const t = frame / FRAMES_PER_SECOND;
  const sky = paint.createLinearGradient(0, 0, WIDTH, HEIGHT);
  sky.addColorStop(0, `hsl(${hue + 12 * Math.sin(t / 3)} 62% 30%)`);
  sky.addColorStop(1, `hsl(${hue + 55 + 12 * Math.cos(t / 4)} 68% 16%)`);
  paint.fillStyle = sky;
  paint.fillRect(0, 0, WIDTH, HEIGHT);

  // a sun and three ranges of hills, drifting
  paint.fillStyle = 'hsl(42 96% 74% / 0.95)';
  paint.beginPath();
  paint.arc(WIDTH * (0.72 + 0.05 * Math.sin(t / 5)), 118 + 14 * Math.cos(t / 5), 44, 0, 2 * Math.PI);
  paint.fill();
  for (let range = 0; range < 3; range += 1) {
    paint.fillStyle = `hsl(${hue + 20 * range} 45% ${24 - 6 * range}%)`;
    paint.beginPath();
    paint.moveTo(0, HEIGHT);
    for (let x = 0; x <= WIDTH; x += 16) {
      const drift = x / (90 + 40 * range) + t * (0.25 + 0.25 * range) + 2 * range;
      paint.lineTo(x, 205 + 42 * range + 26 * Math.sin(drift) + 9 * Math.sin(2.7 * drift));
    }
    paint.lineTo(WIDTH, HEIGHT);
    paint.fill();
  }

  // cars on the throughway
  paint.fillStyle = 'rgb(8 12 20 / 0.55)';
  paint.fillRect(0, 318, WIDTH, 42);
  for (let car = 0; car < 6; car += 1) {
    const eastwards = car % 2 === 0;
    const along = (t * (46 + 17 * car) + 131 * car) % (WIDTH + 60);
    const x = eastwards ? along - 30 : WIDTH + 30 - along;
    paint.fillStyle = eastwards ? '#fde68a' : '#fca5a5';
    paint.fillRect(x - 13, eastwards ? 327 : 345, 26, 6);
  }

  paint.fillStyle = 'rgb(255 255 255 / 0.96)';
  paint.font = '700 46px system-ui, sans-serif';
  paint.textBaseline = 'alphabetic';
  paint.fillText(label, 32, 74);
  paint.font = '400 21px system-ui, sans-serif';
  paint.fillStyle = 'rgb(255 255 255 / 0.8)';
  paint.fillText(new Date().toLocaleTimeString([], { hour12: false }), 33, 108);
  paint.font = '400 15px ui-monospace, monospace';
  paint.fillText(`frame ${frame}`, 33, 134);
}
