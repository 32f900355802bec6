import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { loadDomain, loadInactive } from '../../src/libvirt/load-domain.js';
import { overlayProvider } from '../../src/snapshot/overlay.js';
import {
  eventually,
  hasPattern,
  makeImage,
  type TestDisk,
  type TestDomain,
  TestLibvirt,
  writePattern,
} from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;
const BEFORE = { offset: 0, length: 4 * MIB, pattern: 0x11 };
const WRITTEN = { offset: MIB, length: 65536, pattern: 0x22 };
const WRITTEN_LATER = { offset: 2 * MIB, length: 65536, pattern: 0x33 };

let libvirt: TestLibvirt;
let count = 0;
let directory: string;
let disks: TestDisk[];
let domain: TestDomain;
let session: SnapshotSession;

beforeAll(async () => {
  libvirt = await TestLibvirt.start();
});

afterAll(() => libvirt?.close());

beforeEach(async () => {
  count++;
  directory = path.join(libvirt.directory, `images ${count}`);
  fs.mkdirSync(directory);
  disks = [
    { target: 'vda', path: path.join(directory, 'vda.qcow2'), format: 'qcow2' },
    { target: 'vdb', path: path.join(directory, 'vdb.img'), format: 'raw' },
  ];
  for (const disk of disks) await makeImage(disk.path, disk.format, 4 * MIB, BEFORE.pattern);
  session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, `session-${count}`), `r${count}`);
});

afterEach(async () => {
  await session.undo();
  await libvirt.remove(domain);
});

async function start(options: { transient?: boolean } = {}): Promise<void> {
  domain = await libvirt.define(`recovery-${count}`, disks, options);
}

async function freezeAndWrite(): Promise<void> {
  await session.freeze(overlayProvider, domain.name);
  for (const { target } of disks) await libvirt.guestWrite(domain, target, WRITTEN);
}

/** Nothing is left of the session: only the images are there, with what the guest wrote, and the definition names them. */
async function expectMerged(): Promise<void> {
  expect(session.journal.pending()).toEqual([]);
  expect(fs.readdirSync(directory).sort()).toEqual(['vda.qcow2', 'vdb.img']);
  for (const disk of disks) {
    expect(await hasPattern(disk.path, disk.format, WRITTEN)).toBe(true);
    expect(await hasPattern(disk.path, disk.format, { ...BEFORE, length: MIB })).toBe(true);
  }
}

async function pathsNow(): Promise<(string | undefined)[]> {
  return (await loadDomain(libvirt.virsh, domain.name)).disks.map((disk) => disk.path);
}

async function pathsAtNextStart(): Promise<(string | undefined)[]> {
  return (await loadInactive(libvirt.virsh, domain.uuid)).disks.map((disk) => disk.path);
}

const images = () => disks.map((disk) => disk.path);

/** What keeps the overlays, and says so. */
async function expectKept(what: RegExp): Promise<void> {
  const errors = await session.undo();
  expect(errors.map(({ message }) => message)).toEqual([
    expect.stringMatching(what),
    expect.stringMatching(what),
  ]);
  expect(session.journal.pending().map(({ kind }) => kind)).toEqual(['overlay', 'overlay']);
  expect(fs.readdirSync(directory).filter((file) => file.includes('.cm-'))).toHaveLength(2);
}

describe('the VM stopped during the backup', () => {
  it('QEMU crashed: merged without it, and defined on the base again', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    expect(await pathsAtNextStart()).toEqual(images());
    await libvirt.virsh.call('start', ['--domain', domain.uuid]);
    await libvirt.guestVerify(domain, 'vda', WRITTEN);
  });

  it('crashed and started again: on its overlays, which are merged live', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    await libvirt.virsh.call('start', ['--domain', domain.uuid]);
    await libvirt.guestWrite(domain, 'vda', WRITTEN_LATER);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    expect(await pathsNow()).toEqual(images());
    await libvirt.guestVerify(domain, 'vda', WRITTEN_LATER);
  });

  it('the definition keeps all else when it is put back', async () => {
    disks[0] = { ...disks[0]!, extra: '<serial>A B</serial><alias name="ua-first"/>' };
    await start();
    const before = await libvirt.virsh.definition(domain.uuid);
    await session.freeze(overlayProvider, domain.name);
    await libvirt.killQemu(domain);
    expect(await session.undo()).toEqual([]);
    expect(await libvirt.virsh.definition(domain.uuid)).toBe(before);
  });

  it('a transient VM is gone: merged all the same', async () => {
    await start({ transient: true });
    await freezeAndWrite();
    await libvirt.virsh.call('destroy', ['--domain', domain.uuid]);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  it('it was undefined too: merged all the same', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    await libvirt.virsh.call('undefine', ['--domain', domain.uuid]);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  it('its memory was saved: kept until it has been started', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.virsh.call('managedsave', ['--domain', domain.uuid]);
    await expectKept(/memory was saved/);
    await libvirt.virsh.call('start', ['--domain', domain.uuid]);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });
});

