import * as fs from 'node:fs';
import * as path from 'node:path';
import { expect } from 'vitest';
import { indexFile } from '../../src/backup/daemon-config.js';
import { chunkRanges, type DiskChanges } from '../../src/backup/disk-tracking.js';
import { endSession, undoSession } from '../../src/backup/end-session.js';
import { keptSnapshots, snapshotOf } from '../../src/backup/kept-snapshots.js';
import { bytesIn, trackDisk } from '../../src/backup/track-disk.js';
import { DiskTracker } from '../../src/backup/tracked-disk.js';
import { createHasher } from '../../src/chunks/chunk-hash.js';
import { geometry } from '../../src/chunks/geometry.js';
import { BLOCK_LOADED, createRows, DATA, RESOLVED } from '../../src/content-index/rows.js';
import { saveIndex } from '../../src/content-index/save-index.js';
import { run } from '../../src/host/exec.js';
import type { Domain } from '../../src/libvirt/domain.js';
import { Virsh } from '../../src/libvirt/virsh.js';
import { Journal } from '../../src/session/journal.js';
import { StateDirectory } from '../../src/session/state-directory.js';
import { lvmProvider } from '../../src/snapshot/lvm/provider.js';
import type { Comparing, Facts } from '../../src/tracking/tracker.js';
import { mapOf } from '../image/extents.js';
import { DyingJournal } from '../support/dying-journal.js';
import { temporaryDirectory } from '../support/images.js';
import { RecordingReporter } from '../support/snapshot-session.js';
import { makeVolume, type TestVolume, VOLUME_GROUP } from '../support/volumes.js';

/** Of the thin pool, and of a chunk. */
export const BLOCK = 64 * 1024;
const MIB = 1024 * 1024;
const TARGET = 'vda';
const SUMS = { directory: 'vda', layout: 'chunkmount', skipsZeros: false, mtime: 1000 };
const hasher = await createHasher();

