import { ChunkmountError } from '../errors.js';

/**
 * What can be wrong with a chunk: its file is missing, of another size, of other content, something else than a file, cannot be
 * read, or its line in the sums file is lost, so that nobody knows.
 */
export type DamageKind = 'missing' | 'size' | 'hash' | 'unsafe' | 'unreadable' | 'unverified';

/** One damaged chunk. Plain data: it crosses thread borders and goes into `--json`. */
export interface ChunkDamage {
  readonly kind: DamageKind;
  readonly disk: string;
  readonly chunk: number;
  /** Relative to the tree. */
  readonly path: string;
  /** 16 hex digits, or a size in bytes for kind `size`. */
  readonly expected: string;
  /** What is there instead. */
  readonly found: string;
}

/** A clause that names the file: `vda/000000/00000007 is missing (expected hash …)`. */
export function describeDamage(damage: ChunkDamage): string {
  const { path, expected, found } = damage;
  switch (damage.kind) {
    case 'missing':
      return `${path} is missing (expected hash ${expected})`;
    case 'size':
      return `${path} has ${found} bytes instead of ${expected}`;
    case 'hash':
      return `${path} is corrupt: expected hash ${expected}, found ${found}`;
    case 'unsafe':
      return `${path} is ${found} (expected hash ${expected})`;
    case 'unreadable':
      return `${path} cannot be read: ${found} (expected hash ${expected})`;
    case 'unverified':
      return `${path} cannot be checked: its line in the sums file is lost`;
  }
}

const NEXT_STEP: Readonly<Record<DamageKind, string>> = {
  missing: 'take the file from another copy of this backup, or go on without it: --keep-going',
  size: 'take the file from another copy of this backup, or go on without it: --keep-going',
  hash: 'take the file from another copy of this backup, or go on without it: --keep-going',
  unsafe:
    'a tree holds plain files and directories only; take the file from another copy, or go on without it: --keep-going',
  unreadable:
    'look at the storage that holds the backup (dmesg) and whether you may read it, or go on without this chunk: --keep-going',
  unverified: 'take the sums file from another copy of this backup, or go on: --keep-going',
};

/** Thrown for a chunk of a tree (at `root`) that is not what it should be. Exit code 4. */
export class DamageError extends ChunkmountError {
  constructor(
    root: string,
    readonly damage: ChunkDamage,
  ) {
    super('integrity', `${root}/${describeDamage(damage)}`, {
      hint: NEXT_STEP[damage.kind],
      details: { ...damage },
    });
  }
}

/** Damaged chunks in a row with the same thing wrong, for a report that people read. */
export interface DamageRun {
  readonly first: ChunkDamage;
  readonly last: ChunkDamage;
  readonly count: number;
}

/** Joins neighbours of one disk that are damaged alike, if that says all there is to say. `damages` in order of disk and chunk. */
export function joinDamages(damages: readonly ChunkDamage[]): DamageRun[] {
  const runs: DamageRun[] = [];
  for (const damage of damages) {
    const previous = runs.at(-1);
    if (previous !== undefined && continues(previous.last, damage)) {
      runs[runs.length - 1] = { ...previous, last: damage, count: previous.count + 1 };
    } else {
      runs.push({ first: damage, last: damage, count: 1 });
    }
  }
  return runs;
}

function continues(before: ChunkDamage, next: ChunkDamage): boolean {
  const alike = before.disk === next.disk && before.kind === next.kind && before.chunk + 1 === next.chunk;
  return alike && next.kind !== 'hash' && before.found === next.found;
}

const WHAT_RUNS_ARE: Readonly<Record<DamageKind, string>> = {
  missing: 'are missing',
  size: 'have the wrong size',
  hash: 'are corrupt',
  unsafe: 'are no plain files',
  unreadable: 'cannot be read',
  unverified: 'cannot be checked: their lines in the sums file are lost',
};

export function describeRun(run: DamageRun): string {
  if (run.count === 1) return describeDamage(run.first);
  return `${run.first.path} to ${run.last.path}: ${run.count} chunks ${WHAT_RUNS_ARE[run.first.kind]}`;
}