describe('somebody changed the definition during the backup', () => {
  async function defineOnImages(): Promise<void> {
    await libvirt.define(domain.name, disks, { start: false, uuid: domain.uuid });
  }

  it('old XML was defined: the merge heals it', async () => {
    await start();
    await freezeAndWrite();
    await defineOnImages();
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    expect(await pathsAtNextStart()).toEqual(images());
  });

  it('old XML was defined and the VM stopped: the newest data is merged', async () => {
    await start();
    await freezeAndWrite();
    await defineOnImages();
    await libvirt.killQemu(domain);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  it('old XML was defined and the VM cannot be started on what is being read', async () => {
    await start();
    await freezeAndWrite();
    await defineOnImages();
    await libvirt.killQemu(domain);
    await expect(libvirt.virsh.call('start', ['--domain', domain.uuid])).rejects.toThrow(/lock/);
  });

  it('the VM was started on the base once nobody held it: both are kept', async () => {
    await start();
    await freezeAndWrite();
    await defineOnImages();
    await libvirt.killQemu(domain);
    await releaseHolds();
    await libvirt.virsh.call('start', ['--domain', domain.uuid]);
    await libvirt.guestWrite(domain, 'vda', WRITTEN_LATER);
    await libvirt.guestWrite(domain, 'vdb', WRITTEN_LATER);
    await expectKept(/without its overlay/);
    await libvirt.killQemu(domain);
    await expectKept(/written/);
  });

  it('the base was written while the VM was off: both are kept', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    await releaseHolds();
    for (const disk of disks) await writePattern(disk.path, disk.format, WRITTEN_LATER);
    await expectKept(/was written after the snapshot/);
  });

  it('the base was replaced: both are kept', async () => {
    await start();
    await freezeAndWrite();
    await libvirt.killQemu(domain);
    for (const disk of disks) {
      fs.copyFileSync(disk.path, `${disk.path}.new`);
      fs.renameSync(`${disk.path}.new`, disk.path);
    }
    await expectKept(/was replaced after the snapshot/);
  });

  /** As after a reboot: the processes that held the images are gone. */
  async function releaseHolds(): Promise<void> {
    for (const entry of session.journal.pending().filter(({ kind }) => kind === 'hold')) {
      await overlayProvider.undo.hold!(entry, { journal: session.journal, reporter: session.reporter });
      session.journal.undone(entry);
    }
  }
});

describe('chains', () => {
  async function layers(file: string): Promise<string[]> {
    const { stdout } = await run('qemu-img', ['info', '-U', '--backing-chain', '--output=json', file]);
    return (JSON.parse(stdout) as { filename: string }[]).map(({ filename }) => filename);
  }

  it("the user's own layers stay as they are", async () => {
    const template = path.join(libvirt.directory, `template-${count}.qcow2`);
    await makeImage(template, 'qcow2', 4 * MIB, BEFORE.pattern);
    const top = path.join(directory, 'vda.qcow2');
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', template, '-F', 'qcow2', top]);
    const before = fs.readFileSync(template);
    await start();
    await freezeAndWrite();
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    expect(await layers(top)).toEqual([top, template]);
    expect(fs.readFileSync(template).equals(before)).toBe(true);
  });

  it('a snapshot that somebody made on ours then lies on the base', async () => {
    await start();
    await freezeAndWrite();
    const above = path.join(libvirt.directory, `above-${count}.qcow2`);
    const xml = path.join(libvirt.directory, `above-${count}.xml`);
    fs.writeFileSync(
      xml,
      `<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='${above}'/></disk><disk name='vdb' snapshot='no'/></disks></domainsnapshot>`,
    );
    await libvirt.virsh.call('snapshot-create', [
      '--domain',
      domain.uuid,
      '--xmlfile',
      xml,
      '--disk-only',
      '--no-metadata',
    ]);
    await libvirt.guestWrite(domain, 'vda', WRITTEN_LATER);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
    expect(await pathsNow()).toEqual([above, disks[1]!.path]);
    expect(await layers(above)).toEqual([above, disks[0]!.path]);
    await libvirt.guestVerify(domain, 'vda', WRITTEN_LATER);
    await libvirt.guestVerify(domain, 'vda', WRITTEN);
  });
});

describe('jobs of others', () => {
  it('a disk that is being copied is refused, with the reason', async () => {
    await start({ transient: true });
    await copyDisk();
    const loaded = await loadDomain(libvirt.virsh, domain.name);
    const [vda, vdb] = loaded.disks;
    expect(await overlayProvider.refusal({ virsh: libvirt.virsh, domain: loaded }, vda!)).toMatch(
      /^disk vda: a block job \(copy\)/,
    );
    expect(await overlayProvider.refusal({ virsh: libvirt.virsh, domain: loaded }, vdb!)).toBeUndefined();
  });

  it('a copy that began during the backup: the overlay is kept until it has ended', async () => {
    await start({ transient: true });
    await freezeAndWrite();
    await copyDisk();
    const errors = await session.undo();
    expect(errors.map(({ message }) => message)).toEqual([
      expect.stringContaining('another block job works on the disk'),
    ]);
    await libvirt.virsh.call('blockjob', ['--domain', domain.uuid, '--path', 'vda', '--abort']);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  async function copyDisk(): Promise<void> {
    const copy = path.join(libvirt.directory, `copy-${count}.qcow2`);
    await libvirt.virsh.call('blockcopy', [
      '--domain',
      domain.uuid,
      '--path',
      'vda',
      '--dest',
      copy,
      '--format',
      'qcow2',
    ]);
  }

  it('a merge that is ready but was not finished is finished', async () => {
    await start();
    await freezeAndWrite();
    await endHolds();
    await commitByHand([]);
    await eventually(
      async () => (await loadDomain(libvirt.virsh, domain.name)).disks[0]?.mirror?.ready === true,
    );
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  it('QEMU was killed when the merge was ready', async () => {
    await start();
    await freezeAndWrite();
    await endHolds();
    await commitByHand([]);
    await libvirt.killQemu(domain);
    for (const entry of session.journal.pending()) session.journal.done(entry, { committing: true });
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  it('somebody merged it by hand', async () => {
    await start();
    await freezeAndWrite();
    await endHolds();
    await commitByHand(['--wait', '--pivot']);
    expect(await session.undo()).toEqual([]);
    await expectMerged();
  });

  async function endHolds(): Promise<void> {
    const [hold] = session.journal.pending();
    await overlayProvider.undo[hold!.kind]!(hold!, { journal: session.journal, reporter: session.reporter });
    session.journal.undone(hold!);
  }

  async function commitByHand(more: string[]): Promise<void> {
    const top = (await pathsNow())[0]!;
    const args = [
      '--domain',
      domain.uuid,
      '--path',
      'vda',
      '--active',
      '--base',
      disks[0]!.path,
      '--top',
      top,
    ];
    await libvirt.virsh.call('blockcommit', [...args, ...more]);
  }
});

describe('files', () => {
  it('an overlay that exists already is not touched', async () => {
    await start();
    const existing = path.join(directory, `vdb.cm-r${count}.qcow2`);
    fs.writeFileSync(existing, '');
    await expect(session.freeze(overlayProvider, domain.name)).rejects.toThrow(/cannot be made.*EEXIST/);
    expect(await session.undo()).toEqual([]);
    expect(fs.existsSync(existing)).toBe(true);
    fs.rmSync(existing);
    expect(fs.readdirSync(directory).sort()).toEqual(['vda.qcow2', 'vdb.img']);
  });

  it('a file that took the place of the overlay after the merge is left alone', async () => {
    await start();
    await session.freeze(overlayProvider, domain.name);
    const [overlay] = await pathsNow();
    const entries = session.journal.pending();
    expect(await session.undo()).toEqual([]);
    fs.writeFileSync(overlay!, 'something else');
    for (const entry of entries) await overlayProvider.undo[entry.kind]!(entry, session);
    expect(fs.readFileSync(overlay!, 'utf8')).toBe('something else');
  });

  it('overlays go where --overlay-dir says', async () => {
    await start();
    const overlayDirectory = path.join(libvirt.directory, `overlays, ${count}`);
    fs.mkdirSync(overlayDirectory);
    await session.freeze(overlayProvider, domain.name, { overlayDirectory });
    expect(fs.readdirSync(overlayDirectory)).toHaveLength(2);
    expect(await session.undo()).toEqual([]);
    expect(fs.readdirSync(overlayDirectory)).toEqual([]);
  });

  it('a directory that does not exist is named', async () => {
    await start();
    const overlayDirectory = path.join(libvirt.directory, 'nowhere');
    await expect(session.freeze(overlayProvider, domain.name, { overlayDirectory })).rejects.toThrow(
      overlayDirectory,
    );
    expect(session.journal.pending()).toEqual([]);
  });
});
