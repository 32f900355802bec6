import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { planDump, succeed } from '../../src/backup/dump/plan.js';
import { DumpFiles, dumpUndo, readSums } from '../../src/backup/dump-files.js';
import type { FrozenSource } from '../../src/backup/source.js';
import { silentReporter } from '../../src/report/reporter.js';
import { Journal } from '../../src/session/journal.js';
import { undoAll } from '../../src/session/undo.js';
import { build, program, requireAll } from '../support/requirements.js';
import { durableCalls } from '../support/system-calls.js';

const OWNER = { uid: process.getuid!(), gid: process.getgid!() };
const source: FrozenSource = {
  uuid: null,
  time: new Date('2026-11-20T23:11:22.345Z'),
  consistency: 'crash',
  xml: '<domain/>',
  memory: undefined,
  nvram: '/nvram',
  disks: ['vda', 'vdb'].map((target) => ({
    target,
    image: { path: '/x', format: 'raw' },
    bus: null,
    snapshot: 'none',
  })),
};
const zstd = { program: 'zstd', args: [], extension: '.zst' };

let root: string;
let directory: string;
let journal: Journal;

beforeAll(() => requireAll(build, program('strace')));
beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-dump-'));
  directory = path.join(root, 'mail01.dump');
  journal = new Journal(path.join(root, 'journal.jsonl'));
});

afterEach(() => {
  journal.close();
  fs.rmSync(root, { recursive: true });
});

function begin(files: readonly string[], scratch: readonly string[] = []): DumpFiles {
  return new DumpFiles({ directory, files, scratch, owner: OWNER, journal });
}

const undo = () => undoAll({ journal, reporter: silentReporter }, dumpUndo, new Set());
const names = () => fs.readdirSync(directory).sort();
const write = (name: string, content: string) => fs.writeFileSync(path.join(directory, name), content);
const read = (name: string) => fs.readFileSync(path.join(directory, name), 'utf8');

describe('the names of a dump', () => {
  const common = { name: 'mail01', source };

  it('say VM, disk, format and compressor', () => {
    expect(planDump({ ...common, format: 'qcow2', compressor: zstd, dated: false })).toEqual({
      disks: [
        { target: 'vda', file: 'mail01_vda.qcow2.zst', scratch: 'mail01_vda.qcow2' },
        { target: 'vdb', file: 'mail01_vdb.qcow2.zst', scratch: 'mail01_vdb.qcow2' },
      ],
      xml: 'mail01.xml',
      nvram: 'mail01.nvram.fd',
      sums: 'mail01.sha256',
    });
  });

  it('have the time of the snapshot if that is wanted', () => {
    const plan = planDump({ ...common, format: 'raw', compressor: undefined, dated: true });
    expect(plan.disks[0]?.file).toBe('mail01_vda-20261120T231122Z.raw');
    expect([plan.xml, plan.nvram, plan.sums]).toEqual([
      'mail01-20261120T231122Z.xml',
      'mail01-20261120T231122Z.nvram.fd',
      'mail01-20261120T231122Z.sha256',
    ]);
  });
});

