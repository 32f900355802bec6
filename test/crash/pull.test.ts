import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { findProcesses } from '../../src/host/process-list.js';
import { listCheckpoints } from '../../src/libvirt/checkpoints.js';
import { expectError } from '../cli/expectations.js';
import { eventually } from '../support/libvirt.js';
import { build, fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { CrashSession } from './crash-session.js';

const PULL = { name: 'pull', options: ['--snapshot=pull'], runs: true, writes: true };

let session: CrashSession;

beforeAll(async () => {
  await requireAll(root, build, fuseDevice, program('qemu-img', 'qemu-utils'));
  session = await CrashSession.start();
});

afterAll(() => session?.close());

beforeEach(() => session.fresh(PULL));

afterEach(async () => {
  await session.chunkmount.run(['cleanup', '--all', '--kept']);
  await session.dispose();
});

/** As before the backup; no checkpoint of a session that went wrong is left. */
async function expectWell(written = true): Promise<void> {
  expect(await listCheckpoints(session.libvirt.virsh, session.domain.uuid)).toEqual([]);
  expect(fs.existsSync('/run/chunkmount') ? fs.readdirSync('/run/chunkmount') : []).toEqual([]);
  await session.expectWell(PULL, written);
}

async function mounted(...options: string[]): Promise<void> {
  // Slowly, so that chunks are left which nobody has read.
  const { exitCode, stderr } = await session.mount(...PULL.options, '--bwlimit=64K', ...options);
  expect(exitCode, stderr).toBe(0);
  await session.guestWrites();
}

/** A chunk that was not read before; with little time to wait: it must fail, not hang. */
async function readLast(): Promise<unknown> {
  const chunk = path.join(session.tree, 'vda', '000000', '0000000f');
  const waiting = new Promise((resolve) => setTimeout(resolve, 30_000, 'hangs').unref());
  return Promise.race([fs.promises.readFile(chunk).catch((error: unknown) => String(error)), waiting]);
}

async function lost(message: RegExp): Promise<void> {
  // First: what was read once is in the page cache.
  await eventually(async () => (await session.state()) === 'failed');
  expect(await readLast()).toMatch(/EIO/);
  await session.cleansUp(message);
}

describe.each([7, 9, 17])('chunkmount is killed after record %i', (records) => {
  it('of mount', async () => {
    const args = [`--vm=${session.domain.name}`, `--connect=${session.libvirt.uri}`, ...PULL.options];
    expect((await session.dying(records, args)).died).toBe(true);
    await session.guestWrites();
    await session.cleansUp();
    await expectWell();
  });
});

describe('the job ends before the session', () => {
  it('somebody ends it: reading fails, and so does cleanup', async () => {
    await mounted();
    await session.libvirt.virsh.abortDomainJob(session.domain.uuid);
    await lost(/^the backup job of vm\d+ ended too early/);
    await expectWell();
  });

  it('the VM is shut down and started again', async () => {
    await mounted();
    await session.libvirt.virsh.call('destroy', ['--domain', session.domain.uuid]);
    await session.libvirt.virsh.start(session.domain.uuid);
    await lost(/^the backup job of vm\d+ ended too early/);
    await expectWell();
  });

  it('run fails, whatever its command says', async () => {
    const args = ['run', `--vm=${session.domain.name}`, `--connect=${session.libvirt.uri}`, ...PULL.options];
    const abort = ['virsh', '--quiet', '--connect', session.libvirt.uri, 'domjobabort', session.domain.name];
    const silent = ['sh', '-c', '"$@" >&2', 'sh', ...abort];
    const result = await session.chunkmount.run([...args, '--', ...silent]);
    expect(expectError(result, 1).message).toMatch(/ended too early/);
    await expectWell(false);
  });

  it('there is little room left for scratch files: the job is ended, and the guest goes on', async () => {
    await mounted(`--overlay-dir=${session.small}`);
    const filler = path.join(session.small, 'filler');
    const { bavail, bsize } = fs.statfsSync(session.small);
    fs.writeFileSync(filler, Buffer.alloc(bavail * bsize - 7 * 2 ** 20));
    await lost(/had only \d MiB left for scratch files .* was ended before it could harm the VM/);
    expect(fs.readdirSync(session.small)).toEqual(['filler']);
    fs.rmSync(filler);
    await expectWell();
  });
});

it('the NBD view is unplugged: reading fails, and cleanup says that there is no whole backup', async () => {
  await mounted();
  const views = findProcesses((argv) =>
    argv.some((arg) => arg.includes(`${session.sessionDirectory}/vda.raw`)),
  );
  expect(views).toHaveLength(1);
  process.kill(views[0]!.pid, 'SIGKILL');
  expect(await readLast()).toMatch(/EIO/);
  await session.cleansUp(/not whole/);
  await expectWell();
});

it('scratch files are refused where there is no room', async () => {
  const filler = session.fill();
  const result = await session.mount(...PULL.options, `--overlay-dir=${session.small}`);
  expect(expectError(result, 1).message).toMatch(/has only 0 MiB left for a scratch file/);
  fs.rmSync(filler);
  await expectWell(false);
});
