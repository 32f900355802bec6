import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { program } from '../support/requirements.js';
import { BackedUpVm, CHUNKS, EXAMPLES, OPTIONS } from './backed-up-vm.js';
import { BackupPcServer } from './backuppc-server.js';
import { SshServer } from './ssh-server.js';

const vm = new BackedUpVm();
let ssh: SshServer;
let backuppc: BackupPcServer;

/** The example, but for where the tree is, and the chunk size. */
function configuration(): string {
  const example = fs.readFileSync(path.join(EXAMPLES, 'backuppc/mail01.pl'), 'utf8');
  return example
    .replace('/var/lib/libvirt/backup/mail01', vm.tree)
    .replace('chunkmount --vm=$client', `chunkmount --vm=$client ${OPTIONS.join(' ')}`);
}

/** Restores a backup through BackupPC. Returns where the tree is. */
async function restore(number: string): Promise<string> {
  const target = vm.path(`restored-${number}`);
  fs.mkdirSync(target);
  const tar = await backuppc.run('BackupPC_tarCreate', '-h', 'mail01', '-n', number, '-s', vm.tree, '.');
  fs.writeFileSync(`${target}.tar`, tar);
  await vm.run(['tar', '--extract', `--file=${target}.tar`, `--directory=${target}`]);
  return target;
}

describe('BackupPC with examples/backuppc', () => {
  beforeAll(async () => {
    const installed = () =>
      fs.existsSync('/usr/share/backuppc') ? undefined : 'BackupPC 4 is missing: apt-get install backuppc';
    await vm.start(
      program('rsync'),
      program('sshd', 'openssh-server'),
      program('setpriv', 'util-linux'),
      installed,
    );
    ssh = await SshServer.start(vm);
    ssh.addClient('bin/ssh-backuppc', BackupPcServer.uid);
    backuppc = new BackupPcServer(vm, { host: configuration(), ssh: vm.path('bin/ssh-backuppc') });
    await backuppc.open();
  });
  afterAll(async () => {
    await backuppc?.close();
    await ssh?.close();
    await vm.close();
  });

  it('reads each chunk in a first backup; then none that did not change, and those that did', async () => {
    const first = await vm.content();
    expect(await backuppc.backup('full')).toMatch(/Finished full backup on mail01/);
    expect(await backuppc.backup('incr')).toMatch(/Finished incr backup on mail01/);
    const changed = await vm.change();
    expect(await backuppc.backup('incr')).toMatch(/Finished incr backup on mail01/);
    expect(vm.chunksRead()).toEqual([CHUNKS, 0, changed.length]);
    await vm.expectRestorable(await restore('1'), first);
    await vm.expectRestorable(await restore('2'), await vm.content());
  });

  it('fails when the VM cannot be frozen, and keeps what it has', async () => {
    const before = backuppc.backups();
    expect(before).toHaveLength(3);
    await vm.run(['chunkmount', 'run', '--vm=mail01', ...OPTIONS, '--keep-lock', '--', 'true']);
    expect(await backuppc.backup('incr')).toMatch(
      /Backup failed on mail01 \(DumpPreUserCmd returned error status/,
    );
    expect(backuppc.backups()).toEqual(before);
    await vm.run(['chunkmount', 'unlock', '--vm=mail01']);
    await vm.expectRestorable(await restore('-1'), await vm.content());
  });

  it('reads nothing in a full backup, either, with the line that the example has for that, also after a backup that was killed', async () => {
    vm.chunksRead();
    await vm.run(['chunkmount', '--vm=mail01', ...OPTIONS]);
    const file = backuppc.path('etc/mail01.pl');
    fs.writeFileSync(file, configuration().replace(/^# (?=\$Conf{RsyncFullArgsExtra})/m, ''));
    expect(await backuppc.backup('full')).toMatch(/Finished full backup on mail01/);
    // The session that was left, and the backup's own.
    expect(vm.chunksRead()).toEqual([0, 0]);
    await vm.expectRestorable(await restore('4'), await vm.content());
  });
});
