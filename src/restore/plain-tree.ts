import * as fs from 'node:fs';
import * as path from 'node:path';
import { geometry } from '../chunks/geometry.js';
import { MANIFEST_FORMAT, type Manifest } from '../chunks/manifest.js';
import { isName, isTarget } from '../chunks/names.js';
import { MANIFEST_NAME, SUMS_SUFFIX } from '../chunks/paths.js';
import { usage } from '../errors.js';

/** What a copy of a chunkfs mount does not say itself. In bytes. */
export interface PlainShape {
  readonly size: number;
  readonly chunkSize: number;
}

export interface PlainTree {
  /** The directory that the disk's directory is in. */
  readonly root: string;
  /** As good as it can be known. */
  readonly manifest: Manifest;
}

/** `mail01_vda`, as virt-backup called it. */
function namesIn(directory: string): { name: string; target: string } {
  const at = directory.lastIndexOf('_');
  const [name, target] = [directory.slice(0, at), directory.slice(at + 1)];
  return at > 0 && isName(name) && isTarget(target) ? { name, target } : { name: 'chunkfs', target: 'disk0' };
}

/**
 * Makes up the manifest of a copy of a chunkfs mount, which has none: a tree of one disk. `given` is the directory that holds the
 * chunks' first directory, `00`. Throws usage errors.
 */
export function plainTree(given: string, { size, chunkSize }: PlainShape): PlainTree {
  const place = existing(given);
  if (fs.existsSync(path.join(place, MANIFEST_NAME))) {
    throw usage(`${given} is a tree with a manifest`, { hint: 'leave out --size and --chunk-size' });
  }
  const cut = geometry(size, chunkSize);
  if (
    cut.chunkCount > 0 &&
    fs.statSync(path.join(place, '00'), { throwIfNoEntry: false })?.isDirectory() !== true
  ) {
    throw usage(`${given} is no copy of a chunkfs mount`, { hint: 'give the directory that 00 is in' });
  }
  const directory = path.basename(place);
  const { name, target } = namesIn(directory);
  const manifest: Manifest = {
    format: MANIFEST_FORMAT,
    version: 2,
    name,
    uuid: null,
    snapshotTime: fs.statSync(place).mtime.toISOString(),
    consistency: 'crash',
    toolVersion: 'chunkfs',
    domainXml: null,
    disks: [
      {
        target,
        ...cut,
        directory,
        layout: 'chunkfs',
        zeroChunks: 'keep',
        hash: 'xxh64',
        sums: target + SUMS_SUFFIX,
        sourceFormat: 'raw',
        bus: null,
      },
    ],
    extras: [],
  };
  return { root: path.dirname(place), manifest };
}

function existing(directory: string): string {
  try {
    return fs.realpathSync(directory);
  } catch (error) {
    throw usage(`there is no directory ${directory}`, {
      hint: 'give the directory that 00 is in',
      cause: error,
    });
  }
}
