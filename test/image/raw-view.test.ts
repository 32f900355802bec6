import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run, spawnDetached } from '../../src/host/exec.js';
import { mountAt } from '../../src/host/mountinfo.js';
import {
  bootId,
  identify,
  isAlive,
  ownIdentity,
  signalProcess,
  waitForEnd,
} from '../../src/host/process-identity.js';
import { DiskReadError, ExtentReader } from '../../src/image/extent-reader.js';
import type { ImageReference } from '../../src/image/image-reference.js';
import { RAW_VIEW, type RawView, startRawView } from '../../src/image/raw-view.js';
import { closeSources, openSources } from '../../src/image/sources.js';
import { Journal } from '../../src/session/journal.js';
import {
  created,
  DISK_SIZE,
  diskContent,
  qemuImg,
  qemuIo,
  temporaryDirectory,
  writeRaw,
} from '../support/images.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { mapOf } from './extents.js';
import { inspect, ViewSession } from './open-image.js';

let session: ViewSession;
let image: ImageReference;

beforeAll(async () => {
  await requireAll(
    program('qemu-img', 'qemu-utils'),
    program('qemu-io', 'qemu-utils'),
    program('qemu-storage-daemon', 'qemu-system-common'),
    fuseDevice,
    root,
  );
});

beforeEach(async () => {
  session = new ViewSession();
  const raw = writeRaw(path.join(session.directory, 'source.raw'), DISK_SIZE);
  image = { path: path.join(session.directory, 'disk.qcow2'), format: 'qcow2' };
  await qemuImg('convert', '-c', '-f', 'raw', '-O', 'qcow2', raw.path, image.path);
});
afterEach(() => session.close());

async function start(): Promise<RawView> {
  return session.start(await inspect(image));
}

/** Nothing of a view is left: no daemon, no mount, no file. */
function expectGone(view?: RawView): void {
  expect(mountAt(session.mountpoint)).toBeUndefined();
  expect(fs.existsSync(session.mountpoint)).toBe(false);
  if (view !== undefined) expect(isAlive(view.identity)).toBe(false);
}

async function undoneCleanly(view?: RawView): Promise<void> {
  expect(await session.undo()).toEqual([]);
  expectGone(view);
  expect(session.journal.pending()).toEqual([]);
}

/** Makes the journal's entry what it would be had the process died before the daemon's number was written. */
function forgetDone(): void {
  const lines = fs.readFileSync(session.journal.file, 'utf8').split('\n');
  expect(lines.length).toBe(3);
  fs.writeFileSync(session.journal.file, `${lines[0]}\n`);
}

