import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { geometry } from '../../src/chunks/geometry.js';
import { sections } from '../../src/content-index/index-file.js';
import {
  BLOCK_LOADED,
  createRows,
  RESOLVED,
  ROWS_PER_BLOCK,
  type Rows,
  UNKNOWN,
} from '../../src/content-index/rows.js';
import { saveIndex } from '../../src/content-index/save-index.js';
import { build, requireAll } from '../support/requirements.js';
import { CHUNK, hasher, header } from './sample-index.js';

/** One block, so that what is copied is what is being written. */
const COUNT = ROWS_PER_BLOCK;
const LAYOUT = sections(COUNT);
const OLD = { hash: 7, mtime: 800 };
const NEW_MTIME = 1000;
const ROUNDS = 100;

// In memory where there is such a directory: fsync would leave little time for races.
const directory = fs.mkdtempSync(
  path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'chunkmount-'),
);
const file = path.join(directory, 'vda.v1');

beforeAll(() => requireAll(build));
afterAll(() => fs.rmSync(directory, { recursive: true }));

/** Makes rows what they were when the previous session ended. */
function reset(rows: Rows): void {
  rows.hashes.fill(OLD.hash);
  rows.mtimes.fill(OLD.mtime);
  rows.blocks.fill(BLOCK_LOADED);
  rows.states.fill(UNKNOWN);
  Atomics.store(rows.control, RESOLVED, 0);
}

/** How many rows of the saved file are old, new, and in between; throws for a change that the next session would not see. */
function inspect(bytes: Buffer): { old: number; new: number; between: number } {
  const found = { old: 0, new: 0, between: 0 };
  for (let chunk = 0; chunk < COUNT; chunk++) {
    const at = LAYOUT.hashes + chunk * 8;
    const isOldHash = bytes.readUInt32LE(at) === OLD.hash && bytes.readUInt32LE(at + 4) === OLD.hash;
    const isOldMtime = bytes.readUInt32LE(LAYOUT.mtimes + chunk * 4) === OLD.mtime;
    if (isOldHash && isOldMtime) found.old++;
    else if (!isOldHash && !isOldMtime) found.new++;
    else if (isOldMtime) throw new Error(`row ${chunk} has its new hash with its old mtime`);
    else found.between++;
  }
  return found;
}

/** A thread that resolves all chunks of a disk of zeros when told to. */
async function resolver(rows: Rows): Promise<Worker> {
  const disk = geometry(COUNT * CHUNK, CHUNK);
  const times = { snapshot: NEW_MTIME, newest: OLD.mtime, unsettled: 0 };
  // One by one: each row is announced, which takes time to be caught at.
  const ranges = Array.from({ length: COUNT }, (_, chunk) => [chunk, chunk + 1]);
  const workerData = { disk, rows, times, reads: new Int32Array(0), pauseMs: 0, work: { ranges } };
  const worker = new Worker(new URL('./resolver-worker.mjs', import.meta.url), { workerData });
  await new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
  return worker;
}

describe('saveIndex while chunks are being resolved', () => {
  it('never saves a new hash with its old mtime, and what it saves is whole', async () => {
    let caught = 0;
    const rows = createRows(COUNT);
    const worker = await resolver(rows);
    for (let round = 0; round < ROUNDS; round++) {
      reset(rows);
      worker.postMessage('go');
      let last = { old: COUNT, new: 0, between: 0 };
      while (last.new < COUNT) {
        const done = Atomics.load(rows.control, RESOLVED) === COUNT;
        saveIndex(file, header(COUNT), rows, undefined, hasher);
        last = inspect(fs.readFileSync(file));
        if (last.old > 0 && last.new > 0) caught++;
        if (done) expect(last.new).toBe(COUNT);
      }
    }
    await worker.terminate();
    // Else this test has seen nothing.
    expect(caught).toBeGreaterThan(ROUNDS / 10);
  });
});
