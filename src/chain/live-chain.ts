import * as path from 'node:path';
import * as v from 'valibot';
import { failed, messageOf } from '../errors.js';
import { makeDirectory, readIfExists, replaceFile } from '../host/durable.js';
import type { StateDirectory } from '../session/state-directory.js';
import { imageIdentity } from '../snapshot/image-identity.js';

const absolute = v.pipe(v.string(), v.startsWith('/'));

/** A file that we made and put a VM onto. */
const layer = v.object({ path: absolute, identity: imageIdentity });

const liveDisk = v.object({
  target: v.string(),
  /** The image that the first of our layers lies on. It is not ours. */
  base: v.object({
    path: absolute,
    format: v.picklist(['raw', 'qcow2']),
    identity: imageIdentity,
    /** The disk's part of the VM's definition while it is on the base. */
    definition: v.object({
      type: v.string(),
      format: v.optional(v.string()),
      source: v.string(),
      backingStore: v.optional(v.string()),
    }),
  }),
  /** Ours, lowest first. The last is what the VM writes to; it holds all that was written since the last point. */
  layers: v.array(layer),
  /** The copy of the last point, in the chain's directory; null: none that a next one could lie on. */
  copy: v.nullable(v.string()),
});

export const liveChain = v.object({
  format: v.literal('chunkmount-live-chain'),
  version: v.literal(1),
  uuid: v.string(),
  /** Where the copies are. */
  directory: absolute,
  disks: v.array(liveDisk),
});

/** What is ours of the images that a VM runs on. */
export type LiveChain = v.InferOutput<typeof liveChain>;
export type LiveDisk = v.InferOutput<typeof liveDisk>;
export type Layer = v.InferOutput<typeof layer>;

/** Where they are kept, one file for each VM. */
export function liveChainsDirectory(state: StateDirectory): string {
  return path.join(state.root, 'chains');
}

/** Where one is kept, however long the layers live. */
export function liveChainFile(state: StateDirectory, name: string): string {
  return path.join(liveChainsDirectory(state), `${name}.json`);
}

/** Undefined: chunkmount made no layers of that VM. Throws when the file is damaged. */
export function readLiveChain(file: string): LiveChain | undefined {
  const text = readIfExists(file);
  if (text === undefined) return undefined;
  try {
    return v.parse(liveChain, JSON.parse(text));
  } catch (error) {
    throw failed(`${file}, which says which layers are ours, is damaged: ${messageOf(error)}`, {
      hint: 'move it away and begin anew: --full. The layers then stay, as if they were yours',
      cause: error,
    });
  }
}

export function writeLiveChain(file: string, chain: LiveChain): void {
  makeDirectory(path.dirname(file));
  replaceFile(file, `${JSON.stringify(chain, undefined, 1)}\n`);
}

/** Replaces what is known of one disk, in the file. */
export function updateLiveDisk(file: string, target: string, change: (disk: LiveDisk) => LiveDisk): void {
  const chain = readLiveChain(file);
  if (chain === undefined) return;
  const disks = chain.disks.map((disk) => (disk.target === target ? change(disk) : disk));
  writeLiveChain(file, { ...chain, disks });
}
