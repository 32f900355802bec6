import { CHUNKS_PER_DIRECTORY } from '../chunks/geometry.js';
import { chunkPath, layoutOf } from '../chunks/layout.js';
import type { ManifestDisk } from '../chunks/manifest.js';
import { MANIFEST_NAME } from '../chunks/paths.js';
import { ChunkmountError, failed, usage } from '../errors.js';
import { scriptUrl } from '../host/program-files.js';
import type { Reporter } from '../report/reporter.js';
import type { ChunkSource } from './chunk-source.js';
import { differingRanges, hashText } from './compare.js';
import { sourceWithSums } from './open-source.js';
import type { PlainShape } from './plain-tree.js';
import { type ChunkDifference, fileProblem, type Problem } from './problem.js';
import type { Sample } from './sample.js';
import { readSums, type Sums } from './sums.js';
import { Tree } from './tree.js';
import { checkDiskDirectory, checkTopLevel } from './tree-check.js';
import type { VerifyTask } from './verify-worker.js';
import { blockChunks, WorkQueue } from './work-queue.js';
import { MAX_LISTED, runPool } from './worker-pool.js';

export interface VerifyRequest {
  /** Directory of the tree. */
  readonly tree: string;
  /** Targets; all disks if undefined. */
  readonly disks?: readonly string[] | undefined;
  readonly sample: Sample;
  /** Directory of a tree that this one, or those disks of it, shall be equal to. */
  readonly against?: string | undefined;
  /** The tree is a copy of a chunkfs mount. */
  readonly plain?: PlainShape | undefined;
  readonly reporter: Reporter;
  readonly signal: AbortSignal;
}

export interface DiskReport {
  readonly disk: string;
  /** In bytes. */
  readonly size: number;
  readonly chunks: number;
  /** Chunks whose content was read and is right. */
  readonly verified: number;
}

/** With the tree that this one shall be equal to. */
export interface Comparison {
  readonly tree: string;
  readonly equal: boolean;
  /** How many of the problems are differences between the two. */
  readonly differenceCount: number;
}

export interface VerifyReport {
  readonly tree: string;
  /** Null when the manifest cannot be read. */
  readonly name: string | null;
  readonly snapshotTime: string | null;
  readonly consistency: string | null;
  /** The tree by itself, whatever it was compared with. Without sums: complete, as far as can be told. */
  readonly intact: boolean;
  /** Null if it was compared with no other tree. */
  readonly against: Comparison | null;
  /** False for a copy of a chunkfs mount: then only the sizes of the chunks were looked at. */
  readonly hasSums: boolean;
  readonly disks: readonly DiskReport[];
  /**
   * How many things are wrong, without what does not belong there beyond the first 100,000 of a disk. `problems` may list fewer:
   * 100,000 chunks and 1000 lines of sums a disk.
   */
  readonly problemCount: number;
  readonly problems: readonly Problem[];
}

/** What was found so far. */
class Problems {
  readonly list: Problem[] = [];
  count = 0;
  differenceCount = 0;

  add(problems: readonly Problem[], count: number = problems.length): void {
    for (const problem of problems) this.list.push(problem);
    this.count += count;
  }

  /** Adds what is wrong only when compared with another tree. */
  addDifferences(problems: readonly Problem[], count: number = problems.length): void {
    this.add(problems, count);
    this.differenceCount += count;
  }
}

/**
 * Reads a tree and compares it with its sums, and these with another tree's. What is wrong with the tree is in the report, never
 * thrown, except for a directory that is none, unknown disks (usage) and an abort (failed).
 */
export async function verifyTree(request: VerifyRequest): Promise<VerifyReport> {
  let tree: Tree;
  try {
    tree = Tree.open(request.tree, request.plain);
  } catch (error) {
    if (!(error instanceof ChunkmountError) || error.kind !== 'integrity') throw error;
    return unreadableTree(request.tree, error);
  }
  try {
    return await verifyOpened(tree, request);
  } finally {
    tree.close();
  }
}

const NOTHING_KNOWN = { name: null, snapshotTime: null, consistency: null };

function unreadableTree(directory: string, error: ChunkmountError): VerifyReport {
  const { hint } = error;
  const problem = fileProblem('manifest', MANIFEST_NAME, error);
  const problems = [hint === undefined ? problem : { ...problem, hint }];
  const nothing = { ...NOTHING_KNOWN, hasSums: true, against: null, disks: [] };
  return { tree: directory, ...nothing, intact: false, problemCount: 1, problems };
}

