import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { run } from '../../src/host/exec.js';
import { mountAt } from '../../src/host/mountinfo.js';
import { loopDevices } from './images.js';
import { program, requireAll, root } from './requirements.js';

export type FileSystemKind = 'xfs' | 'btrfs' | 'ext4';

/** The file systems whose files can share blocks. */
export const REFLINK_KINDS = ['xfs', 'btrfs'] as const;

/** mkfs.xfs makes none smaller than 300 MB. The file is sparse. */
const SIZE = 320 * 2 ** 20;

const MKFS: Readonly<Record<FileSystemKind, readonly string[]>> = {
  xfs: ['mkfs.xfs', '-q', '-K'],
  btrfs: ['mkfs.btrfs', '-q'],
  ext4: ['mkfs.ext4', '-q', '-F'],
};

const PACKAGES = { xfs: 'xfsprogs', btrfs: 'btrfs-progs', ext4: 'e2fsprogs' } as const;

/** A file system in a file, mounted. libvirtd sees it if it is started afterwards. */
export class TestFileSystem {
  private constructor(
    private readonly image: string,
    /** Where it is mounted. */
    readonly directory: string,
    /** Of mount(8). */
    private readonly options: readonly string[],
  ) {}

  static async make(
    kind: FileSystemKind,
    {
      mkfs = [],
      mount = [],
      size = SIZE,
    }: { mkfs?: readonly string[]; mount?: readonly string[]; size?: number } = {},
  ): Promise<TestFileSystem> {
    const [command = '', ...options] = MKFS[kind];
    await requireAll(
      root,
      loopDevices,
      program(command, PACKAGES[kind]),
      program('filefrag', 'e2fsprogs'),
      program('losetup', 'mount'),
    );
    const directory = fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), `cm-${kind}-`));
    fs.chmodSync(directory, 0o755);
    const image = `${directory}.img`;
    fs.writeFileSync(image, '');
    fs.truncateSync(image, size);
    await run(command, [...options, ...mkfs, image]);
    await run('mount', ['-o', ['loop', ...mount].join(','), image, directory]);
    fs.chmodSync(directory, 0o755);
    return new TestFileSystem(image, directory, mount);
  }

  /** Does `work` with the file system as it would be after a power failure at this moment. It must not be XFS, which mounts none twice. */
  async afterPowerFailure<T>(work: (directory: string) => T | Promise<T>): Promise<T> {
    const directory = `${this.directory}-copy`;
    const image = `${directory}.img`;
    await run('cp', ['--sparse=always', this.image, image]);
    fs.mkdirSync(directory);
    try {
      await run('mount', ['-o', 'loop', image, directory]);
      try {
        return await work(directory);
      } finally {
        await run('umount', [directory]);
      }
    } finally {
      fs.rmdirSync(directory);
      fs.rmSync(image);
    }
  }

  /** `storageLost`: its storage goes away before, with all that was not written out. */
  async mountAnew({ storageLost = false } = {}): Promise<void> {
    if (storageLost) await run('xfs_io', ['-x', '-c', 'shutdown', this.directory]);
    const device = mountAt(this.directory)!.source;
    // As long as it is open it stays the same loop device: another number would make other files of all that is on it.
    const fd = fs.openSync(device, 'r');
    try {
      await run('umount', [this.directory]);
      await run('mount', ['-o', ['rw', ...this.options].join(','), device, this.directory]);
    } finally {
      fs.closeSync(fd);
    }
  }

  /** Does `work` with this as the directory for temporary files. */
  async asTemporary<T>(work: () => T | Promise<T>): Promise<T> {
    const before = process.env.TMPDIR;
    process.env.TMPDIR = this.directory;
    try {
      return await work();
    } finally {
      if (before === undefined) delete process.env.TMPDIR;
      else process.env.TMPDIR = before;
    }
  }

  async close(): Promise<void> {
    // Lazily: a journal that the test has left open keeps it until the test's process ends.
    await run('umount', ['--lazy', this.directory]);
    fs.rmdirSync(this.directory);
    fs.rmSync(this.image);
  }
}
