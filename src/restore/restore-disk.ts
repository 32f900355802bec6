import { usage } from '../errors.js';
import { refuseIfUsedByQemu } from '../image/image-lock.js';
import { createImage } from './create-image.js';
import { openSource } from './open-source.js';
import { overwriteTarget } from './overwrite-target.js';
import type { RestoreContext, RestoreJob, RestoreRequest } from './restore-request.js';
import { examineTarget, type Target } from './target.js';
import type { Tree } from './tree.js';
import type { WriteResult } from './write-chunks.js';

export interface RestoreResult extends Omit<WriteResult, 'reached'> {
  readonly disk: string;
  /** Absolute path of the image. */
  readonly to: string;
  readonly format: 'raw' | 'qcow2';
  /** In bytes. */
  readonly size: number;
  readonly chunkSize: number;
  readonly chunks: number;
}

/**
 * Restores the disk `disk` of a tree to a file or block device. Every chunk is checked while it is read. A file is
 * written beside its place and appears there when it is complete and on disk; when it is interrupted, the next call with the same
 * tree and target goes on. Throws: `usage` for a target that cannot be, `integrity` (DamageError) for the first damaged chunk
 * unless `keepGoing`, `failed` when `signal` was aborted or the target cannot be written.
 */
export async function restoreDisk(
  tree: Tree,
  disk: string,
  request: RestoreRequest,
  context: RestoreContext,
): Promise<RestoreResult> {
  tree.disk(disk);
  const target = await checkPlace(request);
  const source = await openSource(tree, disk, { evenWithoutSums: request.keepGoing });
  try {
    const job: RestoreJob = { ...context, source, request };
    const { reached, ...result } = await (target.kind !== 'nothing' && inPlace(request, target)
      ? overwriteTarget(job, target)
      : createImage(job, target));
    const { size, chunkSize, chunkCount } = source.disk;
    const { file: to } = target;
    return { disk, to, format: request.format, size, chunkSize, chunks: chunkCount, ...result };
  } finally {
    source.close();
  }
}

/** Looks at the place, and throws as restoreDisk does for one that cannot be. Changes nothing. */
export async function checkPlace(request: RestoreRequest): Promise<Target> {
  const target = examineTarget(request.to);
  checkRequest(request, target);
  if (target.kind !== 'nothing') await refuseIfUsedByQemu(target.file);
  return target;
}

function inPlace(request: RestoreRequest, target: Target): boolean {
  return request.delta || target.kind === 'device';
}

function checkRequest(request: RestoreRequest, target: Target): void {
  if (request.compression !== undefined && request.format !== 'qcow2') {
    throw usage('only qcow2 images can be compressed', { hint: 'add --format=qcow2' });
  }
  if (inPlace(request, target) && request.format !== 'raw') {
    const why = request.delta ? '--delta' : 'a block device';
    throw usage(`${why} goes with raw images only`, { hint: 'leave out --format, or restore to a new file' });
  }
  if (request.delta) {
    if (target.kind === 'nothing')
      throw usage(`${target.file} does not exist`, { hint: 'leave out --delta' });
    return;
  }
  if (target.kind === 'nothing' || request.force) return;
  const what = target.kind === 'device' ? 'is a block device' : 'exists';
  throw usage(`${target.file} ${what}`, {
    hint: 'overwrite it: --force, or write only what differs: --delta',
  });
}
