import { type ChildProcess, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { deviceText } from '../../src/host/device-number.js';
import { run } from '../../src/host/exec.js';
import { type FileIdentity, fileIdentity, usersOfFiles } from '../../src/host/file-users.js';
import { TestFileSystem } from '../support/file-systems.js';
import { loopDevices, temporaryDirectory, withLoopDevice } from '../support/images.js';
import { replaceInFs } from '../support/replaced-fs.js';
import { program, requireAll, root } from '../support/requirements.js';

const directory = temporaryDirectory();
const file = path.join(directory, 'file');
const children: ChildProcess[] = [];

beforeAll(async () => {
  await requireAll(program('python3'));
  fs.writeFileSync(file, Buffer.alloc(8192));
});

afterAll(() => {
  for (const child of children) child.kill('SIGKILL');
  fs.rmSync(directory, { recursive: true });
});

function identity(): FileIdentity {
  return fileIdentity(fs.statSync(file, { bigint: true }));
}

function writers(): readonly string[] {
  return usersOfFiles([identity()], 'write').users;
}

/** A process that has done what the Python line says; ends when `work` has. */
async function whileRunning(line: string, work: (name: string) => void, place = file): Promise<void> {
  const code = `import mmap, os, sys, time\n${line}\nprint('ready', flush=True)\ntime.sleep(100)`;
  const child = spawn('python3', ['-c', code, place], { stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(child);
  await new Promise((resolve, reject) => child.stdout.once('data', resolve).once('end', reject));
  work(`python3 (${child.pid})`);
  const exit = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await exit;
}

describe('those who can write to a file', () => {
  it.each([
    ["f = open(sys.argv[1], 'r+b')"],
    ["f = open(sys.argv[1], 'ab')"],
    ['f = os.open(sys.argv[1], os.O_WRONLY)'],
    // Another name of the file.
    ["os.link(sys.argv[1], sys.argv[1] + '2'); f = open(sys.argv[1] + '2', 'r+b')"],
    // The descriptors are closed, that of mmap, too; the memory is shared.
    ['f = os.open(sys.argv[1], os.O_RDWR); m = mmap.mmap(f, 8192); os.closerange(3, 64)'],
  ])('finds %s', async (line) => {
    await whileRunning(line, (name) => expect(writers()).toEqual([name]));
    expect(writers()).toEqual([]);
  });

  it.each([
    ["f = open(sys.argv[1], 'rb')"],
    ["f = open(sys.argv[1] + '.other', 'wb')"],
    ['f = os.open(sys.argv[1], os.O_RDONLY); m = mmap.mmap(f, 8192, mmap.MAP_PRIVATE)'],
  ])('passes over %s', async (line) => {
    await whileRunning(line, () => expect(writers()).toEqual([]));
  });

  it('finds this very process', () => {
    const fd = fs.openSync(file, 'r+');
    expect(writers()).toEqual([expect.stringContaining(`(${process.pid})`)]);
    fs.closeSync(fd);
  });
});

it('those who read a file are found when they are asked for', async () => {
  await whileRunning("f = open(sys.argv[1], 'rb')", (name) => {
    expect(usersOfFiles([identity()], 'any').users).toContain(name);
  });
});

/** Without a descriptor: that of mmap is another one. */
const MAPPED = 'f = os.open(sys.argv[1], os.O_RDWR); m = mmap.mmap(f, 8192); os.closerange(3, 64)';

describe('what may not be seen', () => {
  /** As for somebody who is not root: see proc(5). */
  function refuse(name: 'readdirSync' | 'statSync', which: RegExp): void {
    const original: (...args: never) => unknown = name === 'statSync' ? fs.statSync : fs.readdirSync;
    replaceInFs(name, (...args: never) => {
      const [file] = args as [string];
      if (which.test(file)) throw Object.assign(new Error(`EACCES: ${file}`), { code: 'EACCES' });
      return original(...args);
    });
  }

  it('is told: there may be users among them', async () => {
    expect(usersOfFiles([identity()], 'any').hidden).toBe(false);
    await whileRunning('pass', (name) => {
      refuse('readdirSync', new RegExp(`^/proc/${/[0-9]+/.exec(name.slice(7))![0]}/fd$`));
      expect(usersOfFiles([identity()], 'any')).toEqual({ users: [], hidden: true });
    });
  });

  it('is taken for the file where memory is shared with one of its inode number', async () => {
    await whileRunning(MAPPED, (name) => {
      refuse('statSync', /map_files/);
      expect(writers()).toEqual([name]);
    });
  });
});

it('a block device is found by another node of it', async () => {
  await requireAll(root, loopDevices);
  const image = path.join(directory, 'image');
  fs.writeFileSync(image, Buffer.alloc(1024 * 1024));
  await withLoopDevice(image, async (device) => {
    const { rdev } = fs.statSync(device, { bigint: true });
    const [major, minor] = deviceText(rdev).split(':') as [string, string];
    const node = path.join(directory, 'node');
    await run('mknod', [node, 'b', major, minor]);
    const known = fileIdentity(fs.statSync(device, { bigint: true }));
    const expectFound = (name: string) => expect(usersOfFiles([known], 'write').users).toEqual([name]);
    await whileRunning("f = open(sys.argv[1], 'r+b')", expectFound, node);
  });
});

describe('a shared mapping', () => {
  beforeAll(() => requireAll(root));

  it('of another file with the same inode number is another one', async () => {
    const [mine, other] = ['mine', 'other'].map((name) => path.join(directory, name)) as [string, string];
    const inMemory = [mine, other].map((mountpoint) => path.join(mountpoint, 'file')) as [string, string];
    for (const mountpoint of [mine, other]) {
      fs.mkdirSync(mountpoint);
      await run('mount', ['-t', 'tmpfs', 'tmpfs', mountpoint]);
      fs.writeFileSync(path.join(mountpoint, 'file'), Buffer.alloc(8192));
    }
    try {
      const [identity, others] = inMemory.map((one) => fileIdentity(fs.statSync(one, { bigint: true })));
      expect(identity!.inode).toBe(others!.inode);
      const writersNow = () => usersOfFiles([identity!], 'write').users;
      await whileRunning(MAPPED, () => expect(writersNow()).toEqual([]), inMemory[1]);
      await whileRunning(MAPPED, (name) => expect(writersNow()).toEqual([name]), inMemory[0]);
    } finally {
      for (const mountpoint of [mine, other]) await run('umount', ['--lazy', mountpoint]);
    }
  });

  it('is found on btrfs, where its device is told otherwise', async () => {
    const btrfs = await TestFileSystem.make('btrfs');
    try {
      const image = path.join(btrfs.directory, 'file');
      fs.writeFileSync(image, Buffer.alloc(8192));
      const known = fileIdentity(fs.statSync(image, { bigint: true }));
      const expectFound = (name: string) => expect(usersOfFiles([known], 'write').users).toEqual([name]);
      await whileRunning(MAPPED, expectFound, image);
    } finally {
      await btrfs.close();
    }
  });
});
