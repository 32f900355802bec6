import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { createHasher } from '../chunks/chunk-hash.js';
import { MAX_CHUNK_COUNT } from '../chunks/geometry.js';
import type { ManifestDisk } from '../chunks/manifest.js';
import { formatHash } from '../chunks/paths.js';
import { failed, messageOf, systemCode } from '../errors.js';
import { fsyncDirectory, isDiskFull, readIfExists } from '../host/durable.js';
import type { ChunkSource } from './chunk-source.js';
import { takePlace } from './take-place.js';
import type { Target } from './target.js';
import { lockedByAnother, lockTarget } from './target-lock.js';

/**
 * An image is restored into `.<name>.chunkmount-part` beside its target, and gets its name when it is complete and on disk.
 * Beside it, `….json` says which disk it is to become and how far it may have come. That record only saves time. Nothing that is
 * in a partial file is believed: whatever may have been written is read and hashed again, and whatever lies behind is cut off.
 */
const SUFFIX = '.chunkmount-part';

const recordSchema = v.object({
  format: v.literal('chunkmount-restore'),
  version: v.literal(1),
  /** What `identifyDisk` gave. */
  source: v.string(),
  /** No chunk from this one on has been written. */
  reached: v.pipe(v.number(), v.safeInteger(), v.minValue(0), v.maxValue(MAX_CHUNK_COUNT)),
});

type PartialRecord = v.InferOutput<typeof recordSchema>;

/** Which disk of which backup: what all its sums and its shape come to. */
export async function identifyDisk(source: ChunkSource): Promise<string> {
  const { target, size, chunkSize } = source.disk;
  const { buffer, byteOffset, byteLength } = source.sums.hashes;
  const hash = new Uint32Array(2);
  (await createHasher()).hash(new Uint8Array(buffer, byteOffset, byteLength), hash, 0);
  return `${target} ${size} ${chunkSize} ${formatHash(hash[0]!, hash[1]!)}`;
}

function parseRecord(text: string | undefined): PartialRecord | undefined {
  if (text === undefined) return undefined;
  try {
    return v.parse(recordSchema, JSON.parse(text));
  } catch {
    return undefined;
  }
}

function open(file: string): number {
  const { O_CREAT, O_NOFOLLOW, O_RDWR } = fs.constants;
  let fd: number;
  try {
    fd = fs.openSync(file, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600);
  } catch (error) {
    throw failed(`${file} cannot be written: ${systemCode(error) ?? error}`, { cause: error });
  }
  const stat = fs.fstatSync(fd);
  // In a directory that others may write to, somebody could have put a file of theirs there.
  if (stat.isFile() && stat.nlink === 1 && stat.uid === process.geteuid?.()) return fd;
  fs.closeSync(fd);
  throw failed(`${file} is not a partial image of ours`, { hint: 'look at it and remove it' });
}

/** Makes our file `part` as large as the disk. ext4 takes no file above 16 TiB, FAT none above 4 GiB: then nothing is left of a new one. */
function enlarge(fd: number, part: string, target: string, { target: disk, size }: ManifestDisk): void {
  try {
    fs.ftruncateSync(fd, size);
  } catch (error) {
    if (fs.fstatSync(fd).size === 0) fs.rmSync(part, { force: true });
    throw failed(`${target} cannot be as large as ${disk}, ${size} bytes: ${messageOf(error)}`, {
      hint: 'give a place on a file system that takes files of that size',
      cause: error,
    });
  }
}

async function lock(fd: number, file: string, target: string): Promise<void> {
  await lockTarget(fd, target);
  const there = fs.statSync(file, { throwIfNoEntry: false });
  if (there?.ino !== fs.fstatSync(fd).ino) throw lockedByAnother(target);
}

/** A partly restored image. */
export class PartialFile {
  private constructor(
    readonly fd: number,
    readonly file: string,
    private readonly target: Target,
    private readonly source: string,
    /** Chunks below this one may be there already; everything behind is a hole. */
    readonly compareBelow: number,
    /** How many bytes an earlier restore of another backup had left, which are gone. */
    readonly discarded: number,
  ) {}

  /** `converted`: the qcow2 image that is made of `part`. */
  static paths(target: string): { part: string; record: string; converted: string } {
    const part = path.join(path.dirname(target), `.${path.basename(target)}${SUFFIX}`);
    return { part, record: `${part}.json`, converted: `${part}.qcow2` };
  }

  /** Makes or reopens the partial file for `target`, as large as the disk. Throws kind `locked` if another process has it. */
  static async open(target: Target, source: ChunkSource): Promise<PartialFile> {
    const { part, record } = PartialFile.paths(target.file);
    const identity = await identifyDisk(source);
    const fd = open(part);
    try {
      await lock(fd, part, target.file);
      const { size, chunkSize, chunkCount } = source.disk;
      const before = fs.fstatSync(fd).size;
      const known = parseRecord(readIfExists(record));
      const mine = before > 0 && known?.source === identity;
      const reached = mine ? Math.min(known.reached, chunkCount) : 0;
      fs.ftruncateSync(fd, Math.min(reached * chunkSize, size));
      if (fs.fstatSync(fd).size < size) enlarge(fd, part, target.file, source.disk);
      return new PartialFile(fd, part, target, identity, reached, mine ? 0 : before);
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
  }

  /**
   * Notes that chunks below `reached` may have been written, for a restore that goes on from here. Never throws: what keeps us from
   * noting it, most of all a full file system, also ends the restore, which says more of it; and nobody could catch it in a timer.
   */
  note(reached: number): void {
    const record: PartialRecord = { format: 'chunkmount-restore', version: 1, source: this.source, reached };
    const { record: file } = PartialFile.paths(this.target.file);
    const temporary = `${file}.tmp`;
    // No fsync: a lost or old record costs time, never correctness.
    try {
      fs.rmSync(temporary, { force: true });
      fs.writeFileSync(temporary, `${JSON.stringify(record)}\n`, { mode: 0o600, flag: 'wx' });
      fs.renameSync(temporary, file);
    } catch (error) {
      if (isDiskFull(error)) fs.rmSync(temporary, { force: true });
    }
  }

  /**
   * Gives `file` (this one, or what was made of it, on disk already) the target's name, unless something else came to be there
   * meanwhile. Afterwards nothing of the partial file is left.
   */
  async publish(file: string = this.file): Promise<void> {
    await takePlace(file, this.target);
    const { part, record, converted } = PartialFile.paths(this.target.file);
    // The last one may be left of a conversion that was killed, when the image is now restored as raw.
    for (const one of [part, record, converted]) fs.rmSync(one, { force: true });
    fsyncDirectory(path.dirname(this.target.file));
  }

  close(): void {
    fs.closeSync(this.fd);
  }
}
