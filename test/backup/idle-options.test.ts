import { describe, expect, it } from 'vitest';
import { idleOptions } from '../../src/backup/idle-options.js';
import type { FrozenSource, FrozenSourceDisk } from '../../src/backup/source.js';
import type { JournalEntry } from '../../src/session/journal.js';

const ALL = { keepOverlay: true, keepSnapshot: true };

/** The options among --keep-overlay, --keep-snapshot and --snapsize that have no effect on disks that are frozen so. */
function idle(
  kinds: readonly string[],
  left: readonly string[] = [],
  consistency: FrozenSource['consistency'] = 'crash',
  thin = true,
): string[] {
  const tracking = { ...ALL, track: 'auto', audit: 0, fullScan: false, fullScanEveryMs: 0 } as const;
  const disks = kinds.map((snapshot) => ({ snapshot }) as FrozenSourceDisk);
  const kept = left.map((kind) => ({ kind }) as JournalEntry);
  const snapshotSize = { kind: 'bytes', bytes: 1 } as never;
  const frozen = { uuid: 'u', consistency, disks };
  const made = kinds
    .filter((kind) => kind === 'lvm')
    .map(() => ({ kind: 'lvm-snapshot', data: { thin } }) as unknown as JournalEntry);
  const found = idleOptions({ name: 'a', settings: { tracking, snapshotSize }, frozen, made, kept });
  return found.map((sentence) => sentence.split(' ')[0]!);
}

describe('options that have no effect', () => {
  it.each([
    [['none'], [], ['--keep-overlay', '--keep-snapshot', '--snapsize']],
    [['pull'], [], ['--keep-overlay', '--keep-snapshot', '--snapsize']],
    [['overlay'], [], ['--keep-snapshot', '--snapsize']],
    [['reflink'], [], ['--keep-overlay', '--snapsize']],
    [['lvm'], [], ['--keep-overlay']],
    [['overlay', 'lvm'], [], []],
    // A VM that is off, on the overlay of an earlier session: it stays there.
    [['none'], ['overlay'], ['--keep-snapshot', '--snapsize']],
    [['none'], ['lvm-snapshot'], ['--keep-overlay', '--snapsize']],
  ])('%j, with %j left', (kinds, left, expected) => {
    expect(idle(kinds, left)).toEqual(expected);
  });

  it('are --keep-snapshot where all volumes are thick', () => {
    expect(idle(['lvm'], [], 'crash', false)).toEqual(['--keep-overlay', '--keep-snapshot']);
    expect(idle(['lvm', 'reflink'], [], 'crash', false)).toEqual(['--keep-overlay']);
    expect(idle(['lvm'], ['lvm-snapshot'], 'crash', false)).toEqual(['--keep-overlay']);
  });

  it('are none of a VM that is off', () => {
    expect(idle(['none'], [], 'offline')).toEqual([]);
    expect(idle(['overlay'], [], 'offline')).toEqual(['--keep-snapshot', '--snapsize']);
  });
});
