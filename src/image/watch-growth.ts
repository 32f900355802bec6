import * as fs from 'node:fs';
import type { Reporter } from '../report/reporter.js';

const TICK_MS = 500;
const SECTOR_BYTES = 512;

/** Shows how a file grows to about `bytes`: qemu-img's own progress is for terminals. To be called to end it. */
export function watchGrowth(
  file: string,
  { label, bytes, reporter }: { label: string; bytes: number; reporter: Reporter },
): () => void {
  const task = reporter.progress(label, bytes);
  let shown = 0;
  const show = () => {
    const size = (fs.statSync(file, { throwIfNoEntry: false })?.blocks ?? 0) * SECTOR_BYTES;
    const now = Math.min(size, bytes);
    if (now > shown) task.advance(now - shown);
    shown = Math.max(now, shown);
  };
  const timer = setInterval(show, TICK_MS);
  return () => {
    clearInterval(timer);
    show();
    task.end();
  };
}
