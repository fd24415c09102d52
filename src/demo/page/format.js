// Numbers as people read them, and the small drawings of them.

export function bytesText(bytes) {
  if (bytes < 1000) return `${Math.round(bytes)} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  if (bytes < 1e9) return `${(bytes / 1e6).toFixed(2)} MB`;
  return `${(bytes / 1e9).toFixed(2)} GB`;
}

export function rateText(bits) {
  return bits < 1e6 ? `${Math.round(bits / 1e3)} kbit/s` : `${(bits / 1e6).toFixed(1)} Mbit/s`;
}

export function roundTripText(seconds) {
  // Firefox gives whole milliseconds, and on one machine that is 0
  return seconds < 0.001 ? '< 1 ms' : `${Math.round(seconds * 1000)} ms`;
}

/** The time of day at a moment in seconds since 1970. */
export function clockText(seconds) {
  return new Date(1000 * seconds).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', hour12: false });
}

export function sparkline(svg) {
  const values = new Array(40).fill(0);
  return (value) => {
    values.push(value);
    values.shift();
    const top = Math.max(1, ...values) * 1.15;
    const points = values.map((each, at) => `${((120 * at) / 39).toFixed(1)} ${(27 - (25 * each) / top).toFixed(1)}`);
    svg.querySelector('.line').setAttribute('d', `M${points.join('L')}`);
    svg.querySelector('.area').setAttribute('d', `M0 28L${points.join('L')}L120 28Z`);
  };
}
