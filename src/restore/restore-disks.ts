import * as path from 'node:path';
import { FinishedImages } from './finished-images.js';
import { openSource } from './open-source.js';
import { identifyDisk } from './partial-file.js';
import { checkPlace, type RestoreResult, restoreDisk } from './restore-disk.js';
import type { RestoreContext, RestoreRequest } from './restore-request.js';
import { examineTarget } from './target.js';
import type { Tree } from './tree.js';

interface Pending {
  readonly target: string;
  readonly request: RestoreRequest;
  /** See identifyDisk. */
  readonly source: string;
}

/**
 * Restores a disk of a tree, or several to files in one directory, one after the other. All places are looked at before anything is written.
 * After an interruption the same call goes on: a disk that was complete, and that nobody has touched since, is not restored again.
 * Throws as restoreDisk does.
 */
export async function* restoreDisks(
  tree: Tree,
  requests: ReadonlyMap<string, RestoreRequest>,
  context: RestoreContext,
): AsyncGenerator<RestoreResult, void, undefined> {
  const [first, second] = requests;
  if (first === undefined) return;
  if (second === undefined) {
    yield await restoreDisk(tree, ...first, context);
    return;
  }
  const directory = path.dirname(path.resolve(first[1].to));
  const record = new FinishedImages(directory, `${tree.manifest.name}-disks`);
  for (const { target, request, source } of await pendingDisks(tree, requests, record, context)) {
    const result = await restoreDisk(tree, target, request, context);
    if (result.damageCount === 0) record.add(result.to, source);
    yield result;
  }
  record.remove();
}

async function pendingDisks(
  tree: Tree,
  requests: ReadonlyMap<string, RestoreRequest>,
  record: FinishedImages,
  { reporter }: RestoreContext,
): Promise<Pending[]> {
  const pending: Pending[] = [];
  for (const [target, request] of requests) {
    const opened = await openSource(tree, target, { evenWithoutSums: request.keepGoing });
    const source = await identifyDisk(opened).finally(() => opened.close());
    const { file } = examineTarget(request.to);
    // With --delta what is there is read anyway.
    if (!request.delta && record.has(file, source)) {
      reporter.notice(`${target} has been restored to ${file} before`);
      continue;
    }
    await checkPlace(request);
    pending.push({ target, request, source });
  }
  return pending;
}
