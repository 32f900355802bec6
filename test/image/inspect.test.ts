import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { ChunkmountError } from '../../src/errors.js';
import { run } from '../../src/host/exec.js';
import type { ImageReference } from '../../src/image/image-reference.js';
import { inspectImage } from '../../src/image/inspect.js';
import { silentReporter } from '../../src/report/reporter.js';
import { asNobody } from '../support/as-nobody.js';
import {
  created,
  DISK_SIZE,
  diskContent,
  hole,
  IMAGE_KINDS,
  noise,
  overlay,
  qemuImg,
  qemuIo,
  temporaryDirectory,
  writeRaw,
} from '../support/images.js';
import { program, requireAll, root } from '../support/requirements.js';
import { inspect, readImage } from './open-image.js';

let directory: string;
beforeAll(async () => {
  await requireAll(program('qemu-img', 'qemu-utils'), program('qemu-io', 'qemu-utils'));
  directory = temporaryDirectory();
});
afterAll(() => fs.rmSync(directory, { recursive: true }));

/** The error that inspecting the image gives; its first line has to name `file`. */
async function refusal(image: ImageReference, file = image.path): Promise<ChunkmountError> {
  const error: unknown = await inspect(image).then(
    () => new Error('it was accepted'),
    (reason: unknown) => reason,
  );
  if (!(error instanceof ChunkmountError)) throw error;
  expect(error.kind).toBe('failed');
  expect(error.message).toContain(file);
  return error;
}

function fresh(): string {
  return fs.mkdtempSync(path.join(directory, 'test-'));
}

describe('inspected image', () => {
  it.each(IMAGE_KINDS)('$name: size, and zeros only where there are zeros', async ({ make }) => {
    const image = await make(fresh());
    const content = await diskContent(image);
    const { virtualSize, extents, layers, sources } = await inspect(image);
    expect(virtualSize).toBe(content.length);
    expect(extents.size).toBe(virtualSize);
    expect(layers[0]).toMatchObject(image);
    expect(JSON.parse(JSON.stringify(sources))).toEqual(sources);
    for (let position = 0; position < virtualSize; position += 4096) {
      const length = Math.min(4096, virtualSize - position);
      const zero = content.subarray(position, position + length).every((byte) => byte === 0);
      if (extents.isZero(position, length)) expect(zero, `zeros at ${position}`).toBe(true);
    }
  });

  it('holes cost nothing: only what was written is data', async () => {
    const image = hole(path.join(fresh(), 'disk.raw'), 64 << 20);
    await qemuIo(image, 'write -P 1 1M 64k', 'write -P 2 32M 64k');
    const { extents } = await inspect(image);
    expect(extents.dataBytes).toBe(128 << 10);
    expect(extents.count).toBe(5);
  });

  it('sources are the files that hold data, and no others', async () => {
    const own = fresh();
    const base = writeRaw(path.join(own, 'base.raw'), DISK_SIZE);
    const middle = await overlay(path.join(own, 'middle.qcow2'), base);
    const top = await overlay(path.join(own, 'top.qcow2'), middle);
    await qemuIo(top, 'write -P 1 0 64k');
    const { sources, layers } = await inspect(top);
    expect(sources.map((source) => source.kind === 'file' && source.path)).toEqual([top.path, base.path]);
    expect(layers.map((layer) => [layer.path, layer.format])).toEqual([
      [top.path, 'qcow2'],
      [middle.path, 'qcow2'],
      [base.path, 'raw'],
    ]);
  });

  it('10 TiB of nothing are mapped without walking them, raw and qcow2', async () => {
    const own = fresh();
    const size = 10 * 2 ** 40;
    for (const image of [
      hole(path.join(own, 'disk.raw'), size),
      await created(path.join(own, 'disk.qcow2'), 'qcow2', size),
    ]) {
      const begin = performance.now();
      const { virtualSize, extents, sources } = await inspect(image);
      // Not a benchmark: 0.1 to 0.6 s were seen, by the load of the machine.
      expect(performance.now() - begin).toBeLessThan(10_000);
      expect([virtualSize, extents.count, extents.dataBytes, sources.length]).toEqual([size, 1, 0, 0]);
    }
  });

  it('changes no image', async () => {
    const own = fresh();
    const image = await overlay(path.join(own, 'top.qcow2'), writeRaw(path.join(own, 'base.raw'), DISK_SIZE));
    await qemuIo(image, 'write -P 1 0 64k');
    const before = fs
      .readdirSync(own)
      .map((name) => [name, fs.readFileSync(path.join(own, name)).toString('base64')]);
    await readImage(image);
    expect(
      fs.readdirSync(own).map((name) => [name, fs.readFileSync(path.join(own, name)).toString('base64')]),
    ).toEqual(before);
  });

  it('ends when told to', async () => {
    const image = writeRaw(path.join(fresh(), 'disk.raw'), DISK_SIZE);
    const inspection = inspectImage(image, { signal: AbortSignal.abort(), reporter: silentReporter });
    await expect(inspection).rejects.toThrow('stopped');
  });
});

