import * as fs from 'node:fs';
import * as path from 'node:path';
import { indexFile } from '../../src/backup/daemon-config.js';
import type { DiskTracking } from '../../src/backup/disk-tracking.js';
import { type TrackingSettings, trackDisk } from '../../src/backup/track-disk.js';
import { DiskTracker } from '../../src/backup/tracked-disk.js';
import { createHasher } from '../../src/chunks/chunk-hash.js';
import { geometry } from '../../src/chunks/geometry.js';
import { BLOCK_LOADED, createRows, DATA, RESOLVED } from '../../src/content-index/rows.js';
import { saveIndex } from '../../src/content-index/save-index.js';
import type { ImageLayer } from '../../src/image/image-layer.js';
import { silentReporter } from '../../src/report/reporter.js';
import { mapOf } from '../image/extents.js';
import { temporaryDirectory } from '../support/images.js';

const CHUNK = 4096;
export const DAY_MS = 24 * 3_600_000;
export const SETTINGS: TrackingSettings = {
  track: 'auto',
  audit: 0.005,
  fullScan: false,
  fullScanEveryMs: 30 * DAY_MS,
  keepOverlay: false,
  keepSnapshot: false,
};
const SUMS = { directory: 'vda', layout: 'chunkmount', skipsZeros: false, mtime: 1000 };
const hasher = await createHasher();

/** A disk of two layers: an image and what lies below it. Nothing looks into them here. */
export class LayeredDisk {
  readonly directory = temporaryDirectory();
  readonly image = path.join(this.directory, 'disk.qcow2');
  readonly base = path.join(this.directory, 'base.raw');
  readonly index = path.join(this.directory, 'index');
  layers: ImageLayer[] = [this.layer(this.image, 'qcow2'), this.layer(this.base, 'raw')];
  size = 10 * CHUNK;
  chunkSize = CHUNK;
  settings = SETTINGS;
  /** How long before the session the images seem to have been written. */
  quietMs = 5_000;
  #sessions = 0;

  constructor() {
    fs.mkdirSync(this.index);
    for (const file of [this.image, this.base]) fs.writeFileSync(file, Buffer.alloc(5000, 1));
  }

  layer(file: string, format: string): ImageLayer {
    return { path: file, format, device: false, fileSize: 5000 };
  }

  track(): Promise<DiskTracking> {
    return trackDisk({
      disk: {
        target: 'vda',
        layers: this.layers,
        sources: [],
        extents: mapOf([{ length: this.size, source: 0, offset: 0 }]),
        since: Date.now() + this.quietMs,
        keep: false,
      },
      cut: geometry(this.size, this.chunkSize),
      indexDirectory: this.index,
      session: `session-${++this.#sessions}`,
      settings: this.settings,
      hasher,
      reporter: silentReporter,
    });
  }

  /** Ends a session that knows every chunk, or that many of them. Their hashes are `seed` and what follows. `found`: by its control slots. */
  async settle(
    tracking: DiskTracking,
    seed: number,
    known = Number.POSITIVE_INFINITY,
    found: Readonly<Record<number, number>> = {},
  ): Promise<void> {
    const cut = geometry(this.size, this.chunkSize);
    const rows = createRows(cut.chunkCount);
    rows.hashes.forEach((_, word) => {
      rows.hashes[word] = seed + word;
    });
    rows.mtimes.fill(1000);
    rows.states.fill(DATA);
    rows.blocks.fill(BLOCK_LOADED);
    rows.control[RESOLVED] = Math.min(known, cut.chunkCount);
    for (const [slot, value] of Object.entries(found)) rows.control[Number(slot)] = value;
    const file = indexFile(this.index, 'vda');
    const directoryMtimes = Uint32Array.from([1]);
    const sizes = { chunkSize: cut.chunkSize, chunkCount: cut.chunkCount, diskSize: cut.size };
    saveIndex(file, { ...sizes, diskDirectoryMtime: 1, directoryMtimes }, rows, undefined, hasher);
    const extents = mapOf([{ length: cut.size, source: 0, offset: 0 }]);
    await new DiskTracker(
      this.index,
      tracking,
      { target: 'vda', cut, rows, extents, stored: undefined },
      hasher,
    ).settle(file, SUMS);
  }

  async session(seed = 1): Promise<void> {
    await this.settle(await this.track(), seed);
  }

  get record(): string {
    return path.join(this.index, 'vda.tracking.v1.json');
  }

  // biome-ignore lint/suspicious/noExplicitAny: JSON of the program's own
  edit(change: (record: any) => void): void {
    const record = JSON.parse(fs.readFileSync(this.record, 'utf8'));
    change(record);
    fs.writeFileSync(this.record, JSON.stringify(record));
  }
}
