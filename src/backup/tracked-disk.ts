import type { ChunkHasher } from '../chunks/chunk-hash.js';
import { chunkLength, type Geometry } from '../chunks/geometry.js';
import { beginAudit, type KeepPlan } from '../content-index/audit.js';
import { StoredIndex } from '../content-index/index-file.js';
import { pickSamples } from '../content-index/pick-samples.js';
import { DATA, KEPT, MISMATCH, MISMATCH_LATE, RESOLVED, type Rows } from '../content-index/rows.js';
import type { ExtentMap } from '../image/extent-map.js';
import { type Distrust, type ShownSums, type TrackingRecord, writeTracking } from '../tracking/record.js';
import { chunkRanges, type DiskTracking, distrustSentence, indexObstacle } from './disk-tracking.js';
import { stillHolds } from './track-disk.js';

/** More of them are no accident, and a tracker has to do without them. */
const MAX_FALSE_ZEROS = 1000;

export interface TrackedRows {
  readonly target: string;
  readonly cut: Geometry;
  readonly rows: Rows;
  readonly extents: ExtentMap;
  readonly stored: StoredIndex | undefined;
}

/** The part of the daemon that believes trackers, finds them out, and leaves them what they need. One for each disk. */
export class DiskTracker {
  /** Undefined: every chunk is read. */
  readonly plan: KeepPlan | undefined;
  #noted = false;
  #distrust: Distrust | undefined;

  constructor(
    private readonly indexDirectory: string,
    private readonly tracking: DiskTracking,
    private readonly disk: TrackedRows,
    private readonly hasher: ChunkHasher,
  ) {
    this.plan = this.#begin();
  }

  #begin(): KeepPlan | undefined {
    const { changes, audit } = this.tracking;
    const { cut, rows, extents, stored } = this.disk;
    if (changes.kind === 'unknown') return undefined;
    if (indexObstacle(stored, cut, changes.index, this.hasher) !== undefined) return undefined;
    const changed = chunkRanges(changes.ranges, cut);
    const samples = pickSamples({ disk: cut, extents, changed, share: audit });
    beginAudit(rows, samples, changed);
    return { samples, falseZeros: changes.falseZeros };
  }

  /** mtime of the last session's sums file, if it was one of that kind and the tracker says that no line of it changed. */
  unchangedSums(now: Omit<ShownSums, 'mtime'>): number | undefined {
    const { changes } = this.tracking;
    if (this.plan === undefined || changes.kind === 'unknown' || changes.ranges.length > 0) return undefined;
    const { directory, layout, skipsZeros, mtime } = changes.sums ?? {};
    const same = directory === now.directory && layout === now.layout && skipsZeros === now.skipsZeros;
    return same ? mtime : undefined;
  }

  /** What is to be told of this disk: a tracker that was wrong. `lost`: what was shown by then may have been wrong, too. */
  findings(): { readonly warnings: readonly string[]; readonly lost: readonly string[] } {
    const { target, rows } = this.disk;
    this.#noteMismatch();
    const all = [...this.tracking.distrusted, ...(this.#distrust === undefined ? [] : [this.#distrust])];
    const sentences = all.map((distrust) => distrustSentence(target, distrust));
    const late = Atomics.load(rows.control, MISMATCH_LATE) !== 0;
    return late ? { warnings: [], lost: sentences } : { warnings: sentences, lost: [] };
  }

  /** Records, once, that the tracker was wrong. */
  #noteMismatch(): void {
    const { changes, session, distrusted } = this.tracking;
    const found = Atomics.load(this.disk.rows.control, MISMATCH);
    if (found === 0 || changes.kind === 'unknown' || this.#noted) return;
    this.#distrust ??= { tracker: changes.tracker, session, chunk: found - 1, at: Date.now() };
    this.#write({
      index: changes.index,
      fullScan: changes.fullScan,
      sums: undefined,
      falseZeros: [],
      bases: [],
      distrusted: [...distrusted, this.#distrust],
    });
    this.#noted = true;
  }

  #write(record: Omit<TrackingRecord, 'version' | 'session'>): void {
    const { session } = this.tracking;
    writeTracking(this.indexDirectory, this.disk.target, { version: 1, session, ...record });
  }

  /** To be called when the index has been saved for good to `indexFile`: leaves what the trackers need, if every chunk is known. */
  async settle(indexFile: string, sums: ShownSums): Promise<void> {
    const { changes, begun, distrusted, observed } = this.tracking;
    const { cut, rows } = this.disk;
    this.#noteMismatch();
    if (Atomics.load(rows.control, RESOLVED) !== cut.chunkCount) return;
    const stored = StoredIndex.open(indexFile, this.hasher);
    if (!(stored instanceof StoredIndex)) return;
    const index = stored.fingerprint(this.hasher);
    stored.close();
    const readAll = Atomics.load(rows.control, KEPT) === 0;
    const before = readAll ? [] : distrusted;
    const falseZeros = this.#falseZeros();
    // Of rows that were kept on the word of one who was wrong, nobody knows whether they are right: no tracker may go on from them.
    const doubtful = this.#distrust !== undefined && !readAll;
    const bases = [];
    for (const one of observed) if (await stillHolds(one)) bases.push(one);
    this.#write({
      index,
      fullScan: readAll || changes.kind === 'unknown' ? begun : changes.fullScan,
      sums: doubtful ? undefined : sums,
      falseZeros,
      bases: doubtful || falseZeros.length > MAX_FALSE_ZEROS ? [] : bases,
      distrusted: this.#distrust === undefined ? [...before] : [...before, this.#distrust],
    });
  }

  /** Up to one more than MAX_FALSE_ZEROS of them. */
  #falseZeros(): number[] {
    const { cut, rows } = this.disk;
    const found: number[] = [];
    const zeroHash = new Map<number, Uint32Array>();
    for (let chunk = 0; chunk < cut.chunkCount && found.length <= MAX_FALSE_ZEROS; chunk++) {
      if (rows.states[chunk] !== DATA) continue;
      const length = chunkLength(cut, chunk);
      const [high, low] = zeroHash.get(length) ?? this.#hashOfZeros(length, zeroHash);
      if (rows.hashes[chunk * 2] === high && rows.hashes[chunk * 2 + 1] === low) found.push(chunk);
    }
    return found;
  }

  #hashOfZeros(length: number, known: Map<number, Uint32Array>): Uint32Array {
    const hash = new Uint32Array(2);
    this.hasher.hash(new Uint8Array(length), hash, 0);
    known.set(length, hash);
    return hash;
  }
}
