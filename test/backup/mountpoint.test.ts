import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { makeMountpoint, mountpointUndo } from '../../src/backup/mountpoint.js';
import { silentReporter } from '../../src/report/reporter.js';
import { Journal } from '../../src/session/journal.js';
import { undoAll } from '../../src/session/undo.js';
import { DyingJournal } from '../support/dying-journal.js';
import { temporaryDirectory } from '../support/images.js';

let directory: string;
let mountpoint: string;
let journal: Journal;

beforeEach(() => {
  directory = temporaryDirectory();
  mountpoint = path.join(directory, 'mail01');
  journal = new Journal(path.join(directory, 'journal.jsonl'));
});

afterEach(() => {
  journal.close();
  fs.rmSync(directory, { recursive: true });
});

const undo = () => undoAll({ journal, reporter: silentReporter }, mountpointUndo, new Set());

describe('a mountpoint', () => {
  it('is for its owner alone, and goes with its session', async () => {
    makeMountpoint(mountpoint, journal);
    expect(fs.statSync(mountpoint).mode & 0o777).toBe(0o700);
    expect(await undo()).toEqual([]);
    expect(fs.existsSync(mountpoint)).toBe(false);
  });

  it('is recorded before it is made', () => {
    const dying = new DyingJournal(path.join(directory, 'dying.jsonl'), 1, true);
    expect(() => makeMountpoint(mountpoint, dying)).toThrow('killed');
    expect(fs.existsSync(mountpoint)).toBe(false);
    dying.close();
  });

  it('may be an empty directory that has come there since it was looked for', () => {
    fs.mkdirSync(mountpoint);
    makeMountpoint(mountpoint, journal);
    expect(journal.find('mountpoint')?.done).toBe(true);
  });

  it('is no directory that somebody has filled since, which stays as it is', async () => {
    fs.mkdirSync(mountpoint);
    fs.writeFileSync(path.join(mountpoint, 'file'), 'precious');
    expect(() => makeMountpoint(mountpoint, journal)).toThrow(`${mountpoint} is not empty`);
    expect(await undo()).toEqual([]);
    expect(fs.readFileSync(path.join(mountpoint, 'file'), 'utf8')).toBe('precious');
  });
});
