import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { eventually, TestLibvirt } from '../support/libvirt.js';
import { build, requireAll } from '../support/requirements.js';
import { chunkFile, testBytes } from '../support/trees.js';
import { flipBit, KIB } from './demo-tree.js';
import { expectError } from './image-session.js';
import { removeDomain, vmTree } from './vm-tree.js';

/** A virsh that never comes back from `define`, and says who it is. */
const WAITING_VIRSH = `#!/bin/sh
case " $* " in *" define "*) echo $$ > "$WAITS.new" && mv "$WAITS.new" "$WAITS"; exec sleep 60;; esac
PATH=\${PATH#*:} exec virsh "$@"
`;

/** An mv that puts something in the place of the NVRAM first. */
const PUTTING_MV = `#!/bin/sh
echo precious > "$NVRAM"
PATH=\${PATH#*:} exec mv "$@"
`;

const FILES = ['mail01-vda.raw', 'mail01-vdb.raw', 'mail01_VARS.fd'];

let libvirt: TestLibvirt;
let chunkmount: TestChunkmount;
let storage: string;
let args: string[];

beforeAll(async () => {
  await requireAll(build);
  libvirt = await TestLibvirt.start();
  chunkmount = new TestChunkmount();
  const bin = chunkmount.path('bin');
  fs.mkdirSync(bin);
  fs.writeFileSync(path.join(bin, 'virsh'), WAITING_VIRSH, { mode: 0o755 });
});

afterAll(async () => {
  await chunkmount?.close();
  await libvirt?.close();
});

beforeEach(({ task }) => {
  const tree = chunkmount.path(`tree-${task.id}`);
  const loader = chunkmount.path('loader.fd');
  fs.writeFileSync(loader, Buffer.alloc(256 * KIB));
  vmTree(tree, {
    os: `<loader readonly='yes' type='pflash'>${loader}</loader><nvram>/nowhere/mail01_VARS.fd</nvram>`,
    more: '<features><acpi/></features>',
    extras: [{ file: 'nvram.fd', kind: 'nvram', content: testBytes(256 * KIB, 31) }],
  });
  storage = chunkmount.path(`images-${task.id}`);
  fs.mkdirSync(storage);
  args = ['restore', tree, '--define', `--storage=${storage}`, `--connect=${libvirt.uri}`];
});

/** Ends the command while libvirt is asked to define the VM, when all files are there. */
async function endWhileDefining(signal: 'SIGINT' | 'SIGKILL', ...options: string[]) {
  const waits = chunkmount.path('waits');
  fs.rmSync(waits, { force: true });
  const PATH = `${chunkmount.path('bin')}:${process.env.PATH}`;
  const command = chunkmount.start([...args, ...options], { PATH, WAITS: waits });
  await eventually(async () => fs.existsSync(waits));
  command.kill(signal);
  const result = await command;
  // It outlives a command that was killed.
  if (signal === 'SIGKILL') process.kill(Number(fs.readFileSync(waits, 'latin1')), 'SIGKILL');
  return result;
}

it.each(['SIGINT', 'SIGKILL'] as const)(
  '%s while the VM is defined: the same command goes on',
  async (signal) => {
    const { exitCode, stderr } = await endWhileDefining(signal);
    if (signal === 'SIGINT') {
      expect(exitCode, stderr).toBe(130);
      expect(stderr).toContain('the disks of mail01 are restored, but it is not defined: ');
      expect(stderr).toContain('run the same command again');
    }
    expect(await libvirt.virsh.list()).toEqual([]);
    const again = await chunkmount.run(args);
    expect(again.exitCode, again.stderr).toBe(0);
    expect(again.stderr).toContain('vdb has been restored to');
    expect(again.stdout).toBe('mail01\n');
    expect(fs.readdirSync(storage).sort()).toEqual(FILES);
    await removeDomain(libvirt, 'mail01');
  },
);

it('takes no image that a VM was put on meanwhile', async () => {
  await endWhileDefining('SIGKILL');
  const file = path.join(storage, 'mail01-vda.raw');
  await libvirt.define('other', [{ target: 'vda', path: file, format: 'raw' }], { start: false });
  expect(expectError(await chunkmount.run(args), 2).message).toBe(`${file} belongs to the VM other`);
  await removeDomain(libvirt, 'other');
});

it('replaces no NVRAM that somebody put in its place meanwhile', async () => {
  const nvram = path.join(storage, 'mail01_VARS.fd');
  const bin = chunkmount.path('bin of mv');
  fs.mkdirSync(bin);
  // It gives the image of a disk its name.
  fs.writeFileSync(path.join(bin, 'mv'), PUTTING_MV, { mode: 0o755 });
  const env = { NVRAM: nvram, PATH: `${bin}:${process.env.PATH}` };
  expect(expectError(await chunkmount.run(args, env), 2).message).toBe(`${nvram} exists`);
  expect(fs.readFileSync(nvram, 'utf8')).toBe('precious\n');
  for (const file of fs.readdirSync(storage).filter((name) => name.endsWith('.raw')))
    fs.rmSync(path.join(storage, file));
  const before = fs.readdirSync(storage);
  expect(expectError(await chunkmount.run(args), 2).message).toBe(`${nvram} exists`);
  expect(fs.readdirSync(storage)).toEqual(before);
  fs.rmSync(nvram);
  const again = await chunkmount.run(args);
  expect(again.exitCode, again.stderr).toBe(0);
  expect(fs.readdirSync(storage).sort()).toEqual(FILES);
  await removeDomain(libvirt, 'mail01');
});

it('takes no image for finished that was restored with damage', async () => {
  const chunk = path.join(args[1]!, chunkFile('vda', 0));
  flipBit(chunk);
  await endWhileDefining('SIGKILL', '--keep-going');
  flipBit(chunk);
  const image = path.join(storage, 'mail01-vda.raw');
  expect(expectError(await chunkmount.run(args), 2).message).toBe(`${image} exists`);
});
