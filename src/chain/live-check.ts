import type { Disk } from '../libvirt/domain.js';
import { identityOf, isSameImage } from '../snapshot/image-identity.js';
import type { LiveDisk } from './live-chain.js';

/** The files that a disk is made of, top first, as the live XML has them; undefined for what is no file or device. */
export function pathsOf({ path, below }: Disk): readonly (string | undefined)[] {
  return path === undefined ? [] : [path, ...below];
}

function isForeignOnTop(actual: readonly (string | undefined)[], expected: readonly string[]): boolean {
  const at = actual.indexOf(expected[0]!);
  return at > 0 && expected.every((file, index) => actual[at + index] === file);
}

/** What somebody did to a VM's images since we left them; undefined if they are as they were. A sentence about the disk. */
export function changeOf(disk: Disk, known: LiveDisk): string | undefined {
  const expected = [...known.layers.map(({ path }) => path).reverse(), known.base.path];
  const actual = pathsOf(disk);
  if (isForeignOnTop(actual, expected)) return `another snapshot, ${actual[0]}, lies on it`;
  for (const [index, file] of expected.entries()) {
    if (actual[index] !== file) return `it is on ${actual[index] ?? 'nothing'} where ${file} was`;
  }
  for (const { path, identity } of [known.base, ...known.layers]) {
    const now = identityOf(path);
    if (now === undefined) return `${path} is gone`;
    if (!isSameImage(now, identity)) return `${path} was replaced by another file`;
  }
  return undefined;
}