describe('raw view', () => {
  it('shows the disk, read-only, and is in the journal with its process', async () => {
    const view = await start();
    expect(view.path).toBe(session.mountpoint);
    expect(fs.readFileSync(view.path).equals(await diskContent(image))).toBe(true);
    expect(() => fs.writeFileSync(view.path, 'x', { flag: 'r+' })).toThrow();
    expect(fs.readFileSync(view.path).equals(await diskContent(image))).toBe(true);
    expect(fs.statSync(view.path).mode & 0o777).toBe(0o400);
    const [entry] = session.journal.pending();
    expect(entry).toMatchObject({
      kind: RAW_VIEW,
      done: true,
      data: { mountpoint: session.mountpoint, identity: view.identity },
    });
    await undoneCleanly(view);
  });

  it('leaves the image as it was, and to other readers', async () => {
    const before = fs.readFileSync(image.path);
    await start();
    expect((await inspect(image)).virtualSize).toBe(DISK_SIZE);
    await undoneCleanly();
    expect(fs.readFileSync(image.path).equals(before)).toBe(true);
  });

  it('keeps others from writing to a qcow2 image while it is read', async () => {
    await start();
    await expect(qemuIo(image, 'write 0 512')).rejects.toThrow();
  });

  it('takes directories and images whose names mean something to QEMU', async () => {
    const odd = path.join(session.directory, `a b,c:"d'e\\f`);
    fs.mkdirSync(odd);
    fs.renameSync(image.path, path.join(odd, 'json:{}.qcow2'));
    const inspected = await inspect({ path: path.join(odd, 'json:{}.qcow2'), format: 'qcow2' });
    const { logFile, journal } = session;
    const view = await startRawView({
      ...inspected,
      mountpoint: path.join(odd, 'view,x y'),
      logFile,
      journal,
    });
    expect(fs.readFileSync(view.path).length).toBe(DISK_SIZE);
    await undoneCleanly(view);
    expect(fs.readdirSync(odd)).toEqual(['json:{}.qcow2']);
  });

  it('follows a symbolic link to its directory, so that cleanup finds the mount', async () => {
    const link = path.join(session.directory, 'link');
    fs.symlinkSync(session.directory, link);
    const { logFile, journal } = session;
    const view = await startRawView({
      ...(await inspect(image)),
      mountpoint: path.join(link, 'view'),
      logFile,
      journal,
    });
    expect(view.path).toBe(session.mountpoint);
    await undoneCleanly(view);
  });

  it('of an empty disk', async () => {
    image = await created(path.join(session.directory, 'empty.qcow2'), 'qcow2', 0);
    const view = await start();
    expect(fs.readFileSync(view.path).length).toBe(0);
    await undoneCleanly(view);
  });
});

describe('a raw view that cannot be started', () => {
  it('says why in QEMU’s words, and is undone', async () => {
    const inspected = await inspect(image);
    fs.rmSync(image.path);
    await expect(session.start(inspected)).rejects.toThrow(/disk\.qcow2.*No such file/);
    await undoneCleanly();
  });

  it('because its mountpoint exists: leaves that alone', async () => {
    fs.writeFileSync(session.mountpoint, '');
    await expect(start()).rejects.toThrow(session.mountpoint);
    expect(session.journal.pending()).toEqual([]);
    expect(fs.existsSync(session.mountpoint)).toBe(true);
  });

  it('because it was told to stop before: has done nothing', async () => {
    const inspected = await inspect(image);
    await expect(session.start(inspected, AbortSignal.abort())).rejects.toThrow();
    expect(session.journal.pending()).toEqual([]);
    expectGone();
  });

  it('because it was told to stop meanwhile: is undone', async () => {
    const inspected = await inspect(image);
    const stop = new AbortController();
    const started = session.start(inspected, stop.signal);
    stop.abort();
    await expect(started).rejects.toThrow();
    expect(session.journal.pending()).toHaveLength(1);
    await undoneCleanly();
  });
});

