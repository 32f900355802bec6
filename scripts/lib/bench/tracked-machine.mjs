import { randomFillSync } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { run } from './run.mjs';
import { CHUNK_SIZE } from './workspace.mjs';

export const VM = 'bench';
const MIB = 1024 ** 2;
/** The data lies in so many places of the disk. */
const REGIONS = 64;
/** Of virsh, in one argument: well below the limit of 128 KiB. */
const COMMANDS_AT_ONCE = 200;
/** One chunk of data in so many is written between two sessions. */
const WRITTEN_EVERY = 100;

/** A large disk of which little is data: all sizes in bytes. */
export class Layout {
  constructor(size, data) {
    this.size = size;
    this.data = data;
  }

  /** Offsets and length of the data. */
  regions() {
    const length = this.data / REGIONS;
    return Array.from({ length: REGIONS }, (_, i) => ({ offset: i * (this.size / REGIONS), length }));
  }

  /** Offsets of the chunks that are written before session `round`: others each time. */
  written(round) {
    const { length } = this.regions()[0];
    const chunks = this.data / CHUNK_SIZE;
    const count = Math.floor(chunks / WRITTEN_EVERY);
    return Array.from({ length: count }, (_, i) => (i * WRITTEN_EVERY + (round % WRITTEN_EVERY)) * CHUNK_SIZE).map(
      (at) => Math.floor(at / length) * (this.size / REGIONS) + (at % length),
    );
  }
}

/** Fills the data of a disk, a file or a block device, with random bytes. */
export function fillDisk(file, layout) {
  const block = Buffer.alloc(4 * MIB);
  const fd = fs.openSync(file, 'r+');
  for (const { offset, length } of layout.regions()) {
    for (let at = 0; at < length; at += block.length) fs.writeSync(fd, randomFillSync(block), 0, block.length, offset + at);
  }
  fs.fsyncSync(fd);
  fs.closeSync(fd);
}

/** Writes chunks into the image, as nobody does while a VM has it open. */
export function writeImage(file, offsets) {
  const chunk = Buffer.alloc(CHUNK_SIZE);
  const fd = fs.openSync(file, 'r+');
  for (const offset of offsets) fs.writeSync(fd, randomFillSync(chunk), 0, CHUNK_SIZE, offset);
  fs.fsyncSync(fd);
  fs.closeSync(fd);
}

/** A BIOS that halts the processor with its first instruction, as nothing is to be booted: cli; hlt; jmp back. */
function writeFirmware(file) {
  const rom = Buffer.alloc(64 * 1024, 0xf4);
  Buffer.from([0xfa, 0xf4, 0xeb, 0xfd]).copy(rom, rom.length - 16);
  fs.writeFileSync(file, rom);
}

/** A VM without an operating system, of the libvirt of scripts/lib/sandbox or scripts/lvm-vm. */
export class Machine {
  constructor(directory) {
    this.firmware = path.join(directory, 'halt.rom');
    this.xml = path.join(directory, 'domain.xml');
    writeFirmware(this.firmware);
  }

  async start({ file, format, block }) {
    const source = block ? `<disk type='block' device='disk'><source dev='${file}'/>` : `<disk type='file' device='disk'><source file='${file}'/>`;
    fs.writeFileSync(
      this.xml,
      `<domain type='qemu'><name>${VM}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><loader type='rom'>${this.firmware}</loader></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
${source}<driver name='qemu' type='${format}' discard='unmap'/><target dev='vda' bus='virtio'/></disk>
</devices></domain>`,
    );
    await run('virsh', ['define', this.xml]);
    await run('virsh', ['start', VM]);
  }

  /** What a guest would do. */
  async write(offsets, pattern) {
    const device = '/machine/peripheral/virtio-disk0/virtio-backend';
    const commands = offsets.map(
      (offset) =>
        `qemu-monitor-command ${VM} --hmp 'qemu-io -d ${device} "write -P ${pattern} ${offset} ${CHUNK_SIZE}"'`,
    );
    // One virsh for each would take longer than all else.
    for (let at = 0; at < commands.length; at += COMMANDS_AT_ONCE)
      await run('virsh', [commands.slice(at, at + COMMANDS_AT_ONCE).join('; ')]);
  }

  async stop() {
    await run('virsh', ['destroy', VM], { evenSo: true });
    await run('virsh', ['undefine', VM, '--checkpoints-metadata', '--snapshots-metadata'], { evenSo: true });
  }
}
