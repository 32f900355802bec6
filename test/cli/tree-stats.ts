import * as path from 'node:path';
import { execa } from 'execa';

/** What backup tools look at. */
export interface EntryStat {
  readonly inode: number;
  readonly mtime: number;
  readonly ctime: number;
  readonly size: number;
  readonly isDirectory: boolean;
}

/** Prints a line for every file and directory below the tree that is its argument. */
export const STAT_SCRIPT = 'LC_ALL=C find "$1" -printf "%P %i %T@ %C@ %s %y\\n"';

/** Every file and directory of a tree by its path in it; the root is ''. */
export async function statTree(tree: string): Promise<Map<string, EntryStat>> {
  return parseStats((await execa('sh', ['-c', STAT_SCRIPT, 'sh', tree])).stdout);
}

/** What STAT_SCRIPT printed. */
export function parseStats(stdout: string): Map<string, EntryStat> {
  const entries = new Map<string, EntryStat>();
  for (const line of stdout.trimEnd().split('\n')) {
    const [name = '', inode, mtime, ctime, size, type] = line.split(' ');
    entries.set(name, {
      inode: Number(inode),
      mtime: Number(mtime),
      ctime: Number(ctime),
      size: Number(size),
      isDirectory: type === 'd',
    });
  }
  return entries;
}

function some(
  entries: ReadonlyMap<string, EntryStat>,
  keep: (name: string, entry: EntryStat) => boolean,
): Map<string, EntryStat> {
  return new Map([...entries].filter(([name, entry]) => keep(name, entry)));
}

export function chunksOf(entries: ReadonlyMap<string, EntryStat>): Map<string, EntryStat> {
  return some(entries, (name) => /^[0-9a-f]{8}$/.test(path.basename(name)));
}

export function directoriesOf(entries: ReadonlyMap<string, EntryStat>): Map<string, EntryStat> {
  return some(entries, (_, { isDirectory }) => isDirectory);
}

/** Only what lies below one of the names at the top, or is one of them. */
export function below(
  entries: ReadonlyMap<string, EntryStat>,
  ...names: readonly string[]
): Map<string, EntryStat> {
  return some(entries, (entry) => names.includes(entry.split('/')[0]!));
}

/** Names whose entries differ, sorted; those that are only in one of them as well. */
export function differing(
  before: ReadonlyMap<string, EntryStat>,
  after: ReadonlyMap<string, EntryStat>,
): string[] {
  const names = new Set([...before.keys(), ...after.keys()]);
  return [...names]
    .filter((name) => JSON.stringify(before.get(name)) !== JSON.stringify(after.get(name)))
    .sort();
}