describe('names that mean something to QEMU or to a shell', () => {
  it.each([
    'with spaces',
    'comma,file.driver=nbd',
    'we:ird',
    'nbd:unix:nowhere',
    'quote"and\'quote',
    'back\\slash',
    '-U',
    '--help',
    'json:{"driver":"null-co"}',
    'percent%s$(id)`id`',
    'ümläut-名前',
    'new\nline',
    'driver=raw',
  ])('%j', async (name) => {
    const own = fresh();
    const plain = writeRaw(path.join(own, 'plain.raw'), DISK_SIZE);
    const base = { path: path.join(own, name), format: 'raw' };
    fs.copyFileSync(plain.path, base.path);
    const content = await diskContent(plain);
    expect((await readImage(base)).equals(content)).toBe(true);
    // Made with a plain name first: qemu-img itself would take some of these for something else.
    const top = await overlay(path.join(own, 'top.qcow2'), plain);
    await qemuImg('rebase', '-u', '-f', 'qcow2', '-F', 'raw', '-b', base.path, top.path);
    fs.renameSync(top.path, `${base.path}.qcow2`);
    expect((await readImage({ path: `${base.path}.qcow2`, format: 'qcow2' })).equals(content)).toBe(true);
    const packed = path.join(own, 'packed.qcow2');
    await qemuImg('convert', '-c', '-f', 'raw', '-O', 'qcow2', plain.path, packed);
    fs.renameSync(packed, `${base.path}.packed`);
    expect((await readImage({ path: `${base.path}.packed`, format: 'qcow2' })).equals(content)).toBe(true);
  });
});

describe('images that are refused', () => {
  it('missing, a directory, a device that is none, a fifo', async () => {
    const own = fresh();
    expect((await refusal({ path: path.join(own, 'none'), format: 'raw' })).message).toContain(
      'does not exist',
    );
    expect((await refusal({ path: path.join(own, 'none/x'), format: 'qcow2' })).message).toContain(
      'does not exist',
    );
    const fifo = path.join(own, 'fifo');
    await run('mkfifo', [fifo]);
    for (const file of [own, '/dev/null', fifo]) {
      expect((await refusal({ path: file, format: 'raw' })).message).toContain(
        'neither a file nor a block device',
      );
    }
  });

  it('not of the format that was said, cut off, or garbage', async () => {
    const own = fresh();
    const raw = writeRaw(path.join(own, 'disk.raw'), DISK_SIZE);
    for (const format of ['qcow2', 'vmdk', 'vdi', 'vhdx', 'vpc', 'qed', 'qcow', 'parallels']) {
      const error = await refusal({ path: raw.path, format });
      expect(error.message).toContain(`cannot be read as ${format}`);
      expect(error.message).not.toContain('json:');
      expect(error.hint).toContain('qemu-img check');
    }
    const image = await created(path.join(own, 'disk.qcow2'), 'qcow2', DISK_SIZE);
    fs.truncateSync(image.path, 50);
    await refusal(image);
  });

  it('a qcow2 file that lost its end: QEMU would read zeros there', async () => {
    const image = await created(path.join(fresh(), 'disk.qcow2'), 'qcow2', DISK_SIZE);
    await qemuIo(image, 'write -P 1 0 1M');
    fs.truncateSync(image.path, fs.statSync(image.path).size - (1 << 19));
    expect((await refusal(image)).message).toContain('cut off');
  });

  it('marked as corrupt', async () => {
    const image = await created(path.join(fresh(), 'disk.qcow2'), 'qcow2', DISK_SIZE);
    const fd = fs.openSync(image.path, 'r+');
    // incompatible_features, 64 bits big-endian at byte 72; bit 1 = corrupt (QEMU's docs/interop/qcow2.txt).
    fs.writeSync(fd, Buffer.from([2]), 0, 1, 79);
    fs.closeSync(fd);
    const error = await refusal(image);
    expect(error.message).toContain('corrupt');
    expect(error.hint).toContain('qemu-img check -r');
  });

  it('encrypted', async () => {
    const own = fresh();
    const file = path.join(own, 'disk.qcow2');
    const secret = ['--object', 'secret,id=key,data=123456'];
    const crypto = 'encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10';
    const create = () => qemuImg('create', '-q', ...secret, '-f', 'qcow2', '-o', crypto, file, '1M');
    // It measures how long it takes to derive a key, and gives up when the kernel's clock has not moved: where that ticks slowly.
    await vi.waitFor(create, { timeout: 60_000 });
    expect((await refusal({ path: file, format: 'qcow2' })).message).toContain('encrypted');
  });

  it('not readable by this user, with what to do', async (context) => {
    await requireAll(root);
    const own = fresh();
    fs.chmodSync(directory, 0o755);
    fs.chmodSync(own, 0o755);
    const file = writeRaw(path.join(own, 'disk.raw'), 512).path;
    fs.chmodSync(file, 0o600);
    await asNobody(context, async () => {
      const error = await refusal({ path: file, format: 'raw' });
      expect(error.message).toContain('EACCES');
      expect(error.hint).toContain('root');
    });
  });
});