describe('undoing a raw view', () => {
  it('is the same the second time', async () => {
    const view = await start();
    const bytes = fs.readFileSync(session.journal.file);
    await undoneCleanly(view);
    fs.writeFileSync(session.journal.file, bytes);
    await undoneCleanly(view);
  });

  it('works while somebody still has it open; he gets errors', async () => {
    const view = await start();
    const sources = openSources([{ kind: 'view' }], DISK_SIZE, view.path);
    try {
      await undoneCleanly(view);
      const reader = new ExtentReader('vda', mapOf([{ length: DISK_SIZE, source: 0, offset: 0 }]), sources);
      expect(() => reader.read(1 << 20, 512, Buffer.alloc(512), 0)).toThrow(DiskReadError);
    } finally {
      closeSources(sources);
    }
  });

  it('after the daemon was killed and left a dead mount', async () => {
    const view = await start();
    signalProcess(view.identity, 'SIGKILL');
    await waitForEnd(view.identity, 60_000);
    expect(mountAt(view.path)).toBeDefined();
    await undoneCleanly(view);
  });

  it('ends a daemon that hangs', async () => {
    const view = await start();
    signalProcess(view.identity, 'SIGSTOP');
    await undoneCleanly(view);
  });

  it('after somebody else unmounted it', async () => {
    const view = await start();
    await run('umount', [view.path]);
    await undoneCleanly(view);
  });

  it('when we died before the daemon’s number was written', async () => {
    const view = await start();
    forgetDone();
    await undoneCleanly(view);
  });

  it('when we died before anything was done, and before the daemon was started', async () => {
    session.journal.intend(RAW_VIEW, { mountpoint: session.mountpoint });
    await undoneCleanly();
    session.journal.intend(RAW_VIEW, { mountpoint: session.mountpoint });
    fs.writeFileSync(session.mountpoint, '');
    await undoneCleanly();
  });

  it('after a reboot: no process is taken for the daemon, whatever its number', async () => {
    const pid = await spawnDetached('sleep', ['60'], { logFile: session.logFile });
    const sleeper = identify(pid)!;
    try {
      for (const identity of [
        { ...sleeper, bootId: 'another-boot' },
        { ...sleeper, startTime: sleeper.startTime - 1 },
        { ...ownIdentity(), startTime: 1 },
      ]) {
        session.journal.intend(RAW_VIEW, { mountpoint: session.mountpoint, identity });
        fs.writeFileSync(session.mountpoint, '');
        await undoneCleanly();
        expect(isAlive(sleeper)).toBe(true);
      }
    } finally {
      signalProcess({ ...sleeper, bootId: bootId() }, 'SIGKILL');
    }
  });

  it('leaves alone what is not ours: another mount, another file', async () => {
    session.journal.intend(RAW_VIEW, { mountpoint: session.mountpoint });
    fs.writeFileSync(session.mountpoint, '');
    await run('mount', ['--bind', image.path, session.mountpoint]);
    try {
      expect(await session.undo()).toHaveLength(1);
      expect(mountAt(session.mountpoint)).toBeDefined();
    } finally {
      await run('umount', [session.mountpoint]);
    }
    fs.writeFileSync(session.mountpoint, 'somebody’s');
    expect(await session.undo()).toHaveLength(1);
    expect(fs.readFileSync(session.mountpoint, 'utf8')).toBe('somebody’s');
    fs.rmSync(session.mountpoint);
    await undoneCleanly();
  });
});

describe('an ordinary user', () => {
  /** Gives the user a /dev/fuse as Debian's udev has it, in a mount namespace of its own, and becomes that user. */
  const ENTER = `set -e
mount -t tmpfs -o mode=0755 tmpfs "$1"
mknod "$1/fuse" c 10 229
chmod 0666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
shift
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"`;

  it('can start, read and undo a view, in processes that follow each other', async () => {
    await requireAll(
      build,
      program('fusermount3', 'fuse3'),
      program('unshare', 'util-linux'),
      program('setpriv', 'util-linux'),
    );
    const home = temporaryDirectory();
    try {
      const devices = path.join(home, 'devices');
      const own = path.join(home, 'own');
      for (const directory of [devices, own]) fs.mkdirSync(directory);
      fs.chmodSync(home, 0o755);
      const disk = path.join(own, 'disk.qcow2');
      fs.copyFileSync(image.path, disk);
      for (const file of [own, disk]) fs.chownSync(file, 65534, 65534);
      const script = path.join(import.meta.dirname, 'fixtures', 'raw-view.mjs');
      const { stdout } = await run('unshare', [
        ...['--mount', '--propagation', 'private', 'sh', '-c', ENTER, 'sh', devices],
        ...['sh', '-c', '"$0" "$1" start "$2" "$3" && cat "$2/view" && "$0" "$1" undo "$2"'],
        ...[process.execPath, script, own, disk],
      ]);
      const content = (await diskContent(image)).toString();
      expect(stdout).toBe(content);
      expect(fs.existsSync(path.join(own, 'view'))).toBe(false);
      const journal = new Journal(path.join(own, 'journal.jsonl'));
      expect(journal.pending()).toEqual([]);
      journal.close();
    } finally {
      fs.rmSync(home, { recursive: true });
    }
  });
});
