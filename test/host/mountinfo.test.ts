import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { isMountedForOthers, listMounts, mountAt, mountpointsOf } from '../../src/host/mountinfo.js';
import { eventually } from '../support/libvirt.js';
import { replaceInFs } from '../support/replaced-fs.js';
import { program, requireAll, root } from '../support/requirements.js';

const directory = fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), 'chunkmount-mounts-'));
const mounted: string[] = [];

beforeAll(() => requireAll(root, program('mount'), program('unshare', 'util-linux')));
afterAll(async () => {
  for (const mountpoint of mounted.reverse()) await run('umount', [mountpoint]);
  fs.rmSync(directory, { recursive: true });
});

async function mount(name: string, source = 'chunkmount-test'): Promise<string> {
  const mountpoint = path.join(directory, name);
  fs.mkdirSync(mountpoint, { recursive: true });
  await run('mount', ['-t', 'tmpfs', '-o', 'size=4k', source, mountpoint]);
  mounted.push(mountpoint);
  return mountpoint;
}

describe('mountAt', () => {
  it.each([
    'plain',
    'with space',
    'tab\there',
    'new\nline',
    'back\\slash',
    'back\\040slash',
    'a - b',
    '#hash',
    'ünï → 𝄞',
    '"quotes\'',
  ])('finds what is mounted at "%s"', async (name) => {
    const mountpoint = await mount(name);
    expect(mountAt(mountpoint)).toMatchObject({ mountpoint, type: 'tmpfs', source: 'chunkmount-test' });
  });

  it.each(['a source', 'tab\there', 'back\\slash', 'chunkmount:mail01:x', 'a - b'])(
    'knows the source "%s"',
    async (source) => {
      const mountpoint = await mount(`source ${mounted.length}`, source);
      expect(mountAt(mountpoint)?.source).toBe(source);
    },
  );

  it('tells the device that stat tells', async () => {
    const mountpoint = await mount('device');
    const { dev } = fs.statSync(mountpoint);
    // See makedev(3).
    const [major, minor] = [(dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xfff00)];
    expect(mountAt(mountpoint)?.device).toBe(`${major}:${minor}`);
  });

  it('finds the topmost of two, and the other when that is gone', async () => {
    const mountpoint = await mount('twice', 'lower');
    await mount('twice', 'upper');
    expect(mountAt(mountpoint)?.source).toBe('upper');
    await run('umount', [mountpoint]);
    mounted.pop();
    expect(mountAt(mountpoint)?.source).toBe('lower');
  });

  it('finds nothing in, above or beside a mountpoint', async () => {
    const mountpoint = await mount('alone');
    for (const other of [path.join(mountpoint, 'x'), directory, `${mountpoint}x`, mountpoint.slice(0, -1)]) {
      expect(mountAt(other)).toBeUndefined();
    }
  });
});

describe('mountpointsOf', () => {
  it('finds a mount wherever it is, and no other', async () => {
    const first = await mount('here', 'chunkmount:one');
    const bound = path.join(directory, 'there');
    fs.mkdirSync(bound);
    await run('mount', ['--bind', first, bound]);
    mounted.push(bound);
    await mount('other', 'chunkmount:one2');
    expect(mountpointsOf('chunkmount:one')).toEqual([first, bound]);
    expect(mountpointsOf('chunkmount:')).toEqual([]);
  });
});

describe('isMountedForOthers', () => {
  const SOURCE = 'chunkmount:others:x';

  /** Two processes in a mount namespace of their own, made while there was a mount that is gone for us. */
  async function withCopy(work: (pids: readonly number[]) => Promise<void> | void): Promise<void> {
    const mountpoint = await mount('copied', SOURCE);
    const args = ['--mount', '--propagation=private', 'sh', '-c', 'sleep 60 & echo $$ $!; exec sleep 60'];
    const child = spawn('unshare', args, { stdio: ['ignore', 'pipe', 'ignore'], detached: true });
    try {
      const [said] = (await once(child.stdout, 'data')) as [Buffer];
      await run('umount', [mountpoint]);
      mounted.pop();
      await work(said.toString().trim().split(' ').map(Number));
    } finally {
      const exit = once(child, 'exit');
      process.kill(-child.pid!, 'SIGKILL');
      await exit;
    }
  }

  it('finds a mount of which another mount namespace has a copy, until that is gone', async () => {
    await withCopy(() => {
      expect(mountpointsOf(SOURCE)).toEqual([]);
      expect(isMountedForOthers(SOURCE)).toBe(true);
      expect(isMountedForOthers('chunkmount:others')).toBe(false);
    });
    await eventually(async () => !isMountedForOthers(SOURCE));
  });

  it('asks another process of it when one ends meanwhile', async () => {
    await withCopy((pids) => {
      const first = `/proc/${Math.min(...pids)}/mountinfo`;
      const original: (...args: never) => unknown = fs.readFileSync;
      replaceInFs('readFileSync', (...args: never) => {
        if (args[0] === first) throw Object.assign(new Error(`ENOENT: ${first}`), { code: 'ENOENT' });
        return original(...args);
      });
      expect(isMountedForOthers(SOURCE)).toBe(true);
    });
  });
});

describe('listMounts', () => {
  it('lists the root', () => {
    expect(listMounts().map(({ mountpoint }) => mountpoint)).toContain('/');
  });
});
