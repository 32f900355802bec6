import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { ChainRecord, DiskCopy } from '../../src/chain/chain-record.js';
import { checkCopies } from '../../src/chain/check-copies.js';
import { silentReporter } from '../../src/report/reporter.js';
import { noise, temporaryDirectory } from '../support/images.js';

const HINT = 'put it back';
/** Seconds since 1970. */
const TIME = 1_790_000_000;

let directory: string;
const place = (file: string) => path.join(directory, file);

beforeEach(() => {
  directory = temporaryDirectory();
});

afterEach(() => fs.rmSync(directory, { recursive: true }));

function copy(number: number, backing: string | null): DiskCopy {
  const file = `vda.000${number}.qcow2`;
  const content = noise(4096, number);
  fs.writeFileSync(place(file), content);
  fs.utimesSync(place(file), TIME, TIME);
  const { size, mtimeMs: mtime } = fs.statSync(place(file));
  const sha256 = createHash('sha256').update(content).digest('hex');
  return { target: 'vda', file, backing, size, sha256, mtime, virtualSize: 512 };
}

function chain(): ChainRecord {
  const copies = [copy(1, null), copy(2, 'vda.0001.qcow2')];
  const points = copies.map((one, index) => ({
    number: index + 1,
    id: `s${index}`,
    time: '2026-11-20T22:00:00.000Z',
    consistency: 'crash',
    definition: `000${index + 1}.xml`,
    disks: [one],
  }));
  return { format: 'chunkmount-chain', version: 1, name: 'mail01', uuid: 'u', points };
}

const check = (record: ChainRecord, thorough: boolean) =>
  checkCopies(directory, record, 'vda.0002.qcow2', { hint: HINT, thorough, reporter: silentReporter });

/** Its time of last write stays: of what a disk forgets the file system knows nothing. */
function alter(file: string, change: (file: string) => void): void {
  change(place(file));
  fs.utimesSync(place(file), TIME, TIME);
}

describe('a copy, or one that it lies on, is refused', () => {
  it.each(['vda.0001.qcow2', 'vda.0002.qcow2'])('when %s has other bytes and the same time', async (file) => {
    const record = chain();
    expect(await check(record, true)).toHaveLength(2);
    alter(file, (name) => fs.writeFileSync(name, noise(4096, 9)));
    await expect(check(record, true)).rejects.toMatchObject({
      kind: 'integrity',
      hint: HINT,
      message: `${place(file)} is not as it was made: its SHA-256 differs`,
    });
  });

  it.each([true, false])('when one is too short and has the same time; all sums: %s', async (thorough) => {
    const record = chain();
    alter('vda.0001.qcow2', (name) => fs.truncateSync(name, 4095));
    await expect(check(record, thorough)).rejects.toThrow(/vda.0001.qcow2 has 4095 bytes instead of 4096/);
  });

  it('when a link is in its place, also to what it was', async () => {
    const record = chain();
    fs.renameSync(place('vda.0001.qcow2'), place('away'));
    fs.symlinkSync('away', place('vda.0001.qcow2'));
    await expect(check(record, true)).rejects.toThrow(/vda.0001.qcow2 is no file/);
  });
});
