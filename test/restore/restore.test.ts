import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { beforeAll, describe, expect, it } from 'vitest';
import type { RestoreOptions } from '../../src/commands/restore.js';
import { run } from '../../src/host/exec.js';
import type { RestoreResult } from '../../src/restore/restore-disk.js';
import { CLI } from '../support/chunkmount.js';
import { isOpen } from '../support/descriptors.js';
import { build, program, requireAll } from '../support/requirements.js';
import { testBytes, writeTree } from '../support/trees.js';
import { built, errorOf, RecordingContext, temporaryDirectory } from './built.js';
import { CHUNK, CHUNKS, DEMO_SIZE, demoContent, demoTree, flipBit, KIB, MIB, ZEROS } from './demo-tree.js';

type Module = typeof import('../../src/commands/restore.js');
let runRestore: Module['runRestore'];

beforeAll(async () => {
  await requireAll(build, program('qemu-img', 'qemu-utils'), program('flock', 'util-linux'));
  ({ runRestore } = await built<Module>('commands/restore'));
});

const DEFAULTS = { force: false, delta: false, keepGoing: false };

type Given = Partial<RestoreOptions> & Pick<RestoreOptions, 'tree' | 'to'>;

/** Restores with `--json`. */
async function restore(given: Given, context = new RecordingContext(true)): Promise<RestoreResult[]> {
  await runRestore({ ...DEFAULTS, ...given }, context);
  return (JSON.parse(context.text) as { disks: RestoreResult[] }).disks;
}

function allocated(file: string): number {
  return fs.statSync(file).blocks * 512;
}

/** Nothing but these names is in the directory: no partial files are left. */
function expectOnly(directory: string, ...names: string[]): void {
  expect(fs.readdirSync(directory).sort()).toEqual([...names].sort());
}

