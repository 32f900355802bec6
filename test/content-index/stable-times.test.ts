import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { createHasher } from '../../src/chunks/chunk-hash.js';
import {
  changedMtime,
  latestPossibleMtime,
  newMtime,
  type SessionTimes,
} from '../../src/content-index/stable-times.js';
import { openRecord, readTreeRecord, settleRecord } from '../../src/content-index/tree-record.js';

const directory = fs.mkdtempSync(
  path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'chunkmount-'),
);
const hasher = await createHasher();
afterAll(() => fs.rmSync(directory, { recursive: true }));

describe('changedMtime', () => {
  it('is the time of the snapshot', () => {
    expect(changedMtime({ snapshot: 1000, newest: 900, unsettled: 0 }, 800)).toBe(1000);
  });

  it('is later than before although the clock was set back', () => {
    expect(changedMtime({ snapshot: 500, newest: 900, unsettled: 0 }, 800)).toBe(901);
    expect(changedMtime({ snapshot: 900, newest: 900, unsettled: 0 }, 900)).toBe(901);
  });

  it('is later than before although the record was lost', () => {
    expect(changedMtime({ snapshot: 500, newest: 0, unsettled: 0 }, 800)).toBe(801);
  });

  it('is later than what a session that was cut off may have shown', () => {
    expect(changedMtime({ snapshot: 500, newest: 900, unsettled: 950 }, 800)).toBe(951);
    expect(changedMtime({ snapshot: 1000, newest: 900, unsettled: 950 }, 800)).toBe(1000);
  });
});

describe('newMtime', () => {
  it('is later than anything that the tree showed', () => {
    expect(newMtime({ snapshot: 500, newest: 900, unsettled: 0 })).toBe(901);
    expect(newMtime({ snapshot: 1000, newest: 900, unsettled: 0 })).toBe(1000);
    expect(newMtime({ snapshot: 500, newest: 900, unsettled: 950 })).toBe(951);
  });
});

const CHUNKS = 3;

interface Session {
  readonly clock: number;
  /** Of each chunk: its content, and whether anybody looks at it. */
  readonly chunks: readonly { readonly content: number; readonly seen: boolean; readonly saved: boolean }[];
  /** Cut off: only the rows marked as saved are. */
  readonly crash: boolean;
  readonly indexLost: boolean;
}

const session: fc.Arbitrary<Session> = fc.record({
  clock: fc.integer({ min: 1000, max: 1010 }),
  chunks: fc.array(
    fc.record({ content: fc.integer({ min: 1, max: 3 }), seen: fc.boolean(), saved: fc.boolean() }),
    { minLength: CHUNKS, maxLength: CHUNKS },
  ),
  crash: fc.boolean(),
  indexLost: fc.integer({ min: 0, max: 9 }).map((n) => n === 0),
});

interface Row {
  readonly content: number;
  readonly mtime: number;
}

/** What a tree showed over its sessions, with the rules of stable-times.ts and the real record file. */
class History {
  rows: (Row | undefined)[] = Array(CHUNKS).fill(undefined);
  /** The latest mtime that each chunk ever had. */
  readonly latest: number[] = Array(CHUNKS).fill(0);
  /** mtime of the sums file of the last session. */
  sums = 0;

  run(given: Session): void {
    const record = readTreeRecord(directory, hasher);
    const times: SessionTimes = {
      snapshot: given.clock,
      newest: record.newest,
      unsettled: record.unsettled,
    };
    openRecord(directory, record, { times, names: [], rootMtime: 1 }, hasher);
    expect(latestPossibleMtime(times)).toBeGreaterThan(this.sums);
    this.sums = latestPossibleMtime(times);
    if (given.indexLost) this.rows = Array(CHUNKS).fill(undefined);
    const shown = Math.max(...this.latest);
    const found = this.rows.map((row, chunk) => this.#look(given, chunk, row, times));
    for (const [chunk, row] of found.entries()) {
      if (this.rows[chunk] === undefined && row !== undefined) expect(row.mtime).toBeGreaterThan(shown);
    }
    if (given.crash) {
      this.rows = this.rows.map((row, chunk) => (given.chunks[chunk]!.saved ? found[chunk] : row));
      return;
    }
    this.rows = found;
    settleRecord(directory, times, { complete: given.chunks.every(({ seen }) => seen) }, hasher);
  }

  /** The chunk's row after somebody looked at it, or did not. */
  #look(given: Session, chunk: number, row: Row | undefined, times: SessionTimes): Row | undefined {
    const { content, seen } = given.chunks[chunk]!;
    if (!seen) return row;
    if (row?.content === content) return row;
    const mtime = row === undefined ? newMtime(times) : changedMtime(times, row.mtime);
    expect(mtime).toBeGreaterThan(this.latest[chunk]!);
    expect(mtime).toBeGreaterThanOrEqual(given.clock);
    expect(mtime).toBeLessThanOrEqual(latestPossibleMtime(times));
    this.latest[chunk] = mtime;
    return { content, mtime };
  }
}

describe('over many sessions', () => {
  it('a changed chunk is later than it ever was, whatever the clock does and wherever sessions are cut off', () => {
    fc.assert(
      fc.property(fc.array(session, { minLength: 1, maxLength: 8 }), (sessions) => {
        fs.rmSync(path.join(directory, 'tree.v1.json'), { force: true });
        const history = new History();
        for (const each of sessions) history.run(each);
      }),
      { numRuns: 1000 },
    );
  });

  // The second session does not look at the chunk that the first one had shown before it was cut off.
  it('an incomplete session does not forget the one that was cut off before it', () => {
    fs.rmSync(path.join(directory, 'tree.v1.json'), { force: true });
    const history = new History();
    const all = (content: number, seen = true) =>
      Array.from({ length: CHUNKS }, () => ({ content, seen, saved: false }));
    const base = { crash: false, indexLost: false };
    history.run({ ...base, clock: 1000, chunks: all(1) });
    history.run({ ...base, clock: 1005, chunks: all(2), crash: true });
    history.run({ ...base, clock: 1005, chunks: all(2, false) });
    history.run({ ...base, clock: 1001, chunks: all(3) });
    expect(history.latest).toEqual([1007, 1007, 1007]);
  });

  // Its row says content 1, as before; then the clock is set back to where content 2 was shown.
  it('a chunk that was reverted after a session that was cut off does not get that one’s time again', () => {
    fs.rmSync(path.join(directory, 'tree.v1.json'), { force: true });
    const history = new History();
    const all = (content: number) =>
      Array.from({ length: CHUNKS }, () => ({ content, seen: true, saved: false }));
    const base = { crash: false, indexLost: false };
    history.run({ ...base, clock: 1000, chunks: all(1) });
    history.run({ ...base, clock: 1005, chunks: all(2), crash: true });
    history.run({ ...base, clock: 1006, chunks: all(1) });
    history.run({ ...base, clock: 1005, chunks: all(3) });
    expect(history.latest).toEqual([1007, 1007, 1007]);
  });
});
