import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { spawnDetached } from '../../src/host/exec.js';
import { findProcesses } from '../../src/host/process-list.js';
import { loadDescription } from '../../src/libvirt/load-domain.js';
import { findQemu } from '../../src/libvirt/qemu-process.js';
import { eventually, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { replaceInFs } from '../support/replaced-fs.js';
import { program, requireAll, root } from '../support/requirements.js';

const UUID = '6ad0a5a4-7d3a-4d5e-9b7e-2f1f6c1d9e01';
const NOBODY = 65534;
const OTHER = 1;
/** QEMU's user, and one who is not. */
const AS_NOBODY = [`--reuid=${NOBODY}`];
const AS_OTHER = [`--reuid=${OTHER}`];
/** As what a set-user-ID program of root's is, which anybody may start. */
const AS_ROOT_FOR_OTHER = [`--ruid=${OTHER}`];

/** Anybody may give a program of theirs the arguments of a QEMU. */
describe('the QEMU of a VM', () => {
  const log = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'cm-qemu-process-')), 'log');
  const started: number[] = [];
  let libvirt: TestLibvirt;
  let vm: TestDomain;

  beforeAll(async () => {
    await requireAll(root, program('setpriv', 'util-linux'), program('perl', 'perl-base'));
    libvirt = await TestLibvirt.start({ user: 'nobody' });
    // Before QEMU, so that it comes first wherever processes are listed.
    await pretend(AS_OTHER);
    vm = await libvirt.define('mail01', [], { uuid: UUID });
  });

  afterEach(() => {
    for (const pid of started.splice(0)) process.kill(pid, 'SIGKILL');
  });

  afterAll(async () => {
    await libvirt?.close();
    fs.rmSync(path.dirname(log), { recursive: true });
  });

  /** A program that says it ran that VM. */
  async function pretend(
    user: readonly string[],
    args: readonly string[] = ['-uuid', UUID],
  ): Promise<number> {
    const perl = ['perl', '-e', 'sleep 600', '--', ...args];
    const pid = await spawnDetached('setpriv', [...user, '--clear-groups', ...perl], { logFile: log });
    started.push(pid);
    // setpriv has these arguments, too, before it is another user's.
    await eventually(async () => findProcesses(([name]) => name === 'perl').some((one) => one.pid === pid));
    return pid;
  }

  const domain = () => loadDescription(libvirt.virsh, UUID);
  const pidDirectory = () => path.join(libvirt.directory, 'run/qemu');

  it('is none of somebody else', async () => {
    await pretend(AS_ROOT_FOR_OTHER);
    expect((await domain()).qemuUser).toBe(NOBODY);
    expect(findQemu(await domain())).toEqual(libvirt.qemu(vm));
  });

  it('is none that was told of its UUID for another reason', async () => {
    await pretend([], ['--domain', UUID]);
    await pretend([], [UUID, '-uuid', 'other']);
    expect(findQemu(await domain())).toEqual(libvirt.qemu(vm));
  });

  it('is none of somebody else where it is not known whose it is', async () => {
    await pretend(AS_ROOT_FOR_OTHER);
    const running = await domain();
    const { readFileSync } = fs;
    const withoutUsers = (file: string, options: BufferEncoding) =>
      file === '/etc/passwd' ? '' : readFileSync(file, options);
    replaceInFs('readFileSync', withoutUsers);
    expect(findQemu({ ...running, qemuUser: undefined })).toBeUndefined();
  });

  it('is the one that libvirt knows, if several may be it', async () => {
    await pretend(AS_NOBODY);
    expect(findQemu(await domain(), pidDirectory())).toEqual(libvirt.qemu(vm));
  });

  it('is not guessed', async () => {
    const pids = [libvirt.qemu(vm).pid, await pretend(AS_NOBODY)].sort((a, b) => a - b);
    const find = async () => findQemu(await domain());
    await expect(find()).rejects.toThrow(
      `which process is the QEMU of mail01 cannot be told: ${pids.join(', ')} all have its UUID`,
    );
  });

  it('is nobody when it is off', async () => {
    await pretend(AS_OTHER);
    const running = await domain();
    await libvirt.killQemu(vm);
    expect(findQemu(running)).toBeUndefined();
  });
});
