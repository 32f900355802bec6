import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { Virsh } from '../../src/libvirt/virsh.js';
import { askShell } from '../../src/libvirt/virsh-shell.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { build, requireAll } from '../support/requirements.js';

const realPath = process.env.PATH;
/** A virsh without a command: `--quiet --connect URI`. */
const IS_SHELL = '[ $# -le 3 ]';
/** Its name still says whose it is. */
const HANG = 'exec -a "$3" sleep 600';

let libvirt: TestLibvirt;
let domain: TestDomain;
let bin: string;
let log: string;
let count = 0;

beforeAll(async () => {
  await requireAll(build);
  libvirt = await TestLibvirt.start();
  const image = path.join(libvirt.directory, 'a.img');
  await makeImage(image, 'raw', 1024 * 1024);
  domain = await libvirt.define('asked', [{ target: 'vda', path: image, format: 'raw' }]);
});

afterAll(() => libvirt?.close());

beforeEach(() => {
  bin = path.join(libvirt.directory, `bin-${++count}`);
  fs.mkdirSync(bin);
  log = path.join(bin, 'log');
});

afterEach(() => {
  process.env.PATH = realPath;
});

/** A virsh that notes each start, after what a few lines of shell do. Each has its own connection, and so a shell of its own. */
function virshThrough(lines = ''): Virsh {
  const script = `#!/bin/bash\necho "$4" >>'${log}'\n${lines}\nPATH='${realPath}' exec virsh "$@"\n`;
  fs.writeFileSync(path.join(bin, 'virsh'), script, { mode: 0o755 });
  process.env.PATH = `${bin}:${realPath}`;
  return new Virsh({ connect: `${libvirt.uri}&mode=direct#${count}` });
}

/** The commands that were started, '' for a virsh to talk to. */
const started = () => fs.readFileSync(log, 'utf8').split('\n').slice(0, -1);
const running = () => findProcesses((argv) => argv.some((arg) => arg.endsWith(`#${count}`)));

async function ended(): Promise<void> {
  while (running().length > 0) await new Promise((resolve) => setTimeout(resolve, 20));
}