async function verifyOpened(tree: Tree, request: VerifyRequest): Promise<VerifyReport> {
  const { name, snapshotTime, consistency } = tree.isPlain ? NOTHING_KNOWN : tree.manifest;
  const disks = request.disks?.map((target) => tree.disk(target)) ?? tree.manifest.disks;
  if (tree.isPlain && request.against !== undefined) {
    throw usage('a copy of a chunkfs mount has no sums to compare', { hint: 'leave out --against' });
  }
  const other = request.against === undefined ? undefined : Tree.open(request.against);
  try {
    // First of all: a tree that it cannot be compared with is not to be found out about after hours of reading.
    const differences = new Map(
      other === undefined ? [] : disks.map((disk) => [disk, compareWith(tree, other, disk)]),
    );
    const problems = new Problems();
    problems.add(checkTopLevel(tree));
    const reports: DiskReport[] = [];
    for (const disk of disks) {
      reports.push(await verifyDisk(tree, disk, request, problems));
      const found = differences.get(disk);
      if (found !== undefined) problems.addDifferences(found.listed, found.count);
    }
    if (other !== undefined && request.disks === undefined)
      problems.addDifferences(missingDisks(tree, other));
    const { list, count: problemCount, differenceCount } = problems;
    const facts = { tree: tree.root, name, snapshotTime, consistency, hasSums: !tree.isPlain };
    const against =
      other === undefined ? null : { tree: other.root, equal: differenceCount === 0, differenceCount };
    const intact = problemCount === differenceCount;
    return { ...facts, intact, against, disks: reports, problemCount, problems: list };
  } finally {
    other?.close();
  }
}

async function verifyDisk(
  tree: Tree,
  disk: ManifestDisk,
  request: VerifyRequest,
  problems: Problems,
): Promise<DiskReport> {
  const sums = readSums(tree, disk);
  problems.add(
    sums.problems.map((error) => fileProblem('sums', disk.sums, error)),
    sums.problemCount,
  );
  problems.add(checkDiskDirectory(tree, disk.target));
  const verified = await verifyChunks(tree, disk, sums, request, problems);
  return { disk: disk.target, size: disk.size, chunks: disk.chunkCount, verified };
}

/** Lets the workers read the chunks. Returns how many were read and right. */
async function verifyChunks(
  tree: Tree,
  disk: ManifestDisk,
  sums: Sums,
  { sample, reporter, signal }: VerifyRequest,
  problems: Problems,
): Promise<number> {
  let source: ChunkSource;
  try {
    source = await sourceWithSums(tree, disk, sums);
  } catch (error) {
    // Said by checkDiskDirectory: it is a link or a file, or cannot be opened.
    if (error instanceof ChunkmountError) return 0;
    throw error;
  }
  try {
    const queue = WorkQueue.create(
      disk.chunkCount,
      Math.min(blockChunks(disk.chunkSize), CHUNKS_PER_DIRECTORY),
    );
    const task: VerifyTask = { source: source.share(), queue: queue.shared, sample };
    const worker = scriptUrl('restore/verify-worker.js');
    const label = `verifying ${disk.target}`;
    const {
      damage,
      damageCount,
      problems: found,
    } = await runPool({
      worker,
      task,
      queue,
      disk,
      label,
      reporter,
      signal,
    });
    if (signal.aborted) throw failed(`the verification of ${tree.root} was interrupted`);
    problems.add(damage, damageCount);
    problems.add(found);
    return queue.counted('verified');
  } finally {
    source.close();
  }
}

/** The disks that only another tree has. */
function missingDisks(tree: Tree, other: Tree): Problem[] {
  const here = new Set(tree.manifest.disks.map(({ target }) => target));
  return other.manifest.disks
    .filter(({ target }) => !here.has(target))
    .map(({ target }) => noDisk(tree, target));
}

function noDisk(tree: Tree, target: string): Problem {
  return { kind: 'disk', path: target, message: `${tree.root} has no disk ${target}` };
}

interface Differences {
  /** At most MAX_LISTED. */
  readonly listed: readonly Problem[];
  readonly count: number;
}

/** Names the chunks that another tree has other sums of. Throws if that one has damaged sums, or another chunk size. */
function compareWith(tree: Tree, other: Tree, disk: ManifestDisk): Differences {
  const theirs = other.manifest.disks.find(({ target }) => target === disk.target);
  if (theirs === undefined) return { listed: [noDisk(other, disk.target)], count: 1 };
  const otherSums = readSums(other, theirs);
  const [problem] = otherSums.problems;
  if (problem !== undefined) throw problem;
  const [here, there] = [
    { disk, sums: readSums(tree, disk) },
    { disk: theirs, sums: otherSums },
  ];
  const listed: ChunkDifference[] = [];
  let count = 0;
  for (const range of differingRanges(here, there)) {
    count += range.count;
    for (let chunk = range.first; chunk < range.first + range.count && listed.length < MAX_LISTED; chunk++) {
      const path = `${disk.directory}/${chunkPath(layoutOf(disk.layout), chunk)}`;
      const [expected, found] = [hashText(there, chunk), hashText(here, chunk)];
      listed.push({ kind: 'differs', disk: disk.target, chunk, path, expected, found });
    }
  }
  return { listed, count };
}
