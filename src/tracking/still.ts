import * as fs from 'node:fs';
import * as v from 'valibot';
import { messageOf } from '../errors.js';
import { usersOfFiles } from '../host/file-users.js';
import { type FileSystemDriver, mountingOf } from '../host/mounted-file-system.js';
import { bootId } from '../host/process-identity.js';
import { isWrittenByQemu } from '../image/image-lock.js';
import { difference, type FileState, FileStateSchema, fileState } from './file-state.js';
import type { Changes, Facts, Observation, TrackedDisk, Tracker } from './tracker.js';

/**
 * File systems of this host alone, whose times are those of our own clock: f_type of statfs(2). Over a network they are a server's,
 * and cached; in memory (tmpfs) writing through a mapping does not change them.
 */
const LOCAL_FILE_SYSTEMS: ReadonlyMap<number, FileSystemDriver> = new Map([
  [0xef53, 'ext4'], // ext2, ext3, ext4
  [0x58465342, 'xfs'],
  [0x9123683e, 'btrfs'],
]);

/** Its data can lie in files that only its own header names. */
const SCATTERED_FORMAT = 'vmdk';

/**
 * A file that was written this shortly before it was looked at may have been written again since without its times telling: an
 * ext3 inode has whole seconds, and the kernel's clock for files lags by up to 10 ms. As in git's index, "racy".
 */
const RACY_MS = 1_500;

/** Time servers move the clock by less than this without its being noticed: they slow it down instead. */
const CLOCK_TOLERANCE_MS = 500;

const FactsSchema = v.object({
  /** Another boot may have come after a crash, which can leave new data with old times. Another host has another one, too. */
  bootId: v.string(),
  /** Milliseconds that the clock was ahead of one that nobody sets. */
  clock: v.number(),
  files: v.array(FileStateSchema),
  /**
   * For each file, when its file system was mounted. One that lost its storage and was mounted again can have new data with old times,
   * too: fdatasync(2), which QEMU brings data to the disk with, leaves the times to be written later, with lazytime a day later.
   */
  mountings: v.optional(v.array(v.string()), []),
});

type StillFacts = v.InferOutput<typeof FactsSchema>;

function none(reason: string): Observation {
  return { kind: 'none', reason };
}

function driverOf(file: string): FileSystemDriver | undefined {
  return LOCAL_FILE_SYSTEMS.get(fs.statfsSync(file).type);
}

/** Every file that the disk's content comes from, with the format it is read in. */
function filesOf({ layers, sources }: TrackedDisk): FileState[] {
  const files = layers.flatMap(({ path, format, dataFile }) => [
    fileState(path, format),
    ...(dataFile === undefined ? [] : [fileState(dataFile.path, 'data')]),
  ]);
  const known = new Set(files.map(({ path }) => path));
  const others = sources.flatMap((source) =>
    source.kind === 'file' && !known.has(source.path) ? [fileState(source.path, 'data')] : [],
  );
  return [...files, ...others];
}

/** Why nothing can be told from the times of the disk's files; undefined if it can. */
async function obstacle(
  { layers, since }: TrackedDisk,
  files: readonly FileState[],
): Promise<string | undefined> {
  if (layers.some(({ format }) => format === SCATTERED_FORMAT))
    return 'the data of a VMDK can lie in other files';
  if (layers.some(({ inUse, nbdExport }) => inUse === true || nbdExport !== undefined))
    return 'a VM has it open for writing';
  for (const { path, mtime, ctime } of files) {
    if (!fs.statSync(path).isFile()) return `${path} is a block device, which has no time of its last write`;
    if (driverOf(path) === undefined)
      return `${path} is not on a local file system whose times can be relied on`;
    const newest = BigInt(mtime) > BigInt(ctime) ? BigInt(mtime) : BigInt(ctime);
    if (newest > BigInt(since - RACY_MS) * 1_000_000n)
      return `${path} was written a moment ago: whether it is written again in the same moment its times would not tell`;
    if (await isWrittenByQemu(path)) return `QEMU has ${path} open for writing`;
  }
  const identities = files.map(({ device, inode }) => ({ device: BigInt(device), inode: BigInt(inode) }));
  const { users, hidden } = usersOfFiles(identities, 'write');
  if (users.length > 0) return `${users.join(', ')} has it open for writing`;
  return hidden
    ? 'not every process shows whether it has it open for writing (that takes root, and in a container CAP_SYS_PTRACE)'
    : undefined;
}

async function observe(disk: TrackedDisk): Promise<Observation> {
  try {
    const files = filesOf(disk);
    const reason = await obstacle(disk, files);
    if (reason !== undefined) return none(reason);
    const clock = Date.now() - Math.round(Number(process.hrtime.bigint() / 1_000_000n));
    const mountings = files.map(({ path }) => mountingOf(path, driverOf(path)!));
    const facts: StillFacts = { bootId: bootId(), clock, files, mountings };
    return { kind: 'facts', facts, lasting: true };
  } catch (error) {
    return none(messageOf(error));
  }
}

function whyUnknown(before: StillFacts, now: StillFacts): string | undefined {
  if (before.bootId !== now.bootId) return 'the host was started since, or it is another one';
  if (now.clock < before.clock - CLOCK_TOLERANCE_MS) return 'the clock was set back';
  if (before.files.length !== now.files.length) return 'the image has more or fewer layers';
  for (const [number, file] of now.files.entries()) {
    const differs = difference(before.files[number]!, file);
    if (differs !== undefined) return `${file.path} ${differs}`;
    if (before.mountings[number] !== now.mountings[number])
      return `the file system of ${file.path} was mounted anew: what was written before may have old times`;
  }
  return undefined;
}

async function changesSince(before: Facts, now: Facts): Promise<Changes> {
  const parsed = v.safeParse(FactsSchema, before);
  const reason = parsed.success
    ? whyUnknown(parsed.output, v.parse(FactsSchema, now))
    : 'what it knew of the last session is damaged';
  return reason === undefined ? { kind: 'known', ranges: [] } : { kind: 'unknown', reason };
}

function stillHolds(facts: Facts): boolean {
  try {
    const { files } = v.parse(FactsSchema, facts);
    return files.every((file) => difference(file, fileState(file.path, file.format)) === undefined);
  } catch {
    return false;
  }
}

/** An image that was not written since: same files, same sizes, same times, and nobody who has them open for writing. */
export const stillTracker: Tracker = { kind: 'still', observe, changesSince, stillHolds };
