import * as fs from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { expectError, traces } from './expectations.js';

/** Options that would be ignored are wrong usage: `--quiesce=require` has to fail where nothing is quiesced. */
describe('an option that does not go with what is asked for', () => {
  const chunkmount = new TestChunkmount();
  const image = chunkmount.path('disk.raw');
  const given = [`--image=${image}`, '--name=demo'];

  beforeAll(() => fs.writeFileSync(image, Buffer.alloc(4096, 1)));

  afterAll(() => {
    expect(traces(chunkmount)).toEqual([]);
    fs.rmSync(chunkmount.directory, { recursive: true });
  });

  async function expectRefused(args: string[], message: string, hint: string): Promise<void> {
    const told = expectError(await chunkmount.run(args), 2);
    expect(told).toEqual({ message, hint });
    expect(fs.existsSync(chunkmount.stateDirectory)).toBe(false);
  }

  const OF_VMS = [
    ...['--quiesce', '--quiesce=try', '--quiesce=require', '--state', '--shutdown', '--shutdown-timeout=5'],
    ...['--snapsize=5G', '--snap-autoextend', '--overlay-dir=/tmp', '--commit-timeout=5', '--connect=x:///'],
  ];

  it.each(OF_VMS)('--image with %s', async (option) => {
    const [long] = option.split('=');
    const message = `mount --image does not take ${long}`;
    await expectRefused([...given, option], message, `${long}: for mount --vm`);
  });

  it.each(['overlay', 'lvm', 'reflink', 'pull'])('--image with --snapshot=%s', async (kind) => {
    const message = 'mount --image does not take --snapshot';
    await expectRefused([...given, `--snapshot=${kind}`], message, '--snapshot: of an image none is made');
  });

  it.each<[string, string[], string[]]>([
    ['mount', [], ['--keep-overlay', '--keep-snapshot']],
    ['run', ['--', 'true'], ['--state', '--keep-overlay', '--keep-snapshot']],
    ['dump', [], ['--state', '--quiesce']],
    ['estimate', [], ['--keep-overlay', '--keep-snapshot']],
  ])('%s of an image', async (verb, rest, options) => {
    const told = expectError(await chunkmount.run([verb, ...given, ...options, ...rest]), 2);
    expect(told.message).toBe(`${verb} --image does not take ${told.hint.split(':')[0]}`);
    for (const option of options) expect(told.message).toContain(option);
  });

  const CHAIN = ['chain', '--vm=mail01', '--to=/x'];

  it.each<[string[], string, string]>([
    [
      [...CHAIN, '--disk=vda'],
      'chain --vm does not take --disk',
      '--disk: disks are left out with --exclude',
    ],
    [
      [...CHAIN, '--at=1', '--format=raw', '--force'],
      'chain --vm does not take --at, --format, --force',
      '--at, --format, --force: for chain restore',
    ],
    [
      [...CHAIN, '--consolidate', '--disk=vda'],
      'chain --consolidate does not take --disk',
      '--disk: disks are left out with --exclude',
    ],
    [
      [...CHAIN, '--method=blockpull'],
      'chain --vm does not take --method',
      '--method: for chain --consolidate',
    ],
    [
      [...CHAIN, '--consolidate-only', '--quiesce'],
      'chain --consolidate-only does not take --to, --quiesce',
      '--to, --quiesce: it copies nothing; --consolidate merges after a copy',
    ],
    [
      ['chain', 'list', '/x', '--to=/y', '--disk=vda', '--at=99', '--force'],
      'chain list does not take --to, --at, --disk, --force',
      '--to: for chain --vm; --at, --disk, --force: for chain restore',
    ],
    [
      ['chain', 'restore', '/x', '--to=/y', '--exclude=vda', '--full'],
      'chain restore does not take --full, --exclude',
      '--full: for chain --vm; --exclude: disks are chosen with --disk',
    ],
    [
      ['boot', '--list', '--name=x', '--storage=/y', '--no-network', '--connect=x:///'],
      'boot --list does not take --connect, --name, --storage, --no-network',
      '--connect, --name, --storage, --no-network: for boot TREE',
    ],
    [
      ['boot', '--finish=x', '--no-network'],
      'boot --finish does not take --no-network',
      '--no-network: for boot TREE',
    ],
    [
      ['boot', '--discard=x', '--connect=x:///'],
      'boot --discard does not take --connect',
      '--connect: its libvirt is known since it was booted',
    ],
    [
      ['cleanup', '--all', '--vm=mail01'],
      'cleanup --all does not take --vm',
      '--vm: leave out that, or --all',
    ],
    [
      ['cleanup', '--all', '--name=demo'],
      'cleanup --all does not take --name',
      '--name: leave out that, or --all',
    ],
    [
      ['restore', '/x', '--to=/y', '--connect=x:///', '--start'],
      'restore --to does not take --start, --connect',
      '--start, --connect: for restore --define',
    ],
    [
      ['restore', '/x', '--to=-', '--force'],
      'restore --to=- does not take --force',
      '--force: for restore --to',
    ],
    [
      ['restore', '/x', '--define', '--disk=vda'],
      'restore --define does not take --disk',
      '--disk: all disks are restored, to --storage',
    ],
    [
      ['verify', '/x', '--size=1M', '--sample=5%'],
      'verify --size does not take --sample',
      '--sample: without sums only sizes are looked at, and no content',
    ],
  ])('%j', expectRefused);

  it('is not one that an image has a use for, or that says what is so', async () => {
    const options = [
      ...['--exclude=disk1', '--snapshot=none', '--chunk-size=64K', '--transport=auto', '--direct-io'],
      ...['--allow-other', '--owner=root', '--max-backups=3', '--layout=chunkmount', '--zero-chunks=keep'],
      ...['--track=still', '--audit=1%', '--full-scan', '--full-scan-every=1d', '--nice=1', '--ionice=idle'],
      ...['--bwlimit=50M', '--format=raw', '--keep-lock'],
      ...[`--statedir=${chunkmount.stateDirectory}`, `--backupdir=${chunkmount.backupDirectory}`],
    ];
    const run = ['run', `--image=${image},${image}`, '--name=demo'];
    await chunkmount.succeed(...run, ...options, '--', 'true');
    await chunkmount.succeed('unlock', '--name=demo', `--backupdir=${chunkmount.backupDirectory}`);
    await chunkmount.succeed(...run, '--no-snapshot', '--', 'true');
    await chunkmount.succeed('cleanup', '--all', '--vm=all', '--kept');
    await chunkmount.succeed('list', `--backupdir=${chunkmount.backupDirectory}`);
    const dump = ['dump', ...given, '--image-format=raw', '--compress', '--date', '--owner=root'];
    await chunkmount.succeed(...dump);
    fs.rmSync(chunkmount.backupDirectory, { recursive: true });
  });

  it('says that a tracker which was named is not for this disk', async () => {
    const args = [`--image=${image}`, '--name=demo', '--track=bitmap'];
    const { exitCode, stderr } = await chunkmount.run(args);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 0,
      stderr: expect.stringMatching(/^chunkmount: warning: disk disk0: --track=bitmap has no effect: .*\n$/),
    });
    await chunkmount.succeed('cleanup', '--all');
  });
});