describe('the files of a dump', () => {
  it('have their names only once all are complete', () => {
    const files = begin(['a', 'sums']);
    files.write('a', Buffer.from('new'));
    expect(names()).toEqual(['a.partial']);
    expect(fs.statSync(files.partial('a')).mode & 0o777).toBe(0o600);
    files.write('sums', Buffer.from('sums'));
    files.publish([]);
    expect(names()).toEqual(['a', 'sums']);
    expect(journal.pending()).toEqual([]);
  });

  it.skipIf(process.getuid!() !== 0)('belong to whom they are for, as does their directory', () => {
    const files = new DumpFiles({
      directory,
      files: ['a'],
      scratch: [],
      owner: { uid: 12, gid: 34 },
      journal,
    });
    files.write('a', Buffer.from('new'));
    files.publish([]);
    for (const file of [directory, path.join(directory, 'a')])
      expect(fs.statSync(file)).toMatchObject({ uid: 12, gid: 34 });
  });

  it('leave nothing when they are given up, and the directory as it was', async () => {
    const files = begin(['a', 'sums'], ['s']);
    files.write('a', Buffer.from('new'));
    fs.writeFileSync(files.partial('s'), '');
    expect(await undo()).toEqual([]);
    expect(fs.existsSync(directory)).toBe(false);
  });

  it('leave what others put into the directory, and what was there before', async () => {
    begin(['a']);
    write('other', '');
    expect(await undo()).toEqual([]);
    expect(names()).toEqual(['other']);
    begin(['a']).write('a', Buffer.from('new'));
    expect(await undo()).toEqual([]);
    expect(names()).toEqual(['other']);
  });

  it('leave a directory that was there empty', async () => {
    fs.mkdirSync(directory, { mode: 0o750 });
    begin(['a']).write('a', Buffer.from('new'));
    expect(await undo()).toEqual([]);
    expect(names()).toEqual([]);
  });

  it('are on the disk before they replace others', async () => {
    const source = path.join(root, 'memory');
    fs.writeFileSync(source, 'memory');
    const code = `import { Journal } from 'build/session/journal.js';
      import { DumpFiles } from 'build/backup/dump-files.js';
      const journal = new Journal('${journal.file}');
      const owner = ${JSON.stringify(OWNER)};
      const files = new DumpFiles({ directory: '${directory}', files: ['a', 'b'], scratch: [], owner, journal });
      files.write('a', Buffer.from('new'));
      await files.copy('b', '${source}');
      files.publish([]);`;
    const record = 'fdatasync(<./journal.jsonl>)';
    const place = './mail01.dump';
    const calls = (await durableCalls(root, code)).slice(1);
    expect(calls).toEqual([
      record,
      expect.stringMatching(/^mkdir/),
      'fsync(<.>)',
      `fsync(<${place}/a.partial>)`,
      `fsync(<${place}/b.partial>)`,
      record,
      `rename("${place}/a.partial", "${place}/a")`,
      `rename("${place}/b.partial", "${place}/b")`,
      `fsync(<${place}>)`,
      record,
    ]);
  });

  it('of which one is gone replace no other', async () => {
    fs.mkdirSync(directory);
    write('old', 'old');
    const files = begin(['a']);
    files.write('a', Buffer.from('new'));
    fs.rmSync(files.partial('a'));
    expect(() => files.publish(['old'])).toThrow('ENOENT');
    expect(await undo()).toHaveLength(1);
    expect(names()).toEqual(['old']);
  });

  it('take the place of what a dump that was cut off left', () => {
    fs.mkdirSync(directory);
    write('a.partial', 'stale');
    const files = begin(['a']);
    files.write('a', Buffer.from('new'));
    files.publish([]);
    expect(read('a')).toBe('new');
  });

  it('cut off between the names: cleanup goes on, twice', async () => {
    fs.mkdirSync(directory);
    for (const name of ['a', 'b', 'old', 'sums']) write(name, 'old');
    const files = begin(['a', 'b', 'sums']);
    for (const name of ['a', 'b', 'sums']) files.write(name, Buffer.from('new'));
    journal.done(journal.pending()[0]!, { complete: true, obsolete: ['old'] });
    fs.renameSync(files.partial('a'), path.join(directory, 'a'));
    expect(
      await dumpUndo.dump!(journal.pending()[0]!, { journal, reporter: silentReporter }),
    ).toBeUndefined();
    expect(await undo()).toEqual([]);
    expect(names()).toEqual(['a', 'b', 'sums']);
    expect(names().map(read)).toEqual(['new', 'new', 'new']);
  });
});

describe('what a dump replaces', () => {
  const plan = planDump({
    name: 'mail01',
    source: { ...source, disks: source.disks.slice(0, 1) },
    format: 'raw',
    compressor: zstd,
    dated: false,
  });
  const sum = 'a'.repeat(64);

  function previously(...files: string[]): void {
    fs.mkdirSync(directory, { recursive: true });
    for (const file of files) write(file, '');
    write('mail01.sha256', files.map((file) => `${sum}  ${file}\n`).join(''));
  }

  it('is images of the same disks; those of others stay in the sums', () => {
    previously('mail01_vda.raw.gz', 'mail01_vda.raw.zst', 'mail01_vdb.raw');
    expect(succeed(directory, 'mail01', plan, ['mail01_vda.raw.zst'])).toEqual({
      kept: [`${sum}  mail01_vdb.raw`],
      obsolete: ['mail01_vda.raw.gz'],
    });
  });

  it('is no image of a disk whose name only begins like one of them', () => {
    previously('mail01_vda.raw.gz', 'mail01_vdaa.raw.gz', 'mail01_vda-20261120T231122Z.raw.gz');
    const { kept, obsolete } = succeed(directory, 'mail01', plan, ['mail01_vda.raw.zst']);
    expect(obsolete).toEqual(['mail01_vda.raw.gz']);
    expect(kept).toHaveLength(2);
  });

  it('is memory and NVRAM of another moment', () => {
    previously('mail01.xml', 'mail01.state', 'mail01.nvram.fd');
    expect(succeed(directory, 'mail01', plan, ['mail01.xml'])).toEqual({
      kept: [],
      obsolete: ['mail01.state', 'mail01.nvram.fd'],
    });
  });

  it('is nothing that the sums do not name, nor what is not there', () => {
    previously('mail01_vda.raw.gz');
    write('mail01_vda.raw.xz', '');
    fs.rmSync(path.join(directory, 'mail01_vda.raw.gz'));
    expect(succeed(directory, 'mail01', plan, ['mail01_vda.raw.zst'])).toEqual({ kept: [], obsolete: [] });
  });

  it('is never outside of the directory', () => {
    previously();
    const paths = ['../mail01_vda.raw', '/mail01_vda.raw', 'mail01_vda.raw/../x', 'x\\y'];
    write('mail01.sha256', [...paths.map((file) => `${sum}  ${file}`), `${sum} *b`, 'x  y', ''].join('\n'));
    expect(readSums(path.join(directory, 'mail01.sha256')).size).toBe(0);
  });
});