/** Overwrites blocks of a device with what they never held. */
export function writeBlocks(device: string, first: number, count = 1): void {
  const fd = fs.openSync(device, 'r+');
  try {
    const bytes = Buffer.alloc(count * BLOCK, `${process.hrtime.bigint()} `);
    fs.writeSync(fd, bytes, 0, bytes.length, first * BLOCK);
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

export async function discardBlocks(device: string, first: number, count = 1): Promise<void> {
  await run('blkdiscard', ['-o', String(first * BLOCK), '-l', String(count * BLOCK), device]);
}

/** Block of a pool's metadata snapshot; `-` if there is none. */
export async function heldIn(pool: string): Promise<string | undefined> {
  return (
    await run('dmsetup', ['status', `${VOLUME_GROUP}-${pool.replaceAll('-', '--')}-tpool`])
  ).stdout.split(' ')[6];
}

interface SessionOptions {
  readonly keep?: boolean;
  /** It ends before all of the disk has been read. */
  readonly cutOff?: boolean;
  /** Instead of the session's own. */
  readonly journal?: (file: string) => Journal;
  /** Done while the disk is frozen, when it has been tracked. */
  readonly meanwhile?: (at: Meanwhile) => Promise<void>;
}

/** What the tracker has of the last session and of this one, and what it is given. */
export interface Meanwhile {
  readonly before: Facts;
  readonly now: Facts;
  readonly comparing: Comparing;
}

/**
 * Sessions of one thin volume as the program makes them, but without a VM, a mount and processes, which take most of the time: who reads
 * the chunks is here.
 */
export class ThinSessions {
  readonly state = new StateDirectory(temporaryDirectory());
  readonly reporter = new RecordingReporter();
  /** Hashes of the chunks as the last complete session showed them. */
  #shown: string[] = [];
  #count = 0;

  private constructor(
    readonly name: string,
    readonly pool: string,
    public volume: TestVolume,
    public mib: number,
  ) {
    fs.mkdirSync(this.state.index(name), { recursive: true });
  }

  static async make(name: string, pool: string, mib: number): Promise<ThinSessions> {
    return new ThinSessions(name, pool, await makeVolume(name, mib, { pool }), mib);
  }

  /** Leaves volumes to be removed with their pool. */
  dispose(): void {
    fs.rmSync(this.state.root, { recursive: true });
  }

  write(first: number, count = 1): void {
    writeBlocks(this.volume.device, first, count);
  }

  #domain(): Domain {
    const disk = { target: TARGET, bus: 'virtio', device: 'disk', type: 'block', format: 'raw' } as const;
    const flags = {
      readonly: false,
      shareable: false,
      transient: false,
      encrypted: false,
      sliced: false,
      below: [],
      backing: undefined,
    };
    const disks = [{ ...disk, ...flags, path: this.volume.device }];
    return {
      name: this.name,
      uuid: '',
      state: 'shut off',
      active: false,
      persistent: true,
      disks,
      nvram: undefined,
      qemuUser: undefined,
    };
  }

  /** One session; returns what the trackers knew, and throws if that would have hidden a change. */
  async session(given: SessionOptions = {}): Promise<DiskChanges> {
    const { name, state, reporter } = this;
    fs.mkdirSync(state.session(name), { recursive: true });
    const journal = given.journal?.(state.journal(name)) ?? new Journal(state.journal(name));
    try {
      const id = `${name}${++this.#count}`;
      const domain = this.#domain();
      const options = { quiesce: 'no' } as const;
      const request = {
        virsh: new Virsh({}),
        domain,
        disks: domain.disks,
        sessionId: id,
        options,
        journal,
        reporter,
      };
      const { image } = (await lvmProvider.freeze(request)).disks[0]!;
      const changes = await this.#serve(id, image.path, journal, given);
      expect(await undoSession({ name, state, journal, reporter })).toEqual([]);
      return changes;
    } finally {
      journal.close();
    }
  }

  async #serve(
    session: string,
    device: string,
    journal: Journal,
    { keep = true, cutOff = false, meanwhile }: SessionOptions,
  ): Promise<DiskChanges> {
    const indexDirectory = this.state.index(this.name);
    const cut = geometry(this.mib * MIB, BLOCK);
    const extents = mapOf([{ length: cut.size, source: 0, offset: 0 }]);
    const disk = {
      target: TARGET,
      layers: [{ path: device, format: 'raw', device: true, fileSize: 0 }],
      sources: [],
      extents,
      since: Date.now(),
      snapshot: snapshotOf(journal, TARGET),
      keep,
    };
    const tracking = await trackDisk({
      disk,
      cut,
      indexDirectory,
      session,
      settings: {
        track: 'thin',
        audit: 0,
        fullScan: false,
        fullScanEveryMs: Number.POSITIVE_INFINITY,
        keepOverlay: false,
        keepSnapshot: keep,
      },
      hasher,
      journal,
      reporter: this.reporter,
    });
    if (journal instanceof DyingJournal && journal.died) throw new Error('killed');
    if (meanwhile !== undefined) {
      const { bases } = JSON.parse(fs.readFileSync(this.record, 'utf8'));
      const comparing = { disk, journal, reporter: this.reporter };
      await meanwhile({ before: bases[0].facts, now: tracking.observed[0]!.facts, comparing });
    }
    const content = fs.readFileSync(device);
    const truth = Array.from({ length: cut.chunkCount }, (_, chunk) => hashOf(content, chunk));
    const { changes } = tracking;
    const shown = [...truth];
    if (changes.kind === 'known') {
      const changed = new Set(
        chunkRanges(changes.ranges, cut).flatMap(({ first, end }) =>
          Array.from({ length: end - first }, (_, index) => first + index),
        ),
      );
      this.#shown.forEach((hash, chunk) => {
        if (!changed.has(chunk)) shown[chunk] = hash;
      });
    }
    expect(shown).toEqual(truth);
    if (cutOff) return changes;
    this.#shown = shown;
    const rows = createRows(cut.chunkCount);
    shown.forEach((hash, chunk) => {
      rows.hashes.set(hash.split(' ').map(Number), chunk * 2);
    });
    rows.mtimes.fill(1000);
    rows.states.fill(DATA);
    rows.blocks.fill(BLOCK_LOADED);
    rows.control[RESOLVED] = cut.chunkCount;
    const file = indexFile(indexDirectory, TARGET);
    const sizes = { chunkSize: cut.chunkSize, chunkCount: cut.chunkCount, diskSize: cut.size };
    const directoryMtimes = new Uint32Array(Math.ceil(cut.chunkCount / 256)).fill(1);
    saveIndex(file, { ...sizes, diskDirectoryMtime: 1, directoryMtimes }, rows, undefined, hasher);
    const tracked = { target: TARGET, cut, rows, extents, stored: undefined };
    await new DiskTracker(indexDirectory, tracking, tracked, hasher).settle(file, SUMS);
    return changes;
  }

  /** Blocks that a session has to read; throws unless they are known. */
  async changed(options?: SessionOptions): Promise<number> {
    const changes = await this.session(options);
    if (changes.kind === 'unknown') throw new Error(changes.reason);
    return bytesIn(changes.ranges) / BLOCK;
  }

  /** Why a session has to read everything; throws if it does not have to. */
  async reason(options?: SessionOptions): Promise<string> {
    const changes = await this.session(options);
    if (changes.kind === 'unknown') return changes.reason;
    throw new Error(`it knows ${bytesIn(changes.ranges)} bytes`);
  }

  /** `cleanup`, `cleanup --kept`. */
  async cleanup(dropKept = false): Promise<void> {
    const { name, state, reporter } = this;
    await endSession({ name, state, command: 'cleanup', keepLock: false, dropKept, reporter });
  }

  /** Name of the snapshot that was kept, without its group; throws unless there is exactly one. */
  get kept(): string {
    const entries = keptSnapshots(this);
    expect(entries).toHaveLength(1);
    return String(entries[0]!.data.name);
  }

  /** The snapshots of any session that are there. */
  async snapshots(): Promise<string[]> {
    const select = `lv_name=~"^cm-${this.name}[0-9]+-"`;
    const { stdout } = await run('lvs', ['--noheadings', '-o', 'lv_name', '--select', select, VOLUME_GROUP]);
    return stdout.split('\n').flatMap((line) => line.trim() || []);
  }

  get record(): string {
    return path.join(this.state.index(this.name), `${TARGET}.tracking.v1.json`);
  }
}

function hashOf(content: Buffer, chunk: number): string {
  const hash = new Uint32Array(2);
  hasher.hash(content.subarray(chunk * BLOCK, (chunk + 1) * BLOCK), hash, 0);
  return `${hash[0]} ${hash[1]}`;
}