describe('questions to libvirt', () => {
  it('are all asked of one virsh, each with the answer that a virsh of its own gives', async () => {
    const virsh = virshThrough();
    const { uuid } = domain;
    const [list, xml, inactive, state, job, domainJob, size] = await Promise.all([
      virsh.list(),
      virsh.dumpXml(uuid),
      virsh.dumpXml(uuid, { inactive: true }),
      virsh.state(uuid),
      virsh.blockJob(uuid, 'vda'),
      virsh.domainJob(uuid),
      virsh.diskSize(uuid, 'vda'),
    ]);
    expect(started()).toEqual(['']);
    expect(list).toEqual([{ uuid, name: 'asked' }]);
    expect(xml).toBe(await virsh.call('dumpxml', ['--domain', uuid]));
    expect(inactive).toBe(await virsh.call('dumpxml', ['--domain', uuid, '--inactive']));
    expect([state.state, job, domainJob, size]).toEqual(['running', undefined, undefined, 1024 * 1024]);
  });

  it('are asked of a virsh of its own when there is no answer, which says why', async () => {
    const virsh = virshThrough();
    const nosuch = '11111111-2222-3333-4444-555555555555';
    await expect(virsh.dumpXml(nosuch)).rejects.toThrow(/^virsh dumpxml failed: failed to get domain/);
    expect((await virsh.list()).length).toBe(1);
    expect(started()).toEqual(['', 'dumpxml']);
  });

  it('are not believed an answer that comes with a complaint', async () => {
    const virsh = virshThrough(`${IS_SHELL} && echo 'error: Disconnected from qemu' >&2`);
    expect((await virsh.list()).length).toBe(1);
    expect((await virsh.list()).length).toBe(1);
    expect(started()).toEqual(['', 'list']);
  });

  it.each([
    ['hangs', HANG],
    ['ends', 'exit 0'],
    ['fails', 'echo no >&2; exit 1'],
    ['closes its input', 'exec <&-; sleep 3; exit 1'],
  ])('have their answers when the virsh to talk to %s, and it is not tried again', async (_, does) => {
    const virsh = virshThrough(`if ${IS_SHELL}; then ${does}; fi`);
    const lists = await Promise.all([virsh.list(), virsh.list()]);
    lists.push(await virsh.list());
    expect(lists.map((list) => list.length)).toEqual([1, 1, 1]);
    expect(started()).toEqual(['', 'list', 'list', 'list']);
    await ended();
  });

  it('that are given up wait no longer', async () => {
    const virsh = virshThrough(HANG);
    const signal = AbortSignal.timeout(100);
    let gaveUp = Infinity;
    signal.addEventListener('abort', () => {
      gaveUp = performance.now();
    });
    await expect(virsh.withSignal(signal).list()).rejects.toThrow(/virsh list was stopped/);
    expect(performance.now() - gaveUp).toBeLessThan(1500);
    await ended();
  });

  it('of a command that was stopped leave nothing, though nobody answers', async () => {
    const { connect } = virshThrough(HANG).options;
    const chunkmount = new TestChunkmount();
    const command = chunkmount.start(['mount', '--vm=asked', `--connect=${connect}`]);
    while (running().length < 2) await new Promise((resolve) => setTimeout(resolve, 20));
    command.kill('SIGTERM');
    expect((await command).exitCode).toBe(143);
    await ended();
    await chunkmount.close();
  });

  it('cannot be asked where there is no room for one more virsh, which is no error', () => {
    const code = `import { openSync } from 'node:fs';
      import { startShell } from ${JSON.stringify(path.resolve(import.meta.dirname, '../../build/libvirt/virsh-shell.js'))};
      try { for (;;) openSync('/dev/null'); } catch {}
      if (startShell({ connect: 'qemu:///system' }) !== undefined) process.exit(3);
      setImmediate(() => process.exit(4));`;
    const { status } = spawnSync('prlimit', [
      '--nofile=64',
      process.execPath,
      '--input-type=module',
      '-e',
      code,
    ]);
    expect(status).toBe(4);
  });

  it('find libvirt again after it was restarted', async () => {
    const virsh = virshThrough();
    expect((await virsh.list()).length).toBe(1);
    await libvirt.stopDaemon();
    await expect(virsh.list()).rejects.toThrow(/cannot be reached/);
    await libvirt.startDaemon();
    expect((await virsh.state(domain.uuid)).state).toBe('running');
  });

  it('are asked as they are: no word of them is a command', async () => {
    const { connect } = virshThrough().options;
    for (const word of ['a;echo', "a'b", 'a b', 'a"b', 'a\\b', '#', '', 'a\necho', '`id`'])
      expect(await askShell(['echo', word], { connect })).toBeUndefined();
    expect(await askShell(['echo', 'word'], { connect })).toContain('word');
  });

  it('leave nothing in the files of the administrator', async () => {
    const home = process.env.HOME;
    process.env.HOME = bin;
    try {
      const virsh = virshThrough();
      expect((await virsh.list()).length).toBe(1);
      // Nobody asks any more: it ends by itself.
      await ended();
      expect(started()).toEqual(['']);
      expect((await virsh.list()).length).toBe(1);
      expect(started()).toEqual(['', '']);
      expect(fs.readdirSync(bin).sort()).toEqual(['log', 'virsh']);
    } finally {
      process.env.HOME = home;
    }
  });

  it('are not asked of the virsh of other hosts and users: it may ask for a password', async () => {
    for (const connect of ['qemu+ssh://host/system', 'qemu:///session', 'test:///default', 'qemu:///systemx'])
      expect(await askShell(['uri'], { connect })).toBeUndefined();
  });
});
