import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { finishAccept } from '../../src/chain/accept-point.js';
import {
  newChainRecord,
  type Point,
  readChainRecord,
  writeChainRecord,
} from '../../src/chain/chain-record.js';
import { inChainSession, settleChain } from '../../src/chain/chain-session.js';
import { mergeUndo } from '../../src/chain/merge-layers.js';
import { silentReporter } from '../../src/report/reporter.js';
import { Journal, type JournalEntry } from '../../src/session/journal.js';
import { StateDirectory } from '../../src/session/state-directory.js';
import { openDescriptors } from '../support/descriptors.js';
import { temporaryDirectory } from '../support/images.js';
import { RecordingReporter } from '../support/snapshot-session.js';

const PART = '.vda.0001.qcow2.s1.part';
const UUID = 'c7a5fdbd-edaf-4455-926a-d65c16db1809';

let root: string;
let directory: string;
let journal: Journal;

beforeEach(() => {
  root = temporaryDirectory();
  directory = path.join(root, 'mail01');
  fs.mkdirSync(directory);
  journal = new Journal(path.join(root, 'journal.jsonl'));
});

afterEach(() => {
  journal.close();
  fs.rmSync(root, { recursive: true });
});

/** Recorded as valid, with nothing of it done yet. */
function acceptance(overlays: readonly string[] = []): JournalEntry {
  const sums = { size: 4, sha256: 'a'.repeat(64), mtime: 1, virtualSize: 512 };
  fs.writeFileSync(path.join(directory, PART), 'copy');
  return journal.intend('chain-accept', {
    name: 'mail01',
    directory,
    point: {
      number: 1,
      id: 's1',
      time: '2026-11-20T22:00:00.000Z',
      consistency: 'crash',
      definition: '0001.xml',
      disks: [{ target: 'vda', file: 'vda.0001.qcow2', backing: null, ...sums }],
    },
    parts: [{ part: PART, file: 'vda.0001.qcow2' }],
    liveFile: path.join(root, 'live.json'),
    live: { format: 'chunkmount-live-chain', version: 1, uuid: UUID, directory, disks: [] },
    overlays,
  });
}

function overlay(file: string): void {
  const bootId = 'b';
  journal.intend('overlay', {
    domain: { uuid: UUID, name: 'mail01' },
    target: 'vda',
    overlay: file,
    base: { path: '/i', format: 'raw', identity: { device: '1', inode: '1', birth: '0', bootId } },
    qemu: { pid: 1, startTime: 1, bootId },
  });
}

const kinds = () => journal.pending().map(({ kind }) => kind);

describe('a point that is valid', () => {
  it('keeps its copies and layers, also when their place is away for a while', async () => {
    journal.intend('chain-copy', { file: path.join(directory, PART) });
    acceptance();
    fs.renameSync(directory, `${directory}.away`);
    const [problem, ...others] = await settleChain({ journal, reporter: silentReporter });
    expect(problem?.message).toBe(`${directory}/vda.0001.qcow2, a copy that was just made, is gone`);
    expect(others).toEqual([]);
    expect(kinds()).toEqual(['chain-accept', 'chain-copy']);
    fs.renameSync(`${directory}.away`, directory);
    expect(await settleChain({ journal, reporter: silentReporter })).toEqual([]);
    expect(kinds()).toEqual([]);
    expect(fs.readFileSync(path.join(directory, 'vda.0001.qcow2'), 'utf8')).toBe('copy');
    expect(readChainRecord(directory)?.points).toHaveLength(1);
  });

  it('does not take the place of another point of its number, which another host made', () => {
    const entry = acceptance();
    const there = { ...(entry.data.point as Point), id: 's2' };
    const record = { ...newChainRecord('mail01', UUID), points: [there] };
    writeChainRecord(directory, record);
    expect(() => finishAccept(entry, journal)).toThrow(`${directory} has another point 1 by now`);
    expect(readChainRecord(directory)).toEqual(record);
    expect(kinds()).toEqual(['chain-accept']);
  });

  it('takes its own layers out of the session, and no other', () => {
    overlay('/given-up');
    overlay('/layer');
    finishAccept(acceptance(['/layer']), journal);
    expect(journal.pending().map(({ data }) => data.overlay)).toEqual(['/given-up']);
  });
});

it('a merge is not forgotten while its layer is still to be undone', async () => {
  const data = { liveFile: path.join(root, 'live.json'), target: 'vda', overlay: '/layer' };
  const merge = journal.intend('chain-merge', data);
  overlay('/layer');
  const undo = mergeUndo['chain-merge'](merge, { journal, reporter: silentReporter });
  await expect(undo).rejects.toThrow('the merge of /layer has not ended');
});

it('a session keeps nothing open, however it ends', async () => {
  const state = new StateDirectory(path.join(root, 'state'));
  const request = { name: 'mail01', state, command: 'chain', reporter: silentReporter };
  await inChainSession(request, async () => {});
  const before = openDescriptors();
  await inChainSession(request, async () => {});
  await expect(
    inChainSession(request, async () => {
      throw new Error('given up');
    }),
  ).rejects.toThrow('given up');
  expect(openDescriptors()).toBe(before);
  expect(state.sessions()).toEqual([]);
});

describe('a session of which something is left', () => {
  it.each(['at its end', 'when it fails'])('%s stays for cleanup', async (when) => {
    const state = new StateDirectory(path.join(root, 'state'));
    const reporter = new RecordingReporter();
    const request = { name: 'mail01', state, command: 'chain', reporter };
    const session = inChainSession(request, async ({ journal: ours }) => {
      ours.intend('unheard-of', {});
      if (when === 'when it fails') throw new Error('given up');
    });
    const what = 'holds a step of unknown kind "unheard-of"';
    if (when === 'when it fails') {
      await expect(session).rejects.toThrow('given up');
      expect(reporter.messages.join('\n')).toMatch(new RegExp(`${what}[^]*chunkmount cleanup --vm=mail01`));
    } else await expect(session).rejects.toThrow(what);
    expect(state.sessions()).toEqual(['mail01']);
  });
});
