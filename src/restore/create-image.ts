import * as fs from 'node:fs';
import * as path from 'node:path';
import { PartialFile } from './partial-file.js';
import { interrupted, type RestoreJob } from './restore-request.js';
import type { Target } from './target.js';
import { syncTarget } from './target-writer.js';
import { convertToQcow2 } from './to-qcow2.js';
import { type WriteResult, writeChunks } from './write-chunks.js';

/** Makes a new image file, or one that takes another's place. See PartialFile for how it survives an interruption. */
export async function createImage(job: RestoreJob, target: Target): Promise<WriteResult> {
  const partial = await PartialFile.open(target, job.source);
  try {
    tellAboutPartial(partial, job, target);
    warnIfSmall(partial, job);
    const result = await fill(partial, job, target);
    await finish(partial, job, target);
    return result;
  } catch (error) {
    if (fs.existsSync(partial.file)) {
      job.reporter.notice(
        `what has been restored is kept in ${partial.file}: the same command goes on from there`,
      );
    }
    throw error;
  } finally {
    partial.close();
  }
}

async function fill(partial: PartialFile, job: RestoreJob, target: Target): Promise<WriteResult> {
  const { source, reporter, signal } = job;
  const { keepGoing } = job.request;
  const { fd: targetFd, compareBelow } = partial;
  const onTick = (reached: number) => partial.note(Math.max(reached, compareBelow));
  onTick(0);
  // What is converted afterwards is read once more.
  const direct = job.request.format === 'raw';
  const where = { target: target.file, targetFd, direct, compareBelow, rest: 'zeros', onTick } as const;
  const result = await writeChunks({ source, keepGoing, reporter, signal, ...where });
  if (signal.aborted) throw interrupted(source.disk.target, 'run the same command again to go on');
  return result;
}

async function finish(
  partial: PartialFile,
  { request, reporter, signal }: RestoreJob,
  target: Target,
): Promise<void> {
  if (request.format === 'raw') {
    reporter.debug(`waiting until ${partial.file} is on disk`);
    await syncTarget(partial.fd, target.file);
    await partial.publish();
    return;
  }
  const { converted: qcow2 } = PartialFile.paths(target.file);
  await convertToQcow2({ raw: partial.file, qcow2, compression: request.compression, reporter, signal });
  const fd = fs.openSync(qcow2, 'r+');
  try {
    await syncTarget(fd, target.file);
  } finally {
    fs.closeSync(fd);
  }
  await partial.publish(qcow2);
  reporter.debug(`${target.file} has been converted to qcow2`);
}

function tellAboutPartial(partial: PartialFile, { reporter, source }: RestoreJob, target: Target): void {
  const { disk } = source;
  if (partial.discarded > 0) {
    reporter.notice(`an unfinished restore of another backup to ${target.file} is discarded`);
  }
  if (partial.compareBelow === 0) return;
  const percent = Math.floor((100 * partial.compareBelow) / disk.chunkCount);
  reporter.notice(
    `going on with an interrupted restore: the first ${percent} % are checked, and written only where wrong`,
  );
}

/** A warning only: a file system that compresses may still hold it. */
function warnIfSmall(partial: PartialFile, { reporter, source, request }: RestoreJob): void {
  const { disk } = source;
  let data = 0;
  for (let i = 0; i < disk.chunkCount; i++) if (!source.isZero(i)) data++;
  const images = request.format === 'qcow2' && request.compression === undefined ? 2 : 1;
  const directory = path.dirname(partial.file);
  const { bavail, bsize } = fs.statfsSync(directory);
  const needed = data * disk.chunkSize * images - fs.fstatSync(partial.fd).blocks * 512;
  if (needed <= bavail * bsize) return;
  reporter.warn(
    `${directory} may fill up: ${mebibytes(bavail * bsize)} are left, up to ${mebibytes(needed)} are needed`,
  );
}

function mebibytes(bytes: number): string {
  return `${Math.ceil(bytes / 1024 / 1024)} MiB`;
}
