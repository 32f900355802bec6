import { bitmapTracker } from './bitmap.js';
import { overlayTracker } from './overlay.js';
import { reflinkTracker } from './reflink.js';
import { stillTracker } from './still.js';
import { thinTracker } from './thin.js';
import type { Tracker } from './tracker.js';

/** All there are, the best first: what reads least, and is the most certain. */
export const TRACKERS: readonly Tracker[] = [
  stillTracker,
  bitmapTracker,
  overlayTracker,
  thinTracker,
  reflinkTracker,
];
