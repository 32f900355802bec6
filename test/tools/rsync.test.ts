import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { rsyncCommand, rsyncReport } from '../support/chunkmount.js';
import { program } from '../support/requirements.js';
import { chunkFile } from '../support/trees.js';
import { BackedUpVm, CHUNKS, EXAMPLES, OPTIONS, ZERO_CHUNKS } from './backed-up-vm.js';
import { SshServer } from './ssh-server.js';

const vm = new BackedUpVm();
let ssh: SshServer;

/** How the tree is copied in each session, and where to. */
const COPIES: Readonly<Record<string, readonly string[]>> = {
  plain: [],
  attributes: ['-HXS'],
  ssh: ['-e', 'ssh'],
};

const chunks = (numbers: readonly number[]) => numbers.map((number) => chunkFile('vda', number)).sort();

/** What became of one session, in which all copies are made or brought up to date. */
interface Backup {
  /** The chunks that each one was sent. */
  readonly sent: Record<string, string[]>;
  /** How many chunk files were read. All copies share what the first one read. */
  readonly chunksRead: number;
}

async function backup(): Promise<Backup> {
  await vm.run(['chunkmount', '--vm=mail01', ...OPTIONS]);
  const sent: Record<string, string[]> = {};
  for (const [name, options] of Object.entries(COPIES)) {
    const host = name === 'ssh' ? 'root@hypervisor1:' : '';
    const stdout = await vm.run(rsyncCommand(vm.tree, host + vm.path(name), ...options));
    sent[name] = rsyncReport(stdout)
      .files.filter((file) => file.startsWith('vda/'))
      .sort();
  }
  const { counters } = JSON.parse(await vm.run(['chunkmount', 'cleanup', '--vm=mail01', '--json']));
  return { sent, chunksRead: counters.mail01.chunksRead };
}

const each = (files: readonly string[]) =>
  Object.fromEntries(Object.keys(COPIES).map((name) => [name, files]));

describe('rsync', () => {
  beforeAll(async () => {
    await vm.start(program('rsync'), program('getfattr', 'attr'), program('sshd', 'openssh-server'));
    ssh = await SshServer.start(vm);
  });
  afterAll(async () => {
    await ssh?.close();
    await vm.close();
  });

  it('reads and sends each chunk once, none that did not change, and those that did', async () => {
    const all = chunks([...Array(CHUNKS).keys()]);
    expect(await backup()).toEqual({ sent: each(all), chunksRead: CHUNKS });
    expect(await backup()).toEqual({ sent: each([]), chunksRead: 0 });
    const changed = await vm.change();
    expect(await backup()).toEqual({ sent: each(chunks(changed)), chunksRead: changed.length });
    const content = await vm.content();
    for (const name of Object.keys(COPIES)) await vm.expectRestorable(vm.path(name), content);
  });

  it('keeps the hashes with -X, and zeros as holes with -S', async () => {
    const copy = vm.path('attributes');
    const ask = 'getfattr -n user.chunkmount.xxh64 vda/*/*';
    const attributes = await vm.run(['sh', '-c', ask], { cwd: copy });
    const hashes = [...attributes.matchAll(/^# file: (.*)\nuser.chunkmount.xxh64="(.*)"$/gm)];
    const lines = hashes.map(([, file, hash]) => `${hash}  ${file}\n`).sort();
    const sums = fs.readFileSync(path.join(copy, 'vda.xxh64'), 'utf8');
    expect(lines).toEqual(sums.split(/(?<=\n)/).sort());
    const { blocks } = fs.statSync(path.join(copy, chunkFile('vda', ZERO_CHUNKS[0]!)));
    expect(blocks).toBeLessThanOrEqual(8);
  });

  it('keeps several backups as examples/rsync does it, with --link-dest; each one comes back', async () => {
    const STORE = vm.path('store');
    fs.mkdirSync(STORE);
    vm.chunksRead();
    const first = await vm.content();
    const times: string[] = [];
    let changed: number[] = [];
    for (const write of [false, false, true, false]) {
      if (write) changed = await vm.change();
      await vm.run([path.join(EXAMPLES, 'rsync/rsync-daily'), 'mail01', ...OPTIONS], {
        // rsync would look for a relative --link-dest elsewhere.
        env: { STORE: path.basename(STORE), KEEP: '3' },
        cwd: path.dirname(STORE),
      });
      times.push(fs.readlinkSync(path.join(STORE, 'mail01/latest')));
    }
    expect(vm.chunksRead()).toEqual([CHUNKS, 0, changed.length, 0]);
    // The oldest one is gone.
    expect(fs.readdirSync(path.join(STORE, 'mail01')).sort()).toEqual([...times.slice(1), 'latest']);
    const inode = (time: number, chunk: number) =>
      fs.statSync(path.join(STORE, 'mail01', times[time]!, chunkFile('vda', chunk))).ino;
    const own = [...Array(CHUNKS).keys()].filter((chunk) => inode(1, chunk) !== inode(2, chunk));
    expect(own).toEqual(changed);
    await vm.expectRestorable(path.join(STORE, 'mail01', times[1]!), first);
    await vm.expectRestorable(path.join(STORE, 'mail01/latest'), await vm.content());
  });
});
