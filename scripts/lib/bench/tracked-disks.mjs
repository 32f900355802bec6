import * as fs from 'node:fs';
import * as path from 'node:path';
import { run } from './run.mjs';
import { fillDisk, writeImage } from './tracked-machine.mjs';

/**
 * The disks that are backed up, a tracker each. Each has:
 *   name      of the tracker, for the table
 *   note      where its disk lies, and how it is frozen
 *   options   of chunkmount
 *   make()    makes the disk: { file, format, block }
 *   write()   writes chunks between two sessions
 *   remove()
 */

class RawFile {
  constructor(directory, layout) {
    this.layout = layout;
    this.file = path.join(directory, 'disk.raw');
  }

  async make() {
    fs.writeFileSync(this.file, '');
    fs.truncateSync(this.file, this.layout.size);
    fillDisk(this.file, this.layout);
    return { file: this.file, format: 'raw', block: false };
  }

  async write(machine, offsets, round) {
    await machine.write(offsets, round);
  }

  async remove() {
    fs.rmSync(this.file, { force: true });
  }
}

class Untracked extends RawFile {
  name = 'none';
  note = 'raw file, overlay';
  options = ['--track=none'];
}

class KeptOverlay extends RawFile {
  name = 'overlay';
  note = 'raw file, `--keep-overlay`';
  options = ['--keep-overlay', '--track=overlay'];
}

/** The VM is off. */
class Still extends RawFile {
  name = 'still';
  note = 'raw file, `--image`';
  options = ['--track=still'];
  isImage = true;

  async write(_machine, offsets) {
    writeImage(this.file, offsets);
  }
}

class Bitmap {
  name = 'bitmap';
  note = 'qcow2, `--snapshot=pull`';
  options = ['--snapshot=pull', '--track=bitmap'];

  constructor(directory, layout) {
    this.raw = new RawFile(directory, layout);
    this.file = path.join(directory, 'disk.qcow2');
    this.write = this.raw.write;
  }

  async make() {
    const { file } = await this.raw.make();
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', file, this.file]);
    await this.raw.remove();
    return { file: this.file, format: 'qcow2', block: false };
  }

  async remove() {
    fs.rmSync(this.file, { force: true });
  }
}

class Reflink {
  name = 'reflink';
  note = 'raw file on XFS, `--snapshot=reflink --keep-snapshot`';
  options = ['--snapshot=reflink', '--keep-snapshot', '--track=reflink'];

  constructor(directory, layout) {
    this.mounted = false;
    this.device = path.join(directory, 'xfs.img');
    this.mountpoint = path.join(directory, 'xfs');
    this.size = 4 * layout.data + Math.ceil(layout.size / 64);
    this.raw = new RawFile(this.mountpoint, layout);
    this.write = this.raw.write;
  }

  async make() {
    fs.mkdirSync(this.mountpoint);
    fs.writeFileSync(this.device, '');
    fs.truncateSync(this.device, this.size);
    await run('mkfs.xfs', ['-q', this.device]);
    await run('mount', ['-o', 'loop', this.device, this.mountpoint]);
    this.mounted = true;
    return this.raw.make();
  }

  async remove() {
    if (this.mounted) await run('umount', [this.mountpoint], { evenSo: true });
    fs.rmSync(this.device, { force: true });
  }
}

/** Only where there is device-mapper. */
class Thin {
  name = 'thin';
  note = 'thin volume, `--keep-snapshot`';
  options = ['--keep-snapshot', '--track=thin'];

  constructor(_directory, layout) {
    this.layout = layout;
  }

  async make() {
    await run('lvcreate', ['--yes', '--type=thin-pool', '--extents=90%FREE', '--name=pool', 'cmtest']);
    await run('lvcreate', ['--yes', '--thin', `--virtualsize=${this.layout.size}b`, '--name=disk', 'cmtest/pool']);
    const file = '/dev/cmtest/disk';
    fillDisk(file, this.layout);
    return { file, format: 'raw', block: true };
  }

  write = RawFile.prototype.write;

  async remove() {
    await run('lvremove', ['--yes', 'cmtest/pool'], { evenSo: true });
  }
}

class UntrackedThin extends Thin {
  name = 'none-thin';
  note = 'thin volume, no tracker';
  options = ['--track=none'];
}

export const DISKS = { none: Untracked, still: Still, overlay: KeptOverlay, reflink: Reflink, bitmap: Bitmap, thin: Thin, 'none-thin': UntrackedThin };
