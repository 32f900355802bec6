import * as fs from 'node:fs';
import type { ChunkHasher } from '../chunks/chunk-hash.js';
import { CHUNKS_PER_DIRECTORY, directoryCount, type Geometry, geometry } from '../chunks/geometry.js';
import { diskPart } from '../chunks/inodes.js';
import { layoutOf } from '../chunks/layout.js';
import { forgetUnsaved, openChangeLog, syncChangeLog } from '../content-index/change-log.js';
import { type IndexHeader, StoredIndex } from '../content-index/index-file.js';
import {
  AUDIT_DONE,
  CHANGED,
  createRows,
  DAMAGED_BLOCKS,
  KEPT,
  RESOLVED,
  TRUST,
  TRUSTED,
  UNREADABLE_COUNT,
} from '../content-index/rows.js';
import { saveIndex } from '../content-index/save-index.js';
import { latestPossibleMtime } from '../content-index/stable-times.js';
import { settleRecord } from '../content-index/tree-record.js';
import type { ChunkTree, TreeDisk, TreeFile } from '../fuse/chunk-tree.js';
import { directoryTimes } from '../fuse/disk-view.js';
import { loadExtentMap } from '../image/extent-map-file.js';
import { openSources } from '../image/sources.js';
import {
  changeLogFile,
  type DaemonConfig,
  type DaemonDisk,
  type DaemonFile,
  DIRECTORY_MODE,
  FILE_MODE,
  indexFile,
} from './daemon-config.js';
import { DiskTracker } from './tracked-disk.js';

/** Files up to this size are kept in memory; larger ones (memory states) stay open. */
const MAX_CONTENT_IN_MEMORY = 1024 * 1024;

/** How far the chunks of a session are known. */
export interface ScanState {
  readonly chunks: number;
  readonly resolved: number;
  readonly changed: number;
  readonly unreadable: number;
  readonly damagedIndexBlocks: number;
  /** Chunks that were not read, because a tracker knows that they did not change. */
  readonly kept: number;
  /** Chunks that were read to find out whether the tracker is right. */
  readonly audited: number;
  /** What was read of the disks to know their chunks. */
  readonly bytesRead: number;
}

interface OpenDisk {
  readonly served: TreeDisk;
  readonly stored: StoredIndex | undefined;
  readonly indexFile: string;
  readonly header: IndexHeader;
  readonly tracker: DiskTracker;
  readonly changeLog: { readonly fd: number; readonly file: string; synced: number };
}

/** The tree of one session in the daemon's memory, and the index it is compared with and saved to. */
export class ServedTree {
  readonly tree: ChunkTree;
  /** Sentences for the user: indexes that could not be used. */
  readonly warnings: readonly string[];
  readonly #disks: readonly OpenDisk[];

  constructor(
    private readonly config: DaemonConfig,
    private readonly hasher: ChunkHasher,
  ) {
    const warnings: string[] = [];
    this.#disks = config.disks.map((disk) => openDisk(config, disk, hasher, warnings));
    this.warnings = warnings;
    this.tree = {
      uid: config.uid,
      gid: config.gid,
      fileMode: FILE_MODE,
      directoryMode: DIRECTORY_MODE,
      rootMtime: config.rootMtime,
      files: config.files.map(openFile),
      disks: this.#disks.map(({ served }) => served),
    };
  }

  scanState(): ScanState {
    const sum = (slot: number) =>
      this.tree.disks.reduce((total, { rows }) => total + Atomics.load(rows.control, slot), 0);
    return {
      chunks: this.tree.disks.reduce((total, { geometry }) => total + geometry.chunkCount, 0),
      resolved: sum(RESOLVED),
      changed: sum(CHANGED),
      unreadable: sum(UNREADABLE_COUNT),
      damagedIndexBlocks: sum(DAMAGED_BLOCKS),
      kept: sum(KEPT),
      audited: sum(AUDIT_DONE),
      bytesRead: this.tree.disks.reduce(
        (total, { rows }) => total + Number(Atomics.load(rows.bytesRead, 0)),
        0,
      ),
    };
  }

