import * as fs from 'node:fs';
import * as path from 'node:path';
import { runFilter } from '../../host/exec.js';
import { timeFor } from '../../host/time-for.js';
import { ExtentMapBuilder } from '../../image/extent-map-builder.js';
import { closeSources, openSources } from '../../image/sources.js';
import type { Reporter } from '../../report/reporter.js';
import { createFile } from '../dump-files.js';
import type { LocatedDisk } from '../prepare-disks.js';
import type { Compressor } from './compressor.js';
import { openPipes } from './pipe.js';
import { convertToQcow2 } from './qcow2.js';
import type { OpenOutput, ThreadResult } from './task.js';
import { failureOf, type ReadRequest, runReader, runWriter } from './threads.js';

export type DumpFormat = 'raw' | 'qcow2';

export interface DumpImageRequest {
  readonly target: string;
  readonly disk: LocatedDisk;
  readonly format: DumpFormat;
  readonly compressor: Compressor | undefined;
  /** The file to make; must not exist. */
  readonly file: string;
  /** Where a qcow2 image that is to be compressed is made first; must not exist. */
  readonly scratch: string;
  readonly owner: { readonly uid: number; readonly gid: number };
  /** For pipes. */
  readonly sessionDirectory: string;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

export interface DumpedImage {
  /** Bytes of the file. */
  readonly size: number;
  /** Hex digits. */
  readonly sha256: string;
}

/** Even xz on a slow processor gets this far in a second: the bound for a compressor that hangs. */
const SLOWEST_BYTES_PER_SECOND = 512 * 1024;

/** Writes one disk as an image, and syncs it. What there is of it when this throws is for the caller to remove. */
export async function dumpImage(request: DumpImageRequest): Promise<DumpedImage> {
  const { disk, file, scratch, format, compressor } = request;
  if (format === 'raw') return dumpBytes(request, disk);
  const image = compressor === undefined ? file : scratch;
  fs.closeSync(createFile(image, request.owner));
  const { layers } = disk;
  await convertToQcow2({ ...request, layers, dataBytes: disk.extents.dataBytes, file: image });
  const written = await dumpBytes(request, fileAsDisk(image));
  if (compressor !== undefined) fs.rmSync(scratch);
  return written;
}

type Bytes = Pick<LocatedDisk, 'extents' | 'sources' | 'virtualSize' | 'view'>;

/** QEMU writes a qcow2 image in no order, so its sum takes reading it, as compressing it does. */
function fileAsDisk(file: string): Bytes {
  const { size } = fs.statSync(file);
  const map = new ExtentMapBuilder();
  map.addData(size, 0, 0);
  return {
    extents: map.finish(),
    sources: [{ kind: 'file', path: file, size }],
    virtualSize: size,
    view: undefined,
  };
}

async function dumpBytes(request: DumpImageRequest, bytes: Bytes): Promise<DumpedImage> {
  const { target, file, format, compressor, reporter, signal } = request;
  const sources = openSources(bytes.sources, bytes.virtualSize, bytes.view);
  const read = (into: ReadRequest['into']) =>
    runReader({
      disk: target,
      extents: bytes.extents.shared,
      sources,
      into,
      size: bytes.virtualSize,
      label: path.basename(file, '.partial'),
      reporter,
      signal,
    });
  try {
    if (format === 'qcow2' && compressor === undefined) {
      return finished(request, [await read({ kind: 'nothing' })]);
    }
    const fd = createFile(file, request.owner);
    try {
      if (compressor !== undefined) return await compress(request, compressor, { fd, path: file }, read);
      return finished(request, [await read({ kind: 'file', fd, path: file })]);
    } finally {
      fs.closeSync(fd);
    }
  } finally {
    closeSources(sources);
  }
}

/** The disk goes through a pipe into the program, and what that makes of it through another one into the file. */
async function compress(
  request: DumpImageRequest,
  { program, args }: Compressor,
  output: OpenOutput,
  read: (into: ReadRequest['into']) => Promise<ThreadResult>,
): Promise<DumpedImage> {
  const { sessionDirectory, target, disk, signal } = request;
  const name = path.join(sessionDirectory, target);
  const [input, compressed] = await openPipes(`${name}.in`, `${name}.out`);
  const timeoutMs = timeFor(disk.virtualSize, SLOWEST_BYTES_PER_SECOND);
  const ends = { stdin: input.read, stdout: compressed.write };
  const pipe = { kind: 'pipe', fd: input.write, path: `the pipe to ${program}` } as const;
  const [writing, reading, running] = await Promise.all([
    // Whichever of the three ends first closes its ends of the pipes, and so makes the others end.
    runWriter({ from: compressed.read, into: output }).finally(() => fs.closeSync(compressed.read)),
    read(pipe).finally(() => fs.closeSync(input.write)),
    runFilter(program, args, ends, { timeoutMs, signal }).then(
      () => undefined,
      (error: unknown) => error,
    ),
  ]);
  // A reader whose pipe broke only says that the program has ended.
  const broken = reading.kind === 'failure' && reading.outputCode === 'EPIPE';
  finished(request, broken ? [writing] : [writing, reading]);
  if (running !== undefined) throw running;
  return finished(request, [reading, writing]);
}

/** What the last thread wrote, if all worked; throws why the first of the others did not. */
function finished({ signal }: DumpImageRequest, results: readonly ThreadResult[]): DumpedImage {
  signal?.throwIfAborted();
  for (const result of results) if (result.kind === 'failure') throw failureOf(result);
  const { size, sha256 } = results.at(-1) as Extract<ThreadResult, { kind: 'done' }>;
  return { size, sha256 };
}
