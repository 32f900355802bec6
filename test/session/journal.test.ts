import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { Journal, readPending } from '../../src/session/journal.js';
import { openDescriptors } from '../support/descriptors.js';
import { replaceInFs } from '../support/replaced-fs.js';
import { build, program, requireAll, root } from '../support/requirements.js';
import { durableCalls } from '../support/system-calls.js';

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'chunkmount-journal-'));
const file = path.join(directory, 'journal.jsonl');
const open: Journal[] = [];

beforeAll(() => requireAll(build, program('strace')));
afterAll(() => fs.rmSync(directory, { recursive: true }));
beforeEach(() => fs.rmSync(file, { force: true }));
afterEach(() => {
  for (const journal of open.splice(0)) journal.close();
});

/** Opens the journal as the next process would. */
function reopen(): Journal {
  const journal = new Journal(file);
  open.push(journal);
  return journal;
}

/** A step of which the record cannot be written. */
function failOnce(journal: Journal): void {
  const restore = replaceInFs('fdatasyncSync', () => {
    throw Object.assign(new Error('EIO: i/o error, fdatasync'), { code: 'EIO' });
  });
  expect(() => journal.intend('mount', {})).toThrow('EIO');
  restore();
}

function append(bytes: string | Uint8Array): void {
  fs.appendFileSync(file, bytes);
}

function lines(): string[] {
  return fs.readFileSync(file, 'utf8').split('\n').slice(0, -1);
}

/** A journal with two pending steps, of which the first is done. */
function twoSteps(): void {
  const journal = reopen();
  journal.done(journal.intend('overlay', { disk: 'vda' }), { node: 7 });
  journal.intend('mount', { mountpoint: '/m' });
}

const TWO_STEPS = [
  { seq: 2, kind: 'mount', data: { mountpoint: '/m' }, done: false },
  { seq: 1, kind: 'overlay', data: { disk: 'vda', node: 7 }, done: true },
];

describe('a journal', () => {
  it('that is new holds nothing', () => {
    expect(reopen().pending()).toEqual([]);
    expect(fs.statSync(file).mode & 0o777).toBe(0o600);
  });

  it('remembers what is to be undone, newest first, over a reopening', () => {
    twoSteps();
    expect(open[0]!.pending()).toEqual(TWO_STEPS);
    expect(reopen().pending()).toEqual(TWO_STEPS);
  });

  it('has each record in its file when the call returns', () => {
    const journal = reopen();
    const entry = journal.intend('overlay', {});
    expect(lines()).toHaveLength(1);
    journal.done(entry);
    expect(lines()).toHaveLength(2);
    journal.undone(entry);
    expect(lines()).toHaveLength(3);
  });

  it('has each record on disk when the call returns, and its own name', async () => {
    const code = `import { Journal } from 'build/session/journal.js';
      const journal = new Journal('${file}');
      const entry = journal.intend('overlay', {});
      journal.done(entry);
      journal.undone(entry);`;
    const record = 'fdatasync(<./journal.jsonl>)';
    expect(await durableCalls(directory, code)).toEqual(['fsync(<.>)', record, record, record]);
  });

  it('that is compacted holds what is pending, as it was, and nothing else', () => {
    const journal = reopen();
    journal.undone(journal.intend('lv', {}));
    journal.done(journal.intend('overlay', { disk: 'vda' }), { node: 7 });
    journal.intend('mount', {});
    const before = journal.pending();
    journal.compact();
    expect(lines()).toHaveLength(3);
    expect([journal.pending(), readPending(file)]).toEqual([before, before]);
    expect(reopen().intend('serve', {}).seq).toBe(4);
  });

  it('that is compacted goes on, also after a step that failed', () => {
    twoSteps();
    const journal = open[0]!;
    journal.undone(journal.pending()[0]!);
    const before = openDescriptors();
    journal.compact();
    expect(openDescriptors()).toEqual(before);
    failOnce(journal);
    journal.intend('lv', {});
    expect(readPending(file).map(({ kind }) => kind)).toEqual(['lv', 'overlay']);
  });

  it('of names in any language is as it was after each reopening', () => {
    const data = { path: '/srv/Größe/磁盘.qcow2' };
    reopen().intend('overlay', data);
    for (const journal of [reopen(), reopen()]) expect(journal.pending()[0]!.data).toEqual(data);
  });

  it('forgets what was undone, and never gives its number again', () => {
    twoSteps();
    const journal = reopen();
    for (const entry of journal.pending()) journal.undone(entry);
    expect(reopen().pending()).toEqual([]);
    expect(reopen().intend('overlay', {}).seq).toBe(3);
  });

  it('lets later facts replace those of the intent', () => {
    const journal = reopen();
    journal.done(journal.intend('overlay', { path: '/a', size: 1 }), { size: 2 });
    expect(reopen().pending()[0]!.data).toEqual({ path: '/a', size: 2 });
  });

  it('finds the newest step of a kind', () => {
    const journal = reopen();
    journal.intend('overlay', { n: 1 });
    const last = journal.intend('overlay', { n: 2 });
    journal.intend('mount', {});
    expect(journal.find('overlay')).toEqual(last);
    journal.undone(last);
    expect(journal.find('overlay')?.data).toEqual({ n: 1 });
    expect(journal.find('lv')).toBeUndefined();
  });

  it('keeps any data', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string(), fc.jsonValue()), (given) => {
        const data = JSON.parse(JSON.stringify(given)) as Record<string, unknown>;
        fs.rmSync(file, { force: true });
        const journal = new Journal(file);
        journal.intend('step', data);
        journal.close();
        const again = new Journal(file);
        again.close();
        expect(again.pending()[0]!.data).toEqual(data);
      }),
      { numRuns: 50 },
    );
  });
});