describe('backing files', () => {
  /** A qcow2 whose header says what qemu-img would not write by itself. */
  async function claiming(name: string, format?: string): Promise<ImageReference> {
    const own = fresh();
    const top = await overlay(path.join(own, 'top.qcow2'), writeRaw(path.join(own, 'base.raw'), DISK_SIZE));
    const formats = format === undefined ? [] : ['-F', format];
    await run('qemu-img', ['rebase', '-u', '-f', 'qcow2', ...formats, '-b', name, top.path]);
    return top;
  }

  it('without a recorded format', async () => {
    const own = fresh();
    const base = writeRaw(path.join(own, 'base.raw'), DISK_SIZE);
    const top = await overlay(path.join(own, 'top.qcow2'), base);
    const bytes = fs.readFileSync(top.path);
    // Header extension 0xE2792ACA is the backing format; an unknown extension is ignored (docs/interop/qcow2.txt).
    const at = bytes.indexOf(Buffer.from('e2792aca', 'hex'));
    expect(at).toBeGreaterThan(0);
    bytes.writeUInt32BE(0x12345678, at);
    fs.writeFileSync(top.path, bytes);
    const error = await refusal(top);
    expect(error.message).toContain('does not record the format');
    expect(error.hint).toContain('qemu-img rebase -u');
    expect(error.hint).toContain('-F raw -b');
    await qemuImg('rebase', '-u', '-f', 'qcow2', '-F', 'raw', '-b', base.path, top.path);
    await inspect(top);
  });

  it.each([
    'nbd://localhost/x',
    'nbd:unix:/nowhere',
    'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
    'file:base.raw',
    'ssh://host/x',
  ])('%s', async (name) => {
    const error = await refusal(await claiming(name, 'raw'));
    expect(error.message).toContain('not a plain path');
    expect(error.message).toContain(JSON.stringify(name));
    expect(error.hint).toContain('qemu-img rebase -u');
  });

  it('missing', async () => {
    const top = await claiming('/nowhere/base.raw', 'raw');
    const error = await refusal(top, '/nowhere/base.raw');
    expect(error.message).toContain(`the backing file of ${top.path}, /nowhere/base.raw does not exist`);
  });

  it('others than its VM was told', async () => {
    const own = fresh();
    const base = writeRaw(path.join(own, 'base.raw'), DISK_SIZE);
    const other = writeRaw(path.join(own, 'other.raw'), DISK_SIZE);
    const top = await overlay(path.join(own, 'top.qcow2'), base);
    fs.symlinkSync(base.path, path.join(own, 'link'));
    for (const below of [undefined, [base], [{ ...base, path: path.join(own, 'link') }]])
      await inspect({ ...top, below });
    await inspect({ ...base, below: [] });
    const lost = { path: path.join(own, 'lost'), format: 'raw' };
    for (const below of [[other], [lost], [{ ...base, format: 'qcow2' }], [base, other], []])
      expect((await refusal({ ...top, below }, own)).message).toMatch(/ lies on .*, and its VM uses it on /);
  });

  it('in a loop', async () => {
    const own = fresh();
    const a = await created(path.join(own, 'a.qcow2'), 'qcow2', DISK_SIZE);
    const b = await overlay(path.join(own, 'b.qcow2'), a);
    const link = path.join(own, 'link.qcow2');
    fs.symlinkSync(b.path, link);
    await qemuImg('rebase', '-u', '-f', 'qcow2', '-F', 'qcow2', '-b', link, a.path);
    expect((await refusal(b)).message).toContain('itself');
  });

  it('of 64 layers are read, of 65 refused', async () => {
    const own = fresh();
    let image = writeRaw(path.join(own, '0.raw'), 512);
    for (let i = 1; i < 64; i++) image = await overlay(path.join(own, `${i}.qcow2`), image, 512, ['-u']);
    expect((await inspect(image)).layers.length).toBe(64);
    expect((await readImage(image)).equals(noise(512, 4))).toBe(true);
    const error = await refusal(await overlay(path.join(own, '64.qcow2'), image, 512, ['-u']));
    expect(error.message).toContain('64');
  });

  it('a data file with a relative or missing name', async () => {
    const own = fresh();
    const args = ['create', '-q', '-f', 'qcow2', '-o', 'data_file=data', 'disk.qcow2', '1M'];
    await run('qemu-img', args, { cwd: own });
    const image = { path: path.join(own, 'disk.qcow2'), format: 'qcow2' };
    const error = await refusal(image);
    expect(error.message).toContain('without an absolute path: data');
    await run('qemu-img', ['amend', '-f', 'qcow2', '-o', `data_file=${path.join(own, 'data')}`, image.path], {
      cwd: own,
    });
    await inspect(image);
    fs.rmSync(path.join(own, 'data'));
    expect((await refusal(image, path.join(own, 'data'))).message).toContain('does not exist');
  });

  it('a VMDK descriptor that names a file elsewhere', async () => {
    const own = fresh();
    const file = path.join(own, 'disk.vmdk');
    await qemuImg('create', '-q', '-f', 'vmdk', '-o', 'subformat=monolithicFlat', file, '1M');
    const elsewhere = fresh();
    fs.renameSync(path.join(own, 'disk-flat.vmdk'), path.join(elsewhere, 'secret'));
    fs.writeFileSync(
      file,
      fs.readFileSync(file, 'latin1').replace('disk-flat.vmdk', path.join(elsewhere, 'secret')),
      'latin1',
    );
    expect((await refusal({ path: file, format: 'vmdk' })).message).toContain(path.join(elsewhere, 'secret'));
  });
});

