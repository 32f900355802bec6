import * as fs from 'node:fs';
import * as path from 'node:path';
import { geometry } from '../chunks/geometry.js';
import { type LayoutKind, layoutOf } from '../chunks/layout.js';
import {
  formatManifest,
  MANIFEST_FORMAT,
  type Manifest,
  type ManifestDisk,
  type ManifestExtra,
  manifestVersion,
  topLevelNames,
  type ZeroChunks,
} from '../chunks/manifest.js';
import { MANIFEST_NAME, SUMS_SUFFIX } from '../chunks/paths.js';
import { makeDirectory, replaceFile } from '../host/durable.js';
import type { DaemonFile } from './daemon-config.js';
import type { FrozenSource } from './source.js';
import { toolVersion } from './version.js';

/** Inode numbers of the files at the top; 1 is the root. */
const INODES = { manifest: 2, xml: 3, nvram: 4, state: 5 } as const;

const NVRAM_NAME = 'nvram.fd';

export interface TreeFiles {
  readonly files: readonly DaemonFile[];
  /** All names at the top of the tree. */
  readonly names: readonly string[];
}

export interface TreeFilesRequest {
  readonly name: string;
  readonly sessionDirectory: string;
  readonly source: FrozenSource;
  /** Bytes, in the order of `source.disks`. */
  readonly sizes: readonly number[];
  readonly chunkSize: number;
  readonly layout: LayoutKind;
  readonly zeroChunks: ZeroChunks;
  /** mtime, in seconds, of all but the manifest: later than that of any file that had the name before. */
  readonly mtime: number;
}

/** Writes manifest, domain XML and NVRAM into the session's directory, to be served from there until the session ends, or the host. */
export function writeTreeFiles(request: TreeFilesRequest): TreeFiles {
  const { name, source, mtime } = request;
  const directory = path.join(request.sessionDirectory, 'files');
  makeDirectory(directory);
  const files: DaemonFile[] = [];
  const add = (fileName: string, inode: number, content: string | Uint8Array) => {
    const file = path.join(directory, fileName);
    replaceFile(file, content, { durable: false });
    files.push({ name: fileName, inode, path: file, mtime, mtimeNs: 0 });
  };
  if (source.xml !== undefined) add(`${name}.xml`, INODES.xml, source.xml);
  const nvram = source.nvram === undefined ? undefined : fs.readFileSync(source.nvram);
  if (nvram !== undefined) add(NVRAM_NAME, INODES.nvram, nvram);
  if (source.memory !== undefined) {
    files.push({ name: stateName(name), inode: INODES.state, path: source.memory, mtime, mtimeNs: 0 });
  }
  const manifest = makeManifest(request, nvram?.length);
  add(MANIFEST_NAME, INODES.manifest, formatManifest(manifest));
  return { files, names: topLevelNames(manifest) };
}

function makeManifest(request: TreeFilesRequest, nvramSize: number | undefined): Manifest {
  const { name, source } = request;
  const disks = makeDisks(request);
  return {
    format: MANIFEST_FORMAT,
    version: manifestVersion(disks),
    name,
    uuid: source.uuid,
    snapshotTime: source.time.toISOString(),
    consistency: source.consistency,
    toolVersion: toolVersion(),
    domainXml: source.xml === undefined ? null : `${name}.xml`,
    disks,
    extras: makeExtras(request, nvramSize),
  };
}

function makeDisks({ name, source, sizes, chunkSize, layout, zeroChunks }: TreeFilesRequest): ManifestDisk[] {
  return source.disks.map(({ target, image, bus }, position) => ({
    target,
    ...geometry(sizes[position]!, chunkSize),
    directory: layoutOf(layout).diskDirectory(name, target),
    layout,
    zeroChunks,
    hash: 'xxh64',
    sums: target + SUMS_SUFFIX,
    sourceFormat: image.format,
    bus,
  }));
}

function makeExtras({ name, source }: TreeFilesRequest, nvramSize: number | undefined): ManifestExtra[] {
  const extras: ManifestExtra[] = [];
  if (nvramSize !== undefined) extras.push({ file: NVRAM_NAME, kind: 'nvram', size: nvramSize });
  if (source.memory !== undefined) {
    extras.push({ file: stateName(name), kind: 'state', size: fs.statSync(source.memory).size });
  }
  return extras;
}

/** The guest's memory, as virsh restore takes it. */
function stateName(name: string): string {
  return `${name}.state`;
}