  /** Whether all that the tree can show is known: its times are final, even if somebody still looks at it. */
  get isComplete(): boolean {
    const { chunks, resolved } = this.scanState();
    return chunks === resolved;
  }

  /** Trackers that were wrong; see DiskTracker. */
  trackerFindings(): { readonly warnings: readonly string[]; readonly lost: readonly string[] } {
    const all = this.#disks.map(({ tracker }) => tracker.findings());
    return { warnings: all.flatMap(({ warnings }) => warnings), lost: all.flatMap(({ lost }) => lost) };
  }

  /** Saves what is known so far. The next session compares with it; it is right at any moment. */
  save(): void {
    for (const { served, stored, indexFile, header } of this.#disks) {
      // What nobody looked at changes, too, and only now it is known how it was.
      directoryTimes(served, this.hasher)?.updateAll();
      saveIndex(indexFile, header, served.rows, stored, this.hasher);
    }
  }

  /** To be called each second: what a crash of the host takes away of the change logs is no more than that. */
  syncChangeLogs(): void {
    for (const { changeLog } of this.#disks) changeLog.synced = syncChangeLog(changeLog.fd, changeLog.synced);
  }

  /** Saves everything for good. Nobody looks at the tree any more, unless it is complete. */
  async settle(): Promise<void> {
    this.save();
    const { indexDirectory, times, skipZeros, disks } = this.config;
    const zerosShown = skipZeros ? [] : disks.map(({ target }) => target);
    settleRecord(indexDirectory, times, { complete: this.isComplete, zerosShown }, this.hasher);
    // Last: a record says that the index is whole.
    for (const { tracker, indexFile, served } of this.#disks)
      await tracker.settle(indexFile, { ...sumsShape(served), mtime: shownSumsMtime(served) });
    for (const { changeLog } of this.#disks) fs.rmSync(changeLog.file, { force: true });
  }
}

/** What decides how the lines of a disk's sums file look, beside the chunks. */
function sumsShape({ directory, layout, skipZeros }: Pick<TreeDisk, 'directory' | 'layout' | 'skipZeros'>) {
  return { directory, layout, skipsZeros: skipZeros };
}

/** mtime of the sums file, now that all chunks are known. */
function shownSumsMtime({ rows, sumsMtime, unchangedSumsMtime }: TreeDisk): number {
  return Atomics.load(rows.control, TRUST) === TRUSTED ? (unchangedSumsMtime ?? sumsMtime) : sumsMtime;
}

function openDisk(config: DaemonConfig, disk: DaemonDisk, hasher: ChunkHasher, warnings: string[]): OpenDisk {
  const cut = geometry(disk.size, disk.chunkSize);
  const file = indexFile(config.indexDirectory, disk.target);
  const stored = usableIndex(StoredIndex.open(file, hasher), cut, disk.target, warnings);
  // For what changed: later than anything that was shown before, also when that is not known any more.
  const latest = latestPossibleMtime(config.times);
  const skipped = config.zerosSkippedBefore?.includes(disk.target);
  // After a session that was cut off nobody knows which names were seen.
  const sameNames = skipped === config.skipZeros && (!config.skipZeros || config.times.unsettled === 0);
  const header: IndexHeader = {
    chunkSize: cut.chunkSize,
    chunkCount: cut.chunkCount,
    diskSize: cut.size,
    diskDirectoryMtime: diskDirectoryMtime(stored?.header, cut, latest),
    directoryMtimes: directoryMtimes(stored?.header, cut, latest, sameNames),
  };
  const rows = createRows(cut.chunkCount);
  const changeLog = changeLogFile(config.indexDirectory, disk.target);
  const changeLogFd = openChangeLog(changeLog);
  forgetUnsaved(changeLog, rows, stored, hasher);
  const extents = loadExtentMap(disk.extentsFile);
  const tracker = new DiskTracker(
    config.indexDirectory,
    disk.tracking,
    { target: disk.target, cut, rows, extents, stored },
    hasher,
  );
  const shape = {
    directory: layoutOf(config.layout).diskDirectory(config.name, disk.target),
    layout: config.layout,
    skipZeros: config.skipZeros,
  };
  const served: TreeDisk = {
    target: disk.target,
    part: diskPart(disk.target),
    geometry: cut,
    ...shape,
    rows,
    changeLog: changeLogFd,
    keep: tracker.plan,
    times: config.times,
    extents: extents.shared,
    sources: openSources(disk.sources, disk.size, disk.view),
    stored: stored === undefined ? undefined : { fd: stored.fd, header: stored.header },
    // Later than ever: its size says nothing, and a second session may come within the second.
    sumsMtime: latest,
    // After a session that was cut off nobody knows which sums were seen.
    unchangedSumsMtime: config.times.unsettled === 0 ? tracker.unchangedSums(sumsShape(shape)) : undefined,
    directoryMtime: header.diskDirectoryMtime,
    directoryMtimes: header.directoryMtimes,
    compareDirectories: config.skipZeros && sameNames,
  };
  return {
    served,
    stored,
    indexFile: file,
    header,
    tracker,
    changeLog: { fd: changeLogFd, file: changeLog, synced: 0 },
  };
}

function usableIndex(
  found: StoredIndex | string | undefined,
  cut: Geometry,
  target: string,
  warnings: string[],
): StoredIndex | undefined {
  if (found instanceof StoredIndex) {
    if (found.header.chunkSize === cut.chunkSize) return found;
    warnings.push(
      `disk ${target}: the chunk size was ${found.header.chunkSize / 1024}K and is ${cut.chunkSize / 1024}K now: all chunks count as changed`,
    );
    found.close();
  } else if (found !== undefined) {
    warnings.push(`disk ${target}: ${found}: all chunks count as changed`);
  }
  return undefined;
}

/** The disk's directory keeps its time while it holds the same chunk directories. */
function diskDirectoryMtime(before: IndexHeader | undefined, cut: Geometry, latest: number): number {
  if (before === undefined) return latest;
  const same = before.directoryMtimes.length === directoryCount(cut);
  return same ? before.diskDirectoryMtime : Math.max(latest, before.diskDirectoryMtime + 1);
}

/**
 * A chunk directory keeps its time while it holds the same chunks: when a disk grows, only the last one changes. `sameNames`: chunks of
 * zeros are in it, or are left out, as the last time; which of them are zeros is compared later.
 */
function directoryMtimes(
  before: IndexHeader | undefined,
  cut: Geometry,
  latest: number,
  sameNames: boolean,
): Uint32Array {
  const count = directoryCount(cut);
  const times = new Uint32Array(new SharedArrayBuffer(Math.max(count, 1) * 4), 0, count).fill(latest);
  if (before === undefined) return times;
  for (let directory = 0; directory < Math.min(count, before.directoryMtimes.length); directory++) {
    const known = before.directoryMtimes[directory]!;
    const first = directory * CHUNKS_PER_DIRECTORY;
    const chunksNow = Math.min(cut.chunkCount - first, CHUNKS_PER_DIRECTORY);
    const chunksBefore = Math.min(before.chunkCount - first, CHUNKS_PER_DIRECTORY);
    times[directory] = sameNames && chunksNow === chunksBefore ? known : Math.max(latest, known + 1);
  }
  return times;
}

function openFile(file: DaemonFile): TreeFile {
  const { name, inode, mtime, mtimeNs } = file;
  const fd = fs.openSync(file.path, 'r');
  const size = fs.fstatSync(fd).size;
  if (size > MAX_CONTENT_IN_MEMORY) return { name, inode, mtime, mtimeNs, content: { fd, size } };
  fs.closeSync(fd);
  const bytes = fs.readFileSync(file.path);
  const content = new Uint8Array(new SharedArrayBuffer(Math.max(bytes.length, 1)), 0, bytes.length);
  content.set(bytes);
  return { name, inode, mtime, mtimeNs, content };
}