describe('restore to a new file', () => {
  it.each([
    0,
    1,
    511,
    4095,
    4096,
    4097,
    8192,
    255 * 4096,
    256 * 4096 - 1,
    256 * 4096,
    256 * 4096 + 1,
    513 * 4096 + 5,
  ])('gives back a disk of %i bytes', async (size) => {
    const content = testBytes(size, size + 1);
    const { root, beside } = demoTree(content, 4 * KIB);
    const [result] = await restore({ tree: root, to: beside('new.img') });
    expect(fs.readFileSync(beside('new.img')).equals(content)).toBe(true);
    expect(result).toMatchObject({
      disk: 'vda',
      to: fs.realpathSync(beside('new.img')),
      format: 'raw',
      size,
    });
  });

  it('makes holes of chunks of zeros', async () => {
    const { root, content, beside, directory } = demoTree();
    const [result] = await restore({ tree: root, to: beside('new.img') });
    const zero = ZEROS[1] - ZEROS[0];
    expect(result).toMatchObject({
      chunks: CHUNKS,
      written: CHUNKS - zero,
      zero,
      unchanged: 0,
      damageCount: 0,
    });
    expect(fs.readFileSync(beside('new.img')).equals(content)).toBe(true);
    expect(allocated(beside('new.img'))).toBeLessThanOrEqual(DEMO_SIZE - zero * CHUNK + 64 * KIB);
    expectOnly(directory, 'mail01', 'new.img');
  });

  it('makes it readable for its owner only', async () => {
    const { root, beside } = demoTree();
    await restore({ tree: root, to: beside('new.img') });
    expect(fs.statSync(beside('new.img')).mode & 0o777).toBe(0o600);
  });

  it('closes it, and what it was read from', async () => {
    const { root, beside, chunk } = demoTree();
    const to = beside('new.img');
    for (const given of [{}, { delta: true }, { force: true }]) {
      await restore({ tree: root, to, ...given });
      const files = [to, root, path.join(root, 'vda'), path.dirname(chunk(0)), chunk(0)];
      expect(files.map((file) => isOpen(fs.realpathSync(file)))).toEqual(files.map(() => false));
    }
  });

  it('prints the path of the image, and everything else elsewhere', async () => {
    const { root, beside } = demoTree();
    const context = new RecordingContext();
    await runRestore({ ...DEFAULTS, tree: root, to: beside('new.img') }, context);
    expect(context.text).toBe(`${fs.realpathSync(beside('new.img'))}\n`);
    expect(context.messages).toEqual([
      `progress: restoring vda ${DEMO_SIZE} of ${DEMO_SIZE}`,
      expect.stringMatching(/^notice: vda \(.*\) restored to .*: 500 of 700 chunks written, 200 are zeros$/),
    ]);
  });

  it.each([4 * KIB, 256 * KIB, 16 * MIB])('works with chunks of %i bytes', async (chunkSize) => {
    const content = testBytes(17 * MIB + 3, 2, [[MIB, 3 * MIB]]);
    const { root, beside } = demoTree(content, chunkSize);
    await restore({ tree: root, to: beside('new.img') });
    expect(fs.readFileSync(beside('new.img')).equals(content)).toBe(true);
  });

  it('writes a chunk that only has the hash of zeros in the sums', async () => {
    const { root, beside, chunk } = demoTree();
    flipBit(chunk(150));
    const error = await errorOf(
      runRestore({ ...DEFAULTS, tree: root, to: beside('new.img') }, new RecordingContext()),
      'integrity',
    );
    expect(error.message).toContain('vda/000000/00000096 is corrupt');
  });

  it('refuses an existing file, and replaces it with --force, owner and mode kept', async () => {
    const { root, content, beside, directory } = demoTree();
    const to = beside('old.img');
    fs.writeFileSync(to, 'old');
    fs.chmodSync(to, 0o640);
    fs.chownSync(to, 12, 34);
    const error = await errorOf(restore({ tree: root, to }), 'usage');
    expect(error.message).toBe(`${fs.realpathSync(to)} exists`);
    expect(fs.readFileSync(to, 'utf8')).toBe('old');
    await restore({ tree: root, to, force: true });
    expect(fs.readFileSync(to).equals(content)).toBe(true);
    expect(fs.statSync(to)).toMatchObject({ uid: 12, gid: 34, mode: 0o100640 });
    expectOnly(directory, 'mail01', 'old.img');
  });

  it('replaces what a symbolic link leads to, not the link', async () => {
    const { root, content, beside } = demoTree();
    fs.mkdirSync(beside('storage'));
    fs.writeFileSync(beside('storage/disk.img'), 'old');
    fs.symlinkSync('storage/disk.img', beside('link.img'));
    await restore({ tree: root, to: beside('link.img'), force: true });
    expect(fs.lstatSync(beside('link.img')).isSymbolicLink()).toBe(true);
    expect(fs.readFileSync(beside('storage/disk.img')).equals(content)).toBe(true);
  });

  it.each([
    ['a directory that does not exist', 'no/such/new.img', /^.*no\/such is no directory$/],
    ['a directory that is a file', 'file/new.img', /^.*\/file is no directory$/],
    ['a pipe', '/dev/null', /^\/dev\/null is no file and no block device$/],
    ['a dangling link', 'dangling', /is a symbolic link to nothing$/],
    ['the tree', 'mail01', /mail01 lies in the tree, which stays as it is$/],
    ['a new file in a directory of a disk', 'mail01/vda/new.img', /lies in the tree/],
  ])('refuses %s', async (_, to, message) => {
    const { root, beside } = demoTree();
    fs.symlinkSync('nowhere', beside('dangling'));
    fs.writeFileSync(beside('file'), '');
    const error = await errorOf(restore({ tree: root, to: path.resolve(beside('.'), to) }), 'usage');
    expect(error.message).toMatch(message);
  });

  it('refuses a pipe that has no place, as /dev/stdout may be', async () => {
    const { root } = demoTree();
    const { exitCode, stderr } = await execa(process.execPath, [CLI, 'restore', root, '--to=/dev/stdout'], {
      reject: false,
    });
    expect([exitCode, stderr]).toEqual([2, expect.stringContaining('use --to=- and redirect the output')]);
  });

  it('names a directory that cannot be made', async () => {
    const { root, beside } = demoTree();
    fs.writeFileSync(beside('file'), '');
    const error = await errorOf(restore({ tree: root, to: `${beside('file')}/` }), 'failed');
    expect(error.message).toBe(`the directory ${beside('file')}/ cannot be made: EEXIST`);
  });

  it('refuses a tree that is none, and a disk that is none', async () => {
    const { root, directory, beside } = demoTree();
    const to = beside('new.img');
    expect((await errorOf(restore({ tree: beside('none'), to }), 'usage')).message).toContain(
      'no such directory',
    );
    expect((await errorOf(restore({ tree: directory, to }), 'integrity')).message).toBe(
      `${directory}/manifest.json is missing`,
    );
    const error = await errorOf(restore({ tree: root, to, disks: ['vdb'] }), 'usage');
    expect([error.message, error.hint]).toEqual([`${root} has no disk "vdb"`, 'it has: vda']);
  });

  it('refuses a second restore to the same file while one is running', async () => {
    const { root, beside } = demoTree();
    const part = beside('.new.img.chunkmount-part');
    const fd = fs.openSync(part, 'w', 0o600);
    await run('flock', ['-x', '-n', '3'], { descriptors: [fd] });
    const error = await errorOf(restore({ tree: root, to: beside('new.img') }), 'locked');
    expect(error.message).toContain('another command is restoring to');
    fs.closeSync(fd);
    await restore({ tree: root, to: beside('new.img') });
  });

  it('does not write to an image that another restore has finished a moment before', async () => {
    const { root, beside, directory } = demoTree();
    const [part, to] = [beside('.new.img.chunkmount-part'), beside('new.img')];
    fs.writeFileSync(part, 'restored', { mode: 0o600 });
    const bin = path.join(directory, 'bin');
    fs.mkdirSync(bin);
    const saved = process.env.PATH;
    const flock = `#!/bin/sh\nmv '${part}' '${to}'\nPATH='${saved}' exec flock "$@"\n`;
    fs.writeFileSync(path.join(bin, 'flock'), flock, { mode: 0o755 });
    process.env.PATH = `${bin}:${saved}`;
    try {
      await errorOf(restore({ tree: root, to }), 'locked');
    } finally {
      process.env.PATH = saved;
    }
    expect(fs.readFileSync(to, 'utf8')).toBe('restored');
  });

  it('does not write through a link in the place of the partial file', async () => {
    const { root, beside } = demoTree();
    fs.writeFileSync(beside('victim'), 'precious');
    fs.symlinkSync('victim', beside('.new.img.chunkmount-part'));
    await errorOf(restore({ tree: root, to: beside('new.img') }), 'failed');
    expect(fs.readFileSync(beside('victim'), 'utf8')).toBe('precious');
  });

  it.each([
    ['has another name', (part: string) => fs.linkSync(part, `${part}.too`)],
    ['is of another user', (part: string) => fs.chownSync(part, 65534, 65534)],
  ])('does not write to a file in the place of the partial file that %s', async (_, change) => {
    const { root, beside } = demoTree();
    const part = beside('.new.img.chunkmount-part');
    fs.writeFileSync(part, 'precious');
    change(part);
    const { message } = await errorOf(restore({ tree: root, to: beside('new.img') }), 'failed');
    expect(message).toBe(`${part} is not a partial image of ours`);
    expect(fs.readFileSync(part, 'utf8')).toBe('precious');
  });
});

