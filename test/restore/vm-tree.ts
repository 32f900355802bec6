import * as fs from 'node:fs';
import { run } from '../../src/host/exec.js';
import type { TestDomain, TestLibvirt } from '../support/libvirt.js';
import { type TestDisk, testBytes, writeTree } from '../support/trees.js';
import { KIB, MIB } from './demo-tree.js';

/** Content of the disks of `vmTree`: data, zeros, an odd size. */
export const CONTENT = {
  vda: testBytes(3 * MIB, 21, [[MIB, 2 * MIB]]),
  vdb: testBytes(MIB + 512, 22),
};

export const UUID = 'c7a5fdbd-edaf-4455-926a-d65c16db1809';
export const MAC = '52:54:00:12:34:56';

export interface VmTreeOptions {
  /** More elements of `<devices>`. */
  readonly devices?: string;
  /** More elements of `<domain>`. */
  readonly more?: string;
  readonly os?: string;
  readonly extras?: Parameters<typeof writeTree>[1]['extras'];
  /** Layouts of the disks. */
  readonly looks?: { readonly vda: TestDisk['look']; readonly vdb: TestDisk['look'] };
}

/** The definition of a VM as a backup has it: with two disks where this host has none, and a network card. */
export function vmXml({ devices = '', more = '', os = '' }: VmTreeOptions = {}): string {
  const disk = (target: string) =>
    `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/nowhere/${target}.qcow2'/><target dev='${target}' bus='virtio'/></disk>`;
  return `<domain type='qemu'><name>mail01</name><uuid>${UUID}</uuid><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type>${os}</os>${more}
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>${disk('vda')}${disk('vdb')}
<interface type='user'><mac address='${MAC}'/><model type='virtio'/></interface>${devices}</devices></domain>`;
}

/** A tree of that VM in `directory`, which must not exist. */
export function vmTree(directory: string, options: VmTreeOptions = {}): void {
  const disks = Object.entries(CONTENT).map(([target, content]) => ({
    target,
    content,
    chunkSize: 64 * KIB,
    look: options.looks?.[target as 'vda' | 'vdb'],
  }));
  const { extras = [] } = options;
  writeTree(directory, { name: 'mail01', uuid: UUID, xml: vmXml(options), disks, extras });
}

/** Whether an image, also one in use, holds exactly these bytes. */
export async function holds(
  file: string,
  format: string,
  content: Buffer,
  scratch: string,
): Promise<boolean> {
  const raw = `${scratch}/holds.raw`;
  await run('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', file, raw]);
  return fs.readFileSync(raw).equals(content);
}

/** Ends and forgets a domain if there is one of that name. */
export async function removeDomain(libvirt: TestLibvirt, name: string): Promise<void> {
  const found = (await libvirt.virsh.list()).find((domain) => domain.name === name);
  if (found === undefined) return;
  const domain: TestDomain = found;
  if ((await libvirt.virsh.list('active')).some(({ uuid }) => uuid === domain.uuid))
    await libvirt.killQemu(domain);
  await libvirt.virsh.call('undefine', ['--domain', domain.uuid, '--managed-save', '--keep-nvram']);
}