describe('a journal that was cut off', () => {
  it('anywhere in its last record is what it was before that record, and goes on', () => {
    twoSteps();
    const whole = fs.readFileSync(file);
    const lastLine = whole.lastIndexOf('\n', whole.length - 2) + 1;
    for (let length = lastLine; length < whole.length; length++) {
      fs.writeFileSync(file, whole.subarray(0, length));
      const journal = new Journal(file);
      expect(journal.pending()).toEqual([TWO_STEPS[1]]);
      journal.intend('lv', {});
      journal.close();
      const after = new Journal(file);
      after.close();
      expect(after.pending().map(({ kind }) => kind)).toEqual(['lv', 'overlay']);
    }
  });

  it.each([
    ['half a record', '0123456789abcdef {"step":"int'],
    ['zeros, as a file system leaves them', Buffer.alloc(512)],
    ['zeros and a newline', '\0\0\0\n'],
    ['bytes that are no text', Buffer.from([0xff, 0xfe, 0x80, 0x0a])],
    [
      'a record with a wrong checksum',
      '0123456789abcdef {"step":"intent","seq":3,"kind":"x","data":{},"at":""}\n',
    ],
    ['an empty line', '\n'],
  ])('in %s goes on where it was', (_, rubbish) => {
    twoSteps();
    append(rubbish);
    const journal = reopen();
    expect(journal.pending()).toEqual(TWO_STEPS);
    journal.intend('lv', {});
    expect(
      reopen()
        .pending()
        .map(({ kind }) => kind),
    ).toEqual(['lv', 'mount', 'overlay']);
  });
});

describe('a journal on a full file system', () => {
  const mountpoint = path.join(directory, 'small');
  beforeAll(async () => {
    await requireAll(root, program('mount'));
    fs.mkdirSync(mountpoint);
    await run('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'chunkmount-test', mountpoint]);
  });
  afterAll(() => run('umount', [mountpoint]));

  it('refuses the step, and goes on as before', () => {
    const full = path.join(mountpoint, 'journal.jsonl');
    const journal = new Journal(full);
    const entry = journal.intend('overlay', { disk: 'vda' });
    // Half of it fits in.
    expect(() => journal.intend('mount', { text: 'x'.repeat(100_000) })).toThrow(
      `ENOSPC: no space left on device, write '${journal.file}'`,
    );
    expect(journal.pending()).toHaveLength(1);
    journal.undone(entry);
    journal.intend('lv', {});
    journal.close();
    const again = new Journal(full);
    again.close();
    expect(again.pending().map(({ kind }) => kind)).toEqual(['lv']);
  });
});

describe('a journal on a disk that is broken', () => {
  it('says so of each step, also of one that was undone, which stays', () => {
    const journal = reopen();
    const entry = journal.intend('overlay', { disk: 'vda' });
    replaceInFs('fdatasyncSync', () => {
      throw Object.assign(new Error('EIO: i/o error, fdatasync'), { code: 'EIO' });
    });
    const message = `EIO: i/o error, fdatasync '${file}'`;
    expect(() => journal.intend('mount', {})).toThrow(message);
    expect(() => journal.done(entry)).toThrow(message);
    expect(() => journal.undone(entry)).toThrow(message);
    expect([journal.pending(), readPending(file)]).toEqual([[entry], [entry]]);
  });
});

describe('a journal in which a step failed', () => {
  it('keeps what earlier processes wrote', () => {
    twoSteps();
    failOnce(reopen());
    expect(readPending(file)).toEqual(TWO_STEPS);
  });

  it('has what was undone without room for it in its file only', () => {
    twoSteps();
    const journal = open[0]!;
    const restore = replaceInFs('fdatasyncSync', () => {
      throw Object.assign(new Error('ENOSPC: no space left on device, fdatasync'), { code: 'ENOSPC' });
    });
    for (const entry of journal.pending()) journal.undone(entry);
    restore();
    expect(journal.pending()).toEqual([]);
    expect(readPending(file)).toEqual(TWO_STEPS);
  });
});

describe('readPending', () => {
  it('tells what is to be undone', () => {
    twoSteps();
    expect(readPending(file)).toEqual(TWO_STEPS);
  });

  it('leaves alone what may be a record that somebody is writing', () => {
    twoSteps();
    append('0123456789abcdef {"step":"int');
    const before = fs.readFileSync(file);
    expect(readPending(file)).toEqual(TWO_STEPS);
    expect(fs.readFileSync(file).equals(before)).toBe(true);
  });

  it('makes no journal where there is none', () => {
    expect(() => readPending(file)).toThrow('ENOENT');
    expect(fs.existsSync(file)).toBe(false);
  });
});

describe('a journal that is damaged', () => {
  const damage = (line: number, change: (text: string) => string) => {
    const all = lines();
    all[line] = change(all[line]!);
    fs.writeFileSync(file, `${all.join('\n')}\n`);
  };

  it.each([0, 1])('in line %i, in the middle, is refused', (line) => {
    twoSteps();
    damage(line, (text) => text.replace('"seq":1', '"seq":9'));
    expect(() => new Journal(file)).toThrow(`the journal ${file} is damaged in line ${line + 1}`);
  });

  it('is refused when a line in the middle is missing its end', () => {
    twoSteps();
    damage(0, (text) => text.slice(0, -1));
    expect(() => new Journal(file)).toThrow('is damaged in line 1');
  });

  it('is refused when the last whole line is wrong and more follows', () => {
    twoSteps();
    damage(2, (text) => text.replace('mount', 'momnt'));
    append('0123');
    expect(() => new Journal(file)).toThrow('is damaged in line 3');
  });
});
