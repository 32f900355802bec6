import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import type { JournalEntry } from '../session/journal.js';
import { OVERLAY_KIND } from '../snapshot/watched-kinds.js';
import { type Holder, keptSnapshots } from './kept-snapshots.js';

/** Below that a VM that goes on writing into its overlay soon stands still, however little it wrote so far. */
const LOW_SPACE_BYTES = 256 * 2 ** 20;

const Overlay = v.object({
  target: v.string(),
  overlay: v.string(),
  base: v.object({ path: v.string() }),
});

function bytesText(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}

function warningsOf({ data }: JournalEntry, name: string): string[] {
  const { target, overlay, base } = v.parse(Overlay, data);
  const directory = path.dirname(overlay);
  const used = fs.statSync(overlay).blocks * 512;
  const { bavail, bsize } = fs.statfsSync(directory);
  const free = bavail * bsize;
  const { size } = fs.statSync(base.path);
  const what = `the overlay that disk ${target} of ${name} is on`;
  const end = `a backup without --keep-overlay merges it, or chunkmount cleanup --kept --vm=${name}`;
  return [
    ...(free < Math.max(LOW_SPACE_BYTES, used)
      ? [
          `${what} takes up ${bytesText(used)}, and ${directory} has ${bytesText(free)} left: when it is full, the VM stands still; ${end}`,
        ]
      : []),
    ...(size > 0 && used > size / 2
      ? [`${what} has grown to ${bytesText(used)}, more than half of ${base.path}; ${end}`]
      : []),
  ];
}

/** What is to be said of the room that kept overlays take up. Nothing of those that cannot be looked at. */
export function keptWarnings(holder: Holder): string[] {
  return keptSnapshots(holder)
    .filter(({ kind }) => kind === OVERLAY_KIND)
    .flatMap((entry) => {
      try {
        return warningsOf(entry, holder.name);
      } catch {
        return [];
      }
    });
}
