import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect } from 'vitest';
import { choosePoint, openChain, restorePoint } from '../../src/chain/restore-point.js';
import { type ChainRequest, type ChainResult, runChain } from '../../src/chain/run-chain.js';
import { run } from '../../src/host/exec.js';
import { loadDomain, loadInactive } from '../../src/libvirt/load-domain.js';
import { silentReporter } from '../../src/report/reporter.js';
import { StateDirectory } from '../../src/session/state-directory.js';
import { diskBytes } from '../support/dumps.js';
import { makeImage, type TestDisk, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { RecordingReporter } from '../support/snapshot-session.js';

export const KIB = 1024;
export const MIB = 1024 * KIB;

export let libvirt: TestLibvirt;
export let count = 0;
/** Of the images. */
export let directory: string;
/** Where the copies go, and where one VM's are. */
export let to: string;
export let chain: string;
export let domain: TestDomain;
export let state: StateDirectory;
export let reporter: RecordingReporter;
/** What was in the directory of the images before the first run. */
export const OWN = ['own.qcow2', 'vda.qcow2', 'vdb.img'];

let disks: TestDisk[];

/** To be called once by a test file: each of its tests has a VM with a qcow2 image on a backing file of its own, and a raw one. */
export function useChainVm(): void {
  beforeAll(async () => {
    libvirt = await TestLibvirt.start();
  });

  afterAll(() => libvirt?.close());

  beforeEach(async () => {
    count++;
    directory = path.join(libvirt.directory, `images ${count}`);
    fs.mkdirSync(directory);
    to = path.join(libvirt.directory, `copies, ${count}`);
    state = new StateDirectory(path.join(libvirt.directory, `state-${count}`));
    reporter = new RecordingReporter();
    const [own, vda, vdb] = OWN.map((name) => path.join(directory, name)) as [string, string, string];
    await makeImage(own, 'qcow2', 4 * MIB, 0x11);
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', own, vda]);
    await makeImage(vdb, 'raw', 2 * MIB + 512, 0x12);
    disks = [
      { target: 'vda', path: vda, format: 'qcow2' },
      { target: 'vdb', path: vdb, format: 'raw' },
    ];
    domain = await libvirt.define(`chain-${count}`, disks);
    chain = path.join(to, domain.name);
  });

  afterEach(async () => {
    await libvirt.remove(domain);
  });
}

export function request(options: Partial<ChainRequest> = {}): ChainRequest {
  return {
    name: domain.name,
    state,
    command: 'chain',
    connect: libvirt.uri,
    to,
    consolidate: undefined,
    exclude: [],
    full: false,
    options: { quiesce: 'no' },
    reporter,
    ...options,
  };
}

/** One run, as the command does it. */
export function runOnce(options: Partial<ChainRequest> = {}): Promise<ChainResult> {
  return runChain(request(options));
}

export async function disksNow() {
  return (await loadDomain(libvirt.virsh, domain.name)).disks;
}

export async function pathsNow(): Promise<(string | undefined)[]> {
  return (await disksNow()).map((disk) => disk.path);
}

export async function pathsAtNextStart(): Promise<(string | undefined)[]> {
  return (await loadInactive(libvirt.virsh, domain.uuid)).disks.map((disk) => disk.path);
}

export type Contents = Readonly<Record<string, Buffer>>;

/** What the disks hold now, while nobody writes. Throws unless what the guest wrote last is there. */
export async function contentsNow(): Promise<Contents> {
  const contents: Record<string, Buffer> = {};
  for (const [index, { target, path: file, format }] of (await disksNow()).entries()) {
    // What QEMU has in memory only: after a merge, tables of the base.
    await guestIo(index, 'flush');
    const content = await diskBytes(file!, format!);
    const last = content.subarray(LAST.offset, LAST.offset + LAST.length);
    if (!last.every((byte) => byte === pattern()))
      throw new Error(`the guest's last write is not on ${target}`);
    contents[target] = content;
  }
  return contents;
}

export function own(): string[] {
  return disks.map((disk) => disk.path);
}

/** Layers beside the VM's own images. */
export function layers(): string[] {
  return fs.readdirSync(directory).filter((file) => !OWN.includes(file));
}

export function copies(): string[] {
  return fs.existsSync(chain) ? fs.readdirSync(chain).sort() : [];
}

let written = 0;
const LAST = { offset: MIB + 512, length: 8 * KIB };
const pattern = () => 0x20 + (written % 0xc0);

async function guestIo(disk: number, command: string): Promise<void> {
  const hmp = `qemu-io -d /machine/peripheral/virtio-disk${disk}/virtio-backend "${command}"`;
  const args = ['--domain', domain.uuid, '--hmp', '--cmd', hmp];
  const said = await libvirt.virsh.call('qemu-monitor-command', args);
  if (said.trim() !== '') throw new Error(said);
}

/** The guest writes somewhere else each time, and once over what was there; `contentsNow` looks whether it did. */
export async function write(): Promise<void> {
  written++;
  const offset = (written % 16) * 64 * KIB + 4 * KIB;
  for (const disk of [0, 1]) {
    await guestIo(disk, `write -P ${pattern()} ${offset} ${68 * KIB}`);
    await guestIo(disk, `write -P ${pattern()} ${LAST.offset} ${LAST.length}`);
  }
}

/** Writes, takes a point, and returns what is to be found in it. */
export async function writeAndRun(options: Partial<ChainRequest> = {}): Promise<Contents> {
  await write();
  const contents = await contentsNow();
  await runOnce(options);
  return contents;
}

export async function restored(at: string, target: string): Promise<Buffer> {
  const record = openChain(chain);
  const copy = choosePoint(record, at).disks.find((one) => one.target === target)!;
  const image = path.join(libvirt.directory, `restored-${count}.raw`);
  const options = { force: true, reporter: silentReporter };
  await restorePoint({ directory: chain, copy, to: image, format: 'raw', ...options }, record);
  const bytes = fs.readFileSync(image);
  fs.rmSync(image);
  return bytes;
}

/** Each point gives back what the disks were, and nothing else is in the directory. */
export async function expectPoints(points: readonly Contents[]): Promise<void> {
  expect(openChain(chain).points.map(({ number }) => number)).toEqual(points.map((_, index) => index + 1));
  for (const [index, contents] of points.entries()) {
    for (const [target, content] of Object.entries(contents)) {
      const got = await restored(String(index + 1), target);
      expect(got.equals(content), `${target} at point ${index + 1}`).toBe(true);
    }
  }
  const numbers = points.map((_, index) => String(index + 1).padStart(4, '0'));
  const names = numbers.flatMap((number) => [`${number}.xml`, `vda.${number}.qcow2`, `vdb.${number}.qcow2`]);
  expect(copies()).toEqual([...names, 'chain.json'].sort());
}

/** Nobody works on the VM, and nothing is left to be done. */
export function expectIdle(): void {
  expect(state.sessions()).toEqual([]);
}
