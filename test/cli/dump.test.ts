import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { checkSums, decompressed, diskBytes, imagesOf, programFirst } from '../support/dumps.js';
import { noise, qemuImg, writeRaw } from '../support/images.js';
import { eventually, makeImage, type TestDomain, TestLibvirt, writePattern } from '../support/libvirt.js';
import { build, program, requireAll } from '../support/requirements.js';

const KIB = 1024;
const MIB = 1024 * KIB;

/** Program and extension of each --compress; the Debian package has the program's name but for xz. */
const COMPRESSORS = [
  ['gzip', 'gz'],
  ['pigz', 'gz'],
  ['bzip2', 'bz2'],
  ['pbzip2', 'bz2'],
  ['lzop', 'lzo'],
  ['xz', 'xz'],
  ['lzip', 'lz'],
  ['plzip', 'lz'],
  ['zstd', 'zst'],
] as const;

describe('dump', () => {
  const chunkmount = new TestChunkmount();
  let libvirt: TestLibvirt;
  let mail01: TestDomain;
  const vda = chunkmount.path('vda.qcow2');
  const vdb = chunkmount.path('vdb.img');
  const hdb = chunkmount.path('hdb.img');
  const dump = path.join(chunkmount.backupDirectory, 'mail01.dump');
  const other = path.join(chunkmount.backupDirectory, 'devsrv.dump');
  const connect = () => `--connect=${libvirt.uri}`;

  beforeAll(async () => {
    const programs = COMPRESSORS.map(([name]) => program(name, name === 'xz' ? 'xz-utils' : name));
    await requireAll(build, program('qemu-img', 'qemu-utils'), ...programs);
    libvirt = await TestLibvirt.start();
    await makeImage(vda, 'qcow2', 20 * MIB);
    await writePattern(vda, 'qcow2', { offset: 0, length: 5 * MIB, pattern: 0x11 });
    await writePattern(vda, 'qcow2', { offset: 12 * MIB + 4096, length: 512, pattern: 0x22 });
    await makeImage(vdb, 'raw', 3 * MIB + 512, 0x33);
    writeRaw(hdb, 2 * MIB);
    mail01 = await libvirt.define('mail01', [
      { target: 'vda', path: vda, format: 'qcow2' },
      { target: 'vdb', path: vdb, format: 'raw' },
    ]);
    await libvirt.define('devsrv', [{ target: 'hdb', path: hdb, format: 'raw' }], { start: false });
  });

  afterEach(async () => {
    expect(await imagesOf(libvirt, 'mail01')).toEqual([vda, vdb]);
    expect(fs.readdirSync(chunkmount.directory).filter((name) => name.includes('.cm-'))).toEqual([]);
    expect(fs.readdirSync(path.join(chunkmount.stateDirectory, 'sessions'))).toEqual([]);
    for (const directory of [dump, other]) fs.rmSync(directory, { recursive: true, force: true });
  });

  afterAll(async () => {
    await chunkmount.close();
    await libvirt?.close();
  });

  it('writes raw images of all disks, the XML and sums, and names them', async () => {
    const names = ['mail01_vda.raw', 'mail01_vdb.raw', 'mail01.xml', 'mail01.sha256'];
    const said = await chunkmount.succeed('dump', '--vm=mail01', connect());
    expect(said).toBe(names.map((name) => `${path.join(dump, name)}\n`).join(''));
    expect(fs.readdirSync(dump).sort()).toEqual([...names].sort());
    await checkSums(dump, 'mail01.sha256');
    expect(fs.readFileSync(path.join(dump, 'mail01_vda.raw')).equals(await diskBytes(vda, 'qcow2'))).toBe(
      true,
    );
    expect(fs.readFileSync(path.join(dump, 'mail01_vdb.raw')).equals(await diskBytes(vdb, 'raw'))).toBe(true);
    expect(fs.readFileSync(path.join(dump, 'mail01.xml'), 'utf8')).toContain(mail01.uuid);
  });

  it('leaves zeros as holes, and lets nobody else read it', async () => {
    await chunkmount.succeed('dump', '--vm=mail01', connect());
    const { size, blocks } = fs.statSync(path.join(dump, 'mail01_vda.raw'));
    expect(size).toBe(20 * MIB);
    expect(blocks * 512).toBeGreaterThanOrEqual(5 * MIB + 4096);
    expect(blocks * 512).toBeLessThan(5.5 * MIB);
    expect(fs.statSync(dump).mode & 0o777).toBe(0o700);
    for (const name of fs.readdirSync(dump)) {
      expect(fs.statSync(path.join(dump, name)).mode & 0o777, name).toBe(0o600);
    }
  });

  it.each(COMPRESSORS)('compresses with %s', async (name, extension) => {
    await chunkmount.succeed('dump', '--vm=mail01', connect(), `--compress=${name}`);
    const images = [`mail01_vda.raw.${extension}`, `mail01_vdb.raw.${extension}`];
    expect(fs.readdirSync(dump).sort()).toEqual(['mail01.sha256', 'mail01.xml', ...images]);
    await checkSums(dump, 'mail01.sha256');
    const [first, second] = images.map((image) => path.join(dump, image));
    expect((await decompressed(name, first!)).equals(await diskBytes(vda, 'qcow2'))).toBe(true);
    expect((await decompressed(name, second!)).equals(await diskBytes(vdb, 'raw'))).toBe(true);
  });

  it('takes gzip for --compress', async () => {
    await chunkmount.succeed('dump', '--vm=mail01', connect(), '--compress');
    expect(fs.existsSync(path.join(dump, 'mail01_vda.raw.gz'))).toBe(true);
  });

  it('shows the disks as they were at the snapshot, whatever the guest writes meanwhile', async () => {
    const before = { vda: await diskBytes(vda, 'qcow2'), vdb: await diskBytes(vdb, 'raw') };
    const go = chunkmount.path('go');
    const script = `while [ ! -e ${go} ]; do sleep 0.1; done; exec /usr/bin/gzip "$@"`;
    const PATH = programFirst(chunkmount.path('waiting'), 'gzip', script);
    const running = chunkmount.start(['dump', '--vm=mail01', connect(), '--compress'], { PATH });
    await eventually(async () => fs.existsSync(path.join(dump, 'mail01_vda.raw.gz.partial')));
    const write = { offset: 1 * MIB, length: 64 * KIB, pattern: 0x44 };
    for (const target of ['vda', 'vdb']) await libvirt.guestWrite(mail01, target, write);
    fs.writeFileSync(go, '');
    expect((await running).exitCode).toBe(0);
    for (const [target, content] of Object.entries(before)) {
      const image = path.join(dump, `mail01_${target}.raw.gz`);
      expect((await decompressed('gzip', image)).equals(content), target).toBe(true);
      await libvirt.guestVerify(mail01, target, write);
    }
  });

  it('writes qcow2 images without a backing file, also compressed', async () => {
    await chunkmount.succeed('dump', '--vm=mail01', connect(), '--format=qcow2');
    await checkSums(dump, 'mail01.sha256');
    const image = path.join(dump, 'mail01_vda.qcow2');
    await qemuImg('check', '-f', 'qcow2', image);
    expect((await diskBytes(image, 'qcow2')).equals(await diskBytes(vda, 'qcow2'))).toBe(true);
    await chunkmount.succeed('dump', '--vm=mail01', connect(), '--format=qcow2', '--compress=zstd');
    await checkSums(dump, 'mail01.sha256');
    const images = ['mail01_vda.qcow2.zst', 'mail01_vdb.qcow2.zst'];
    expect(fs.readdirSync(dump).sort()).toEqual(['mail01.sha256', 'mail01.xml', ...images]);
    fs.writeFileSync(image, await decompressed('zstd', `${image}.zst`));
    expect((await diskBytes(image, 'qcow2')).equals(await diskBytes(vda, 'qcow2'))).toBe(true);
  });

  it('reads what only QEMU can decode', async () => {
    const raw = writeRaw(chunkmount.path('source.raw'), 3 * MIB + 1536);
    const image = chunkmount.path('small.qcow2');
    await qemuImg('convert', '-c', '-f', 'raw', '-O', 'qcow2', raw.path, image);
    await chunkmount.succeed('dump', `--image=${image}`, '--name=small');
    const content = fs.readFileSync(path.join(chunkmount.backupDirectory, 'small.dump', 'small_disk0.raw'));
    expect(content.equals(fs.readFileSync(raw.path))).toBe(true);
  });

  it('takes the format of --image from --image-format', async () => {
    const image = chunkmount.path('disk.unknown');
    fs.writeFileSync(image, noise(MIB, 5));
    const args = ['dump', `--image=${image}`, '--name=odd'];
    const refused = await chunkmount.run([...args, '--format=raw']);
    expect(refused).toMatchObject({ exitCode: 2, stderr: expect.stringContaining('--image-format=raw') });
    await chunkmount.succeed(...args, '--image-format=raw');
    const content = fs.readFileSync(path.join(chunkmount.backupDirectory, 'odd.dump', 'odd_disk0.raw'));
    expect(content.equals(fs.readFileSync(image))).toBe(true);
  });

  it('replaces the dump before, also one of another format', async () => {
    await chunkmount.succeed('dump', '--vm=mail01', connect());
    await chunkmount.succeed('dump', '--vm=mail01', connect(), '--compress=zstd', '--exclude=vdb');
    expect(fs.readdirSync(dump).sort()).toEqual([
      'mail01.sha256',
      'mail01.xml',
      'mail01_vda.raw.zst',
      'mail01_vdb.raw',
    ]);
    await checkSums(dump, 'mail01.sha256');
  });

  it('keeps earlier dumps with --date', async () => {
    const dumped = async () => {
      const said = await chunkmount.succeed(
        '--json',
        'dump',
        '--vm=mail01',
        connect(),
        '--date',
        '--compress=zstd',
      );
      return JSON.parse(said).dumped[0] as { snapshotTime: string; sums: string; files: { path: string }[] };
    };
    const first = await dumped();
    const stamp = `${first.snapshotTime.slice(0, 19).replaceAll(/[-:]/g, '')}Z`;
    expect(first.files.map((file) => path.basename(file.path))).toEqual([
      `mail01_vda-${stamp}.raw.zst`,
      `mail01_vdb-${stamp}.raw.zst`,
      `mail01-${stamp}.xml`,
    ]);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const second = await dumped();
    expect(fs.readdirSync(dump)).toHaveLength(8);
    for (const { sums } of [first, second]) await checkSums(dump, sums);
  });

  it('gives sizes and sums with --json', async () => {
    const said = JSON.parse(
      await chunkmount.succeed('dump', '--json', '--vm=mail01', connect(), '--exclude=vda'),
    );
    const [image] = said.dumped[0].files;
    const lines = fs.readFileSync(path.join(dump, 'mail01.sha256'), 'utf8').split('\n');
    expect(image).toMatchObject({
      path: path.join(dump, 'mail01_vdb.raw'),
      disk: 'vdb',
      size: 3 * MIB + 512,
    });
    expect(lines[0]).toBe(`${image.sha256}  mail01_vdb.raw`);
    expect(said).toMatchObject({
      failed: [],
      dumped: [{ name: 'mail01', consistency: 'crash', directory: dump }],
    });
  });

  it('dumps several VMs; one that fails does not keep the others from it', async () => {
    const { exitCode, stdout, stderr } = await chunkmount.run([
      'dump',
      '--vm=mail01,nosuch,devsrv',
      connect(),
    ]);
    expect(exitCode).toBe(5);
    expect(stdout).toContain(path.join(dump, 'mail01_vda.raw'));
    expect(stdout).toContain(path.join(other, 'devsrv_hdb.raw'));
    expect(stderr).toContain('nosuch');
  });

  it('excludes disks that only some of the VMs have, but none that nobody has', async () => {
    const args = ['dump', '--vm=mail01,devsrv', connect()];
    const refused = await chunkmount.run([...args, '--exclude=vdb,vdx']);
    expect(refused).toMatchObject({ exitCode: 2, stderr: expect.stringContaining('vdx') });
    await chunkmount.succeed(...args, '--exclude=vdb');
    expect(fs.readdirSync(dump)).toEqual(['mail01.sha256', 'mail01.xml', 'mail01_vda.raw']);
    expect(fs.existsSync(path.join(other, 'devsrv_hdb.raw'))).toBe(true);
    const alone = await chunkmount.run(['dump', '--vm=mail01', connect(), '--exclude=vdb,hdb']);
    expect(alone).toMatchObject({ exitCode: 2, stderr: expect.stringContaining('hdb') });
  });

  it('is refused while the VM is mounted or locked, and leaves the place of the tree alone', async () => {
    await chunkmount.succeed('dump', '--vm=mail01', connect(), '--keep-lock');
    const locked = await chunkmount.run(['dump', '--vm=mail01', connect()]);
    expect(locked).toMatchObject({ exitCode: 3, stderr: expect.stringContaining('chunkmount unlock') });
    await chunkmount.succeed('--unlock', '--vm=mail01');
    await chunkmount.succeed('--action=chunkmount', '--vm=mail01', connect());
    expect(await chunkmount.run(['dump', '--vm=mail01', connect()])).toMatchObject({ exitCode: 3 });
    const many = await chunkmount.run(['--dump', '--max-backups=1', '--vm=devsrv', connect()]);
    expect(many).toMatchObject({ exitCode: 3, stderr: expect.stringContaining('mail01') });
    await chunkmount.succeed('--cleanup', '--vm=mail01');
  });

  it("takes virt-backup's spellings", async () => {
    await chunkmount.succeed('--action=dump', '--vm=mail01', '--debug', '--compress', connect());
    expect(fs.existsSync(path.join(dump, 'mail01_vdb.raw.gz'))).toBe(true);
    const { stdout } = await chunkmount.run(['--dump', '--vm=mail01,devsrv', '--exclude=vdb', connect()]);
    expect(stdout).toContain('devsrv_hdb.raw\n');
    // There is nothing to clean up, and dumps are not removed.
    await chunkmount.succeed('--cleanup', '--vm=mail01');
    expect(fs.existsSync(path.join(dump, 'mail01_vda.raw'))).toBe(true);
  });

  it('saves the memory with --state, and forgets it with the next dump without', async () => {
    await chunkmount.succeed('--dump', '--vm=mail01', '--state', '--exclude=vdb', '--compress', connect());
    expect(fs.readdirSync(dump).sort()).toContain('mail01.state');
    await checkSums(dump, 'mail01.sha256');
    await chunkmount.succeed('--dump', '--vm=mail01', '--snapsize=10G', '--exclude=vdb', connect());
    expect(fs.readdirSync(dump).sort()).toEqual(['mail01.sha256', 'mail01.xml', 'mail01_vda.raw']);
    await checkSums(dump, 'mail01.sha256');
  });

  it('pauses the VM instead with --no-snapshot', async () => {
    const go = chunkmount.path('resume');
    const script = `while [ ! -e ${go} ]; do sleep 0.1; done; exec /usr/bin/gzip "$@"`;
    const PATH = programFirst(chunkmount.path('pausing'), 'gzip', script);
    const args = ['--dump', '--max-backups=2', '--vm=mail01', '--no-snapshot', '--compress', connect()];
    const running = chunkmount.start(args, { PATH });
    await eventually(async () => fs.existsSync(path.join(dump, 'mail01_vda.raw.gz.partial')));
    expect((await libvirt.virsh.state(mail01.uuid)).state).toBe('paused');
    fs.writeFileSync(go, '');
    expect((await running).exitCode).toBe(0);
    expect((await libvirt.virsh.state(mail01.uuid)).state).toBe('running');
    const content = await decompressed('gzip', path.join(dump, 'mail01_vda.raw.gz'));
    expect(content.equals(await diskBytes(vda, 'qcow2'))).toBe(true);
  });

  it('says which options have nothing to do in a dump', async () => {
    const { stderr } = await chunkmount.run(['dump', '--vm=devsrv', '--transport=native', connect()]);
    expect(stderr).toContain('--transport says how a tree is shown');
  });
});
