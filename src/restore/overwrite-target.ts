import * as fs from 'node:fs';
import { promisify } from 'node:util';
import { failed, systemCode, usage } from '../errors.js';
import type { ChunkSource } from './chunk-source.js';
import { interrupted, type RestoreJob } from './restore-request.js';
import type { Target } from './target.js';
import { type WriteResult, writeChunks } from './write-chunks.js';

const fsync = promisify(fs.fsync);

function openDevice(source: ChunkSource, target: Extract<Target, { kind: 'device' }>): number {
  const { disk } = source;
  if (target.size < disk.size) {
    throw usage(`${target.file} is too small: it has ${target.size} bytes, ${disk.target} has ${disk.size}`, {
      hint: 'nothing was written; enlarge it (lvextend) or take another one',
    });
  }
  const { O_RDWR, O_EXCL } = fs.constants;
  try {
    // On a block device O_EXCL means: not while it is mounted, or part of something else. See open(2).
    return fs.openSync(target.file, O_RDWR | O_EXCL);
  } catch (error) {
    if (systemCode(error) === 'EBUSY') {
      throw failed(`${target.file} is in use`, {
        hint: 'it is mounted, or part of a volume group or RAID: see lsblk',
        cause: error,
      });
    }
    throw failed(`${target.file} cannot be opened: ${systemCode(error) ?? error}`, { cause: error });
  }
}

/** "QFI" and 0xfb: what every qcow2 image begins with. See docs/interop/qcow2.txt of QEMU. */
const QCOW2_MAGIC = Buffer.from([0x51, 0x46, 0x49, 0xfb]);

function openImage({ request, source }: RestoreJob, target: Target): number {
  const fd = fs.openSync(target.file, 'r+');
  const head = Buffer.alloc(QCOW2_MAGIC.byteLength);
  fs.readSync(fd, head, 0, head.byteLength, 0);
  if (head.equals(QCOW2_MAGIC) && !request.force) {
    fs.closeSync(fd);
    throw usage(`${target.file} looks like a qcow2 image, and --delta writes a raw one`, {
      hint: 'restore to a new file with --format=qcow2, or overwrite it all the same: --force',
    });
  }
  // Even to the same size it would change the file's mtime.
  if (fs.fstatSync(fd).size !== source.disk.size) fs.ftruncateSync(fd, source.disk.size);
  return fd;
}

/** Changes an existing block device or file where it is. */
export async function overwriteTarget(job: RestoreJob, target: Target): Promise<WriteResult> {
  const { source, request, reporter, signal } = job;
  const { keepGoing, delta } = request;
  const targetFd = target.kind === 'device' ? openDevice(source, target) : openImage(job, target);
  const compareBelow = delta ? source.disk.chunkCount : 0;
  try {
    const where = { target: target.file, targetFd, direct: !delta, compareBelow, rest: 'unknown' } as const;
    const result = await writeChunks({ source, keepGoing, reporter, signal, ...where });
    if (signal.aborted) throw interrupted(source.disk.target, 'go on with --delta');
    await fsync(targetFd);
    return result;
  } catch (error) {
    reporter.notice(
      `${target.file} is half old, half new; to go on without writing again what is there: --delta`,
    );
    throw error;
  } finally {
    fs.closeSync(targetFd);
  }
}
