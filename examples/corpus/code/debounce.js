"use strict";

/**
 * Wait until calls have stopped arriving for `wait` milliseconds, then run once
 * with the latest arguments. Typical use: a search box that should ask the server
 * only after the user has paused typing.
 *
 * @param {(...args: any[]) => void} fn  the function to hold back
 * @param {number} wait                  quiet time in milliseconds
 * @returns {Function} the delayed function, with `cancel()` and `flush()`
 */
function debounce(fn, wait) {
  let timer = null;
  let pending = null; // arguments and `this` of the latest call

  function run() {
    const { self, args } = pending;
    timer = null;
    pending = null;
    fn.apply(self, args);
  }

  function debounced(...args) {
    pending = { self: this, args };
    clearTimeout(timer); // clearing null is allowed and does nothing
    timer = setTimeout(run, wait);
  }

  /** Forget the waiting call, if there is one. */
  debounced.cancel = () => {
    clearTimeout(timer);
    timer = null;
    pending = null;
  };

  /** Do not wait any longer: run the waiting call at once. */
  debounced.flush = () => {
    if (pending === null) return;
    clearTimeout(timer);
    run();
  };

  return debounced;
}

/**
 * Run at most once per `interval` milliseconds; calls in between are dropped.
 * Unlike `debounce`, the first call takes effect immediately, which suits
 * scroll and resize handlers.
 */
function throttle(fn, interval) {
  let last = -Infinity;
  return function throttled(...args) {
    const now = Date.now();
    if (now - last < interval) return;
    last = now;
    fn.apply(this, args);
  };
}

module.exports = { debounce, throttle };
