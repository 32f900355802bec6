import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { execa } from 'execa';
import type { BackedUpVm } from './backed-up-vm.js';

const PROGRAMS = '/usr/share/backuppc/bin';
const DEFAULTS = '/usr/share/backuppc/conf/config.pl';

/** BackupPC's own directory of configuration is built into it, so ours is put in its place where only it sees that. */
const ENTER = `set -e
mount --bind "$1/etc" /etc/backuppc
mount --bind "$1/hosts" /etc/hosts
shift
exec setpriv --reuid=backuppc --regid=backuppc --init-groups --pdeathsig=TERM -- "$@"`;

function idOf(kind: '-u' | '-g'): number {
  return Number(execFileSync('id', [kind, 'backuppc'], { encoding: 'utf8' }));
}

function startProgram(directory: string, argv: readonly string[]) {
  const command = ['--mount', 'sh', '-c', ENTER, 'sh', directory, ...argv];
  return execa('unshare', command, { reject: false, stdin: 'ignore', encoding: 'buffer' });
}

/** A BackupPC server with a configuration and data of its own, for one host called mail01. */
export class BackupPcServer {
  readonly #directory: string;
  #server: ReturnType<typeof startProgram> | undefined;

  /** `host`: the configuration of mail01. `ssh`: what is to be called as ssh. */
  constructor(vm: BackedUpVm, { host, ssh }: { host: string; ssh: string }) {
    this.#directory = vm.path('backuppc');
    // The user backuppc must get there.
    fs.chmodSync(vm.path(), 0o755);
    const later = (new Date().getHours() + 12) % 24;
    const config = `${fs.readFileSync(DEFAULTS, 'utf8')}
$Conf{TopDir} = '${this.#directory}/data';
$Conf{LogDir} = '${this.#directory}/log';
$Conf{RunDir} = '${this.#directory}/run';
$Conf{SshPath} = '${ssh}';
$Conf{SendmailPath} = '/bin/true';
$Conf{PingCmd} = '/bin/true';
$Conf{$_} = '' for qw(SmbClientPath NmbLookupPath RrdToolPath);
$Conf{WakeupSchedule} = [${later}];
`;
    vm.write('backuppc/etc/config.pl', config);
    vm.write('backuppc/etc/hosts', 'host dhcp user moreUsers\nmail01 0 backuppc\n');
    vm.write('backuppc/etc/mail01.pl', host);
    vm.write('backuppc/hosts', '127.0.0.1 localhost hypervisor1\n', 0o644);
    for (const name of ['data', 'data/pc', 'data/pool', 'data/cpool', 'log', 'run'])
      fs.mkdirSync(this.path(name));
    execFileSync('chown', ['-R', `${idOf('-u')}:${idOf('-g')}`, this.#directory]);
  }

  static get uid(): number {
    return idOf('-u');
  }

  path(...names: string[]): string {
    return path.join(this.#directory, ...names);
  }

  async run(program: string, ...args: readonly string[]): Promise<Buffer> {
    const { exitCode, stdout, stderr } = await this.start(program, args);
    if (exitCode !== 0) throw new Error(`${program} ${args.join(' ')}: ${exitCode}\n${stderr}\n${this.said}`);
    return Buffer.from(stdout);
  }

  start(program: string, args: readonly string[] = []) {
    return startProgram(this.#directory, [path.join(PROGRAMS, program), ...args]);
  }

  /** Starts the server itself. */
  async open(): Promise<void> {
    const server = this.start('BackupPC');
    this.#server = server;
    const socket = this.path('run/BackupPC.sock');
    for (let attempt = 0; !fs.existsSync(socket); attempt++) {
      if (attempt === 300 || server.exitCode !== null) {
        server.kill();
        const { stdout, stderr } = await server;
        throw new Error(`no ${socket}: ${Buffer.from(stdout)}${Buffer.from(stderr)}\n${this.said}`);
      }
      await pause(100);
    }
  }

  /** Has the server back mail01 up. Returns what it wrote about it into its log: one line, when it was done. */
  async backup(kind: 'full' | 'incr'): Promise<string> {
    const before = this.#ends().length;
    await this.run(
      'BackupPC_serverMesg',
      'backup',
      'mail01',
      'mail01',
      'backuppc',
      kind === 'full' ? '1' : '0',
    );
    for (let attempt = 0; attempt < 300; attempt++) {
      const end = this.#ends()[before];
      if (end !== undefined) return end;
      await pause(100);
    }
    throw new Error(`BackupPC does not end:\n${this.said}`);
  }

  /** Type and start of each backup that it has. (It renumbers the last one when another one fails.) */
  backups(): string[] {
    const lines = fs.readFileSync(this.path('data/pc/mail01/backups'), 'utf8').trimEnd().split('\n');
    return lines.map((line) => line.split('\t').slice(1, 3).join(' '));
  }

  #ends(): string[] {
    const log = this.path('log/LOG');
    const lines = fs.existsSync(log) ? fs.readFileSync(log, 'utf8').split('\n') : [];
    return lines.filter((line) => / (Finished|Backup failed on) .*mail01/.test(line));
  }

  /** Its logs, for messages about what went wrong. */
  get said(): string {
    const host = this.path('data/pc/mail01');
    const files = fs.existsSync(host) ? fs.readdirSync(host).filter((name) => name.startsWith('LOG.')) : [];
    return [this.path('log/LOG'), ...files.map((name) => path.join(host, name))]
      .flatMap((file) => (fs.existsSync(file) ? [fs.readFileSync(file, 'utf8').slice(-3000)] : []))
      .join('\n');
  }

  async close(): Promise<void> {
    this.#server?.kill();
    await this.#server;
  }
}
