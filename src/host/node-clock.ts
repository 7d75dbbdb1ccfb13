/** Time as Node gives it. Timers are unreferenced: a waiting timer keeps no process alive. */
import type { HostClock } from './host.ts';

/** Node fires a timer beyond 31 bits at once, so the longest one is cut to about 24 days. */
const timerMsMax = 0x7fff_ffff;

export const nodeClock: HostClock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  after(ms, call) {
    const timer = setTimeout(call, Math.min(ms, timerMsMax)).unref();
    return { cancel: () => clearTimeout(timer) };
  },
  // The immediates of a turn run after its socket events: by then all that arrived together has been handled.
  endOfTurn(call) {
    setImmediate(call);
  },
};
