import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import {
  makeDirectory,
  readIfExists,
  removeUnfinished,
  replaceFile,
  writeFully,
} from '../../src/host/durable.js';
import { run } from '../../src/host/exec.js';
import { build, program, requireAll } from '../support/requirements.js';
import { durableCalls } from '../support/system-calls.js';

let directory: string;
let file: string;

beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'chunkmount-durable-'));
  file = path.join(directory, 'file');
});
afterEach(() => fs.rmSync(directory, { recursive: true }));

describe('replaceFile', () => {
  it('writes text, bytes, and what a function writes', () => {
    replaceFile(file, 'ü');
    expect(fs.readFileSync(file, 'utf8')).toBe('ü');
    replaceFile(file, Buffer.from([1, 2, 3]));
    expect([...fs.readFileSync(file)]).toEqual([1, 2, 3]);
    replaceFile(file, (fd) => {
      writeFully(fd, Buffer.from('a'));
      writeFully(fd, Buffer.from('b'));
    });
    expect(fs.readFileSync(file, 'utf8')).toBe('ab');
  });

  it('gives the mode, whatever the old one was', () => {
    fs.writeFileSync(file, 'old', { mode: 0o666 });
    replaceFile(file, 'new');
    expect(fs.statSync(file).mode & 0o777).toBe(0o600);
    replaceFile(file, 'new', { mode: 0o400 });
    expect(fs.statSync(file).mode & 0o777).toBe(0o400);
  });

  it('leaves the old content to who has it open', () => {
    replaceFile(file, 'old');
    const fd = fs.openSync(file, 'r');
    replaceFile(file, 'new');
    expect(fs.readFileSync(fd, 'utf8')).toBe('old');
    fs.closeSync(fd);
  });

  it('keeps the old file and leaves nothing behind when writing fails', () => {
    replaceFile(file, 'old');
    const fail = () => {
      throw new Error('no more');
    };
    expect(() => replaceFile(file, fail)).toThrow('no more');
    expect(fs.readFileSync(file, 'utf8')).toBe('old');
    expect(fs.readdirSync(directory)).toEqual(['file']);
  });

  it('keeps the old file when it cannot be replaced', () => {
    fs.mkdirSync(file);
    expect(() => replaceFile(file, 'new')).toThrow('EISDIR');
    expect(fs.readdirSync(directory)).toEqual(['file']);
  });

  it('does not need what a crash left behind to be gone', () => {
    fs.writeFileSync(path.join(directory, `.file.${process.pid}.tmp`), 'x'.repeat(100));
    replaceFile(file, 'new');
    expect(fs.readFileSync(file, 'utf8')).toBe('new');
    expect(fs.readdirSync(directory)).toEqual(['file']);
  });
});

describe('removeUnfinished', () => {
  it('removes what others left who were killed, and nothing else', () => {
    for (const name of ['.vda.v1.4711.tmp', '.tree.v1.json.1.tmp', 'vda.v1', '.vda.v1.tmp', 'a.1.tmp', '.1'])
      fs.writeFileSync(path.join(directory, name), '');
    removeUnfinished(directory);
    expect(fs.readdirSync(directory).sort()).toEqual(['.1', '.vda.v1.tmp', 'a.1.tmp', 'vda.v1']);
  });
});

describe('makeDirectory', () => {
  it('makes all that is missing, for its owner alone', () => {
    makeDirectory(path.join(directory, 'a/b/c'));
    for (const name of ['a', 'a/b', 'a/b/c']) {
      expect(fs.statSync(path.join(directory, name)).mode & 0o777).toBe(0o700);
    }
  });

  it('ends where there can be no such directory', async () => {
    // In another process: if this does not end, neither does a test that is in it.
    const module = path.resolve(import.meta.dirname, '../../build/host/durable.js');
    const script = `import(${JSON.stringify(module)}).then((durable) => durable.makeDirectory('/proc/chunkmount/a'))`;
    await expect(run(process.execPath, ['--eval', script], { timeoutMs: 20_000 })).rejects.toThrow(
      "ENOENT: no such file or directory, mkdir '/proc/chunkmount'",
    );
  });

  it('leaves alone what is there', () => {
    fs.chmodSync(directory, 0o755);
    makeDirectory(directory);
    expect(fs.statSync(directory).mode & 0o777).toBe(0o755);
  });
});

describe('readIfExists', () => {
  it('gives the content, or nothing if there is no such file', () => {
    expect(readIfExists(file)).toBeUndefined();
    fs.writeFileSync(file, 'ü');
    expect(readIfExists(file)).toBe('ü');
  });

  it('passes on other errors', () => {
    expect(() => readIfExists(directory)).toThrow('EISDIR');
    fs.writeFileSync(file, '');
    expect(() => readIfExists(path.join(file, 'x'))).toThrow('ENOTDIR');
  });
});

describe('what must be on disk when a call returns', () => {
  beforeAll(() => requireAll(build, program('strace')));
  const callsOf = (code: string) =>
    durableCalls(directory, `import * as durable from 'build/host/durable.js';\n${code}`);

  it('a replaced file: content, then name', async () => {
    const calls = await callsOf(`durable.replaceFile('${file}', 'new')`);
    expect(calls.map((call) => call.replace(/\.\d+\.tmp/g, '.tmp'))).toEqual([
      'fsync(<./.file.tmp>)',
      'rename("./.file.tmp", "./file")',
      'fsync(<.>)',
    ]);
  });

  it('a replaced file that need not outlive the host: nothing', async () => {
    const calls = await callsOf(`durable.replaceFile('${file}', 'new', { durable: false })`);
    expect(calls).toEqual([expect.stringMatching(/^rename/)]);
  });

  it('a new directory: its name in each directory above that is new', async () => {
    const calls = await callsOf(`durable.makeDirectory('${directory}/a/b/c')`);
    const synced = calls.filter((call) => call.startsWith('fsync')).map((call) => /<(.*)>/.exec(call)![1]);
    expect(synced.sort()).toEqual(['.', './a', './a/b']);
  });
});
