import type { JournalEntry } from '../session/journal.js';
import { LVM_KIND, OVERLAY_KIND, REFLINK_KIND } from '../snapshot/watched-kinds.js';
import type { BackupSettings } from './settings.js';
import type { FrozenSource } from './source.js';

export interface IdleRequest {
  readonly name: string;
  readonly settings: Pick<BackupSettings, 'tracking' | 'snapshotSize'>;
  readonly frozen: Pick<FrozenSource, 'uuid' | 'consistency' | 'disks'>;
  /** What this session's journal holds. */
  readonly made: readonly JournalEntry[];
  /** What earlier sessions left, which may be left once more: see kept-snapshots.ts. */
  readonly kept: readonly JournalEntry[];
}

/**
 * A sentence for each option about snapshots that no disk has now, and none was left of. No error: one command line may be for several
 * VMs. And nothing of a VM that is off: it will run again.
 */
export function idleOptions({ name, settings, frozen, made, kept }: IdleRequest): string[] {
  const kinds = [...new Set(frozen.disks.map(({ snapshot }) => snapshot))];
  const has = (...some: string[]) => some.some((kind) => kinds.includes(kind));
  if (frozen.uuid !== null && frozen.consistency === 'offline' && has('none')) return [];
  const left = (...some: string[]) => kept.some(({ kind }) => some.includes(kind));
  const { keepOverlay, keepSnapshot } = settings.tracking;
  const volumesOnly = has('lvm') && !has('reflink');
  const allThick = volumesOnly && !made.some(({ kind, data }) => kind === LVM_KIND && data.thin === true);
  const how = `its disks are frozen with --snapshot=${kinds.join(', ')}`;
  const idle: string[] = [];
  if (keepOverlay && !has('overlay') && !left(OVERLAY_KIND)) idle.push('--keep-overlay');
  if (keepSnapshot && !has('lvm', 'reflink') && !left(LVM_KIND, REFLINK_KIND)) idle.push('--keep-snapshot');
  if (settings.snapshotSize !== undefined && !has('lvm')) idle.push('--snapsize');
  const sentences = idle.map((option) => `${option} has no effect on ${name}: ${how}`);
  if (keepSnapshot && allThick && !left(LVM_KIND, REFLINK_KIND))
    sentences.push(`--keep-snapshot has no effect on ${name}: ${how}, of volumes that are not thin`);
  return sentences;
}
