// A Worker that keeps time. Browsers slow the timers of a hidden tab down to one a second, and of two tabs one is
// always hidden; a Worker's timers run on.
'use strict';

setInterval(() => postMessage(performance.now()), 50);