describe('restore of several disks', () => {
  const disks = [
    { target: 'vda', content: testBytes(100_000, 1) },
    { target: 'vdb', content: testBytes(300_000, 2) },
  ];

  function tree(): { root: string; directory: string } {
    const directory = temporaryDirectory();
    const root = path.join(directory, 'two');
    writeTree(root, { name: 'two', disks });
    return { root, directory };
  }

  it('needs a directory, which is made if it ends in /', async () => {
    const { root, directory } = tree();
    const error = await errorOf(restore({ tree: root, to: path.join(directory, 'new.img') }), 'usage');
    expect(error.message).toBe(`${root} has 2 disks: vda, vdb`);
    const results = await restore({ tree: root, to: `${directory}/new/` });
    expect(results.map(({ disk }) => disk)).toEqual(['vda', 'vdb']);
    expect(fs.readFileSync(path.join(directory, 'new/vda.raw')).equals(disks[0]!.content)).toBe(true);
    expect(fs.readFileSync(path.join(directory, 'new/vdb.raw')).equals(disks[1]!.content)).toBe(true);
  });

  it('looks at all places before it writes anything', async () => {
    const { root, directory } = tree();
    fs.mkdirSync(path.join(directory, 'new'));
    fs.writeFileSync(path.join(directory, 'new/vdb.raw'), '');
    const error = await errorOf(restore({ tree: root, to: path.join(directory, 'new') }), 'usage');
    expect(error.message).toMatch(/new\/vdb\.raw exists$/);
    expectOnly(path.join(directory, 'new'), 'vdb.raw');
  });

  it('goes on with the disks that are missing when it was cut off', async () => {
    const { root, directory } = tree();
    const options = { tree: root, to: `${directory}/new/` };
    flipBit(path.join(root, 'vdb/000000/00000001'));
    await errorOf(restore(options), 'integrity');
    const { ino, mtimeMs } = fs.statSync(path.join(directory, 'new/vda.raw'));
    flipBit(path.join(root, 'vdb/000000/00000001'));
    const results = await restore(options);
    expect(results.map(({ disk }) => disk)).toEqual(['vdb']);
    expect(fs.statSync(path.join(directory, 'new/vda.raw'))).toMatchObject({ ino, mtimeMs });
    expect(fs.readFileSync(path.join(directory, 'new/vdb.raw')).equals(disks[1]!.content)).toBe(true);
    expectOnly(path.join(directory, 'new'), 'vda.raw', 'vdb.raw');
    await errorOf(restore(options), 'usage');
  });

  it('does not take a file for its own that somebody has touched since', async () => {
    const { root, directory } = tree();
    flipBit(path.join(root, 'vdb/000000/00000001'));
    const options = { tree: root, to: `${directory}/new/` };
    await errorOf(restore(options), 'integrity');
    fs.appendFileSync(path.join(directory, 'new/vda.raw'), 'x');
    expect((await errorOf(restore(options), 'usage')).message).toMatch(/vda\.raw exists$/);
  });

  it('takes one of them with --disk', async () => {
    const { root, directory } = tree();
    await restore({ tree: root, to: path.join(directory, 'b.img'), disks: ['vdb'] });
    expect(fs.readFileSync(path.join(directory, 'b.img')).equals(disks[1]!.content)).toBe(true);
  });
});

