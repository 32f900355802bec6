import * as fs from 'node:fs';
import { failed, systemCode, usage } from '../errors.js';
import type { ChunkSource } from './chunk-source.js';
import { looksLike } from './other-formats.js';
import { interrupted, type RestoreJob } from './restore-request.js';
import type { Target } from './target.js';
import { lockTarget } from './target-lock.js';
import { syncTarget } from './target-writer.js';
import { type WriteResult, writeChunks } from './write-chunks.js';

export type OverwritableTarget = Exclude<Target, { kind: 'nothing' }>;

function refuseSmallDevice({ disk }: ChunkSource, { file, size }: Extract<Target, { kind: 'device' }>): void {
  if (size >= disk.size) return;
  throw usage(`${file} is too small: it has ${size} bytes, ${disk.target} has ${disk.size}`, {
    hint: 'nothing was written; enlarge it (lvextend) or take another one',
  });
}

/** Behind the end of the disk there may be anything, most likely because it is another disk's. */
function refuseLargerFile({ disk }: ChunkSource, { file, size }: Extract<Target, { kind: 'file' }>): void {
  if (size <= disk.size) return;
  throw usage(
    `${file} is larger than ${disk.target}: it has ${size} bytes, ${disk.target} has ${disk.size}`,
    {
      hint: 'nothing was written; is it that disk? To cut it off and overwrite it all the same: --force',
    },
  );
}

function refuseOtherFormat(fd: number, { file }: Target): void {
  const format = looksLike(fd);
  if (format === undefined) return;
  throw usage(`${file} looks like a ${format} image, and --delta writes a raw one`, {
    hint: 'restore to a new file with --format=qcow2, or overwrite it all the same: --force',
  });
}

function open(target: Target): number {
  const { O_RDWR, O_EXCL } = fs.constants;
  try {
    // On a block device O_EXCL means: not while it is mounted, or part of something else. See open(2).
    return fs.openSync(target.file, target.kind === 'device' ? O_RDWR | O_EXCL : O_RDWR);
  } catch (error) {
    if (target.kind === 'device' && systemCode(error) === 'EBUSY') {
      throw failed(`${target.file} is in use`, {
        hint: 'it is mounted, or part of a volume group or RAID: see lsblk',
        cause: error,
      });
    }
    throw failed(`${target.file} cannot be opened: ${systemCode(error) ?? error}`, { cause: error });
  }
}

/** Opens what is to be overwritten, after a look at whether it can be that disk. */
async function openTarget({ request, source }: RestoreJob, target: OverwritableTarget): Promise<number> {
  if (target.kind === 'device') refuseSmallDevice(source, target);
  else if (!request.force) refuseLargerFile(source, target);
  const fd = open(target);
  try {
    if (!request.force) refuseOtherFormat(fd, target);
    await lockTarget(fd, target.file, { device: target.kind === 'device' });
    return fd;
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}

/** Makes a file as large as the disk, or as small. Even to the same size that would change its mtime. */
function setSize(fd: number, target: OverwritableTarget, size: number, change: 'extend' | 'cut'): void {
  if (target.kind === 'device') return;
  const now = fs.fstatSync(fd).size;
  if (change === 'extend' ? now < size : now > size) fs.ftruncateSync(fd, size);
}

/** Changes an existing block device or file where it is. Throws kind `locked` if another restore does so. */
export async function overwriteTarget(job: RestoreJob, target: OverwritableTarget): Promise<WriteResult> {
  const { source, request, reporter, signal } = job;
  const { keepGoing, delta } = request;
  const targetFd = await openTarget(job, target);
  const compareBelow = delta ? source.disk.chunkCount : 0;
  let written = 0;
  const onTick = (_: number, count: number) => {
    written = count;
  };
  try {
    setSize(targetFd, target, source.disk.size, 'extend');
    const where = { target: target.file, targetFd, direct: !delta, compareBelow, rest: 'unknown' } as const;
    const result = await writeChunks({ source, keepGoing, reporter, signal, onTick, ...where });
    if (signal.aborted) throw interrupted(source.disk.target, 'go on with --delta');
    // What lies behind is lost with it: not before all else went well.
    setSize(targetFd, target, source.disk.size, 'cut');
    await syncTarget(targetFd, target.file);
    return result;
  } catch (error) {
    reporter.notice(
      written === 0
        ? `nothing was written to ${target.file}`
        : `${target.file} is half old, half new; to go on without writing again what is there: --delta`,
    );
    throw error;
  } finally {
    fs.closeSync(targetFd);
  }
}
