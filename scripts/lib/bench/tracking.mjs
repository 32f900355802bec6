import { setTimeout as sleep } from 'node:timers/promises';
import { cell, humanSize, memory, seconds } from './report.mjs';
import { interrupted } from './run.mjs';
import { warm } from './workspace.mjs';

/** With a tracker, where one knows what changed, and without. */
const KINDS = ['auto', 'none'];

const QUIET_MS = 2_000;

const CASES = [
  { key: 'unchanged', label: '(l) nothing changed' },
  { key: 'changed', label: '(m) 1 % changed' },
];

/** (l) and (m): whole sessions with rsync, and what they read of the image. `contestant` has the sessions and the copy. */
export async function measureTracking(workspace, contestant, results) {
  const { chunkmount, copy } = contestant;
  for (const kind of KINDS) {
    // The session that a tracker goes on from; not so soon after the last write that it would not trust the image's times.
    await sleep(QUIET_MS, undefined, { signal: interrupted.signal });
    await chunkmount.backUp(copy, kind);
    for (const { key } of CASES) {
      if (key === 'changed') await workspace.rewriteImage();
      await warm(workspace.image);
      const { seconds: took, bytes, tracked } = await chunkmount.backUp(copy, kind);
      results.add(`${key}, time`, kind, took);
      results.add(`${key}, read`, kind, bytes);
      results.add(`${key}, tracked`, kind, tracked ? 1 : 0);
    }
  }
}

/** A row each for time and bytes. */
export function trackingTable(results, { size }) {
  const rows = CASES.flatMap(({ key, label }) => {
    const known = results.median(`${key}, tracked`, KINDS[0]) > 0.5 ? 'still' : 'none applies';
    const named = `${label}, ${humanSize(size)}`;
    const both = (row, format) => KINDS.map((kind) => cell(results, `${key}, ${row}`, kind, format));
    return [
      [`${named}: \`run -- rsync -a\``, known, ...both('time', seconds)],
      [`${named}: read of the image`, known, ...both('read', (bytes) => memory(bytes))],
    ];
  });
  const head = ['| only what changed | tracker | `--track=auto` | `--track=none` |', '|---|---|---|---|'];
  return [...head, ...rows.map((row) => `| ${row.join(' | ')} |`)].join('\n');
}
