import { createHash } from 'node:crypto';
import * as path from 'node:path';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Files that take longest, by what they took on two processors: from five minutes down to fifty seconds. */
const LONG: readonly string[] = [
  'crash/crash',
  'snapshot/overlay-crash',
  'restore/boot',
  'chain/crash',
  'chain/chain',
  'cli/overlay-odd',
  'cli/dump',
  'cli/overlay-die',
  'cli/bitmap-odd',
  'cli/predecessors',
  'image/inspect',
  'cli/images',
  'snapshot/freeze-domain',
  'cli/zero-chunks',
  'cli/reflink-odd',
  'snapshot/overlay-others',
  'guest/guest',
  'image/image-reader',
  'chain/changes',
  'cli/dump-failures',
  'restore/boot-crash',
  'snapshot/pull-crash',
  'cli/crash',
  'crash/pull',
].map((name) => path.join(import.meta.dirname, '..', `${name}.test.ts`));

function rank({ moduleId }: TestSpecification): number {
  const found = LONG.indexOf(moduleId);
  return found === -1 ? LONG.length : found;
}

/** Any order that does not put neighbours of a directory into the same part. */
function mixed({ moduleId }: TestSpecification): string {
  return createHash('sha1').update(path.basename(moduleId)).digest('hex');
}

/**
 * Deals the files out to the parts of a run (`--shard`) so that each gets one of the longest, the first part the longest of
 * all. So whoever begins the parts in order ends them at about the same time.
 */
export class LongestFirst extends BaseSequencer {
  override async shard(files: TestSpecification[]): Promise<TestSpecification[]> {
    const { index, count } = this.ctx.config.shard!;
    const missing = LONG.filter((name) => !files.some(({ moduleId }) => moduleId === name));
    if (missing.length > 0) throw new Error(`there are no such tests any more: ${missing.join(', ')}`);
    return files
      .map((file) => ({ file, rank: rank(file), mixed: mixed(file) }))
      .sort((a, b) => a.rank - b.rank || (a.mixed < b.mixed ? -1 : 1))
      .filter((_, position) => position % count === index - 1)
      .map(({ file }) => file);
  }
}