describe('a guest that writes a header into its raw disk (probing exploit)', () => {
  it('gets back its header, not the host file that it names', async () => {
    const own = fresh();
    const secret = path.join(own, 'host-secret');
    fs.writeFileSync(secret, Buffer.alloc(65536, 'secret'));
    const forged = await overlay(path.join(own, 'forged'), { path: secret, format: 'raw' });
    const disk = { path: path.join(own, 'guest.raw'), format: 'raw' };
    fs.copyFileSync(forged.path, disk.path);
    // The exploit works where the format is probed.
    const { stdout } = await run('qemu-img', ['info', '--output=json', disk.path]);
    expect(JSON.parse(stdout)).toMatchObject({ format: 'qcow2', 'backing-filename': secret });

    const overlayed = await overlay(path.join(own, 'guest.qcow2'), disk);
    const bytes = fs.readFileSync(disk.path);
    for (const image of [disk, overlayed]) {
      const content = await readImage(image);
      expect(content.subarray(0, bytes.length).equals(bytes)).toBe(true);
      expect(content.includes('secretsecret')).toBe(false);
      expect((await inspect(image)).layers.map((layer) => layer.path)).not.toContain(secret);
    }
    // Nor through a view: a compressed layer above makes QEMU open all of the chain.
    await qemuIo(overlayed, 'write -c -P 1 64k 64k');
    const { sources } = await inspect(overlayed);
    expect(sources).toContainEqual({ kind: 'view' });
    expect((await readImage(overlayed)).subarray(0, 65536).equals(bytes.subarray(0, 65536))).toBe(true);
  });
});