describe('restore to qcow2', () => {
  it.each([
    ['plain', { format: 'qcow2' }, 'new.img', false],
    ['by the name of the file', {}, 'new.qcow2', false],
    ['compressed', { format: 'qcow2', compression: 'zlib' }, 'new.img', true],
    ['compressed with zstd', { format: 'qcow2', compression: 'zstd' }, 'new.img', true],
  ] as const)('gives the same disk: %s', async (_, options, name, compressed) => {
    const content = demoContent();
    // Compressible: a long text.
    content.fill('all work and no play ', 300 * CHUNK, 600 * CHUNK);
    const { root, beside, directory } = demoTree(content);
    const to = beside(name);
    const [result] = await restore({ tree: root, to, ...options });
    expect(result).toMatchObject({ format: 'qcow2', to: fs.realpathSync(to) });
    expectOnly(directory, 'mail01', name);
    expect(fs.statSync(to).mode & 0o777).toBe(0o600);
    await run('qemu-img', ['check', '-f', 'qcow2', to]);
    await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', to, beside('raw')]);
    // QEMU rounds the size up to whole sectors.
    const raw = fs.readFileSync(beside('raw'));
    expect(raw.subarray(0, DEMO_SIZE).equals(content)).toBe(true);
    expect(allocated(to) < 1.8 * MIB).toBe(compressed);
  });

  it('leaves nothing half-done under its name when qemu-img fails', async () => {
    const { root, beside, directory } = demoTree();
    const bin = path.join(directory, 'bin');
    fs.mkdirSync(bin);
    fs.writeFileSync(path.join(bin, 'qemu-img'), '#!/bin/sh\necho "no space" >&2\nexit 1\n', { mode: 0o755 });
    const saved = process.env.PATH;
    process.env.PATH = `${bin}:${saved}`;
    try {
      const context = new RecordingContext();
      const options = { ...DEFAULTS, tree: root, to: beside('new.qcow2') };
      expect((await errorOf(runRestore(options, context), 'failed')).message).toContain('no space');
      expect(context.messages.at(-1)).toContain('the same command goes on from there');
    } finally {
      process.env.PATH = saved;
    }
    expect(fs.existsSync(beside('new.qcow2'))).toBe(false);
    const [result] = await restore({ tree: root, to: beside('new.qcow2') });
    expect(result).toMatchObject({ unchanged: CHUNKS, written: 0 });
    expectOnly(directory, 'bin', 'mail01', 'new.qcow2');
  });

  it('refuses what cannot be', async () => {
    const { root, beside } = demoTree();
    const to = beside('new.img');
    await errorOf(restore({ tree: root, to, compression: 'zlib' }), 'usage');
    fs.writeFileSync(to, '');
    await errorOf(restore({ tree: root, to, format: 'qcow2', delta: true }), 'usage');
  });
});

describe('restore to standard output', () => {
  it('writes the disk and nothing else', async () => {
    const { root, content } = demoTree();
    const context = new RecordingContext();
    await runRestore({ ...DEFAULTS, tree: root, to: '-' }, context);
    expect(context.output.equals(content)).toBe(true);
  });

  it('stops before a damaged chunk', async () => {
    const { root, content, chunk } = demoTree();
    flipBit(chunk(400));
    const context = new RecordingContext();
    const error = await errorOf(runRestore({ ...DEFAULTS, tree: root, to: '-' }, context), 'integrity');
    expect(error.message).toContain('vda/000001/00000190 is corrupt');
    expect(context.output.equals(content.subarray(0, 400 * CHUNK))).toBe(true);
  });

  it('puts zeros in place of a damaged chunk with --keep-going', async () => {
    const { root, content, chunk } = demoTree();
    flipBit(chunk(400));
    const context = new RecordingContext();
    await errorOf(runRestore({ ...DEFAULTS, tree: root, to: '-', keepGoing: true }, context), 'integrity');
    content.fill(0, 400 * CHUNK, 401 * CHUNK);
    expect(context.output.equals(content)).toBe(true);
  });

  it('goes with raw only, and not with --json', async () => {
    const { root } = demoTree();
    const to = '-';
    await errorOf(
      runRestore({ ...DEFAULTS, tree: root, to, format: 'qcow2' }, new RecordingContext()),
      'usage',
    );
    await errorOf(runRestore({ ...DEFAULTS, tree: root, to }, new RecordingContext(true)), 'usage');
  });
});
